"""PGN: every picture gets its own prompt, mixed from a learned library (arXiv 2210.06466)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgn_client import inversion
from pgn_client.backbone import PatchEmbedding
from pgn_client.errors import ConfigurationError
from pgn_client.generator import LatentLibrary, PixelLibrary, PromptGenerator, TokenLibrary, generator_input


@dataclass(frozen=True)
class Rates:
    """Learning rate of each part.

    Attributes:
        library: of the library rows.
        bias: of the mixture's bias, which *is* the input-independent prompt.
        mixture: of the mixture's weights.
        trunk: of the trunk and the local head.
        mapping: of the linear label mapping.
    """

    library: float
    bias: float
    mixture: float
    trunk: float
    mapping: float


class PGN(nn.Module):
    """Generator and library together: picture → prompt tokens (training) or prompt patches (serving).

    Args:
        generator: picture → mixture weights.
        library: the rows that are mixed.
    """

    name = "pgn"

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__()
        self.generator, self.library = generator, library

    @classmethod
    def create(cls, prompts: int, classes: int, *, library: str, library_size: int, patch_size: int, width: int) -> PGN:
        """Draw a new one: K prompts, C classes, L = ``library_size`` rows, P = ``patch_size``, D = ``width``.

        Raises:
            ConfigurationError: an unknown kind of library.
        """
        if library not in ("pixel", "latent"):
            raise ConfigurationError(f"library: got {library!r}, expected pixel or latent")
        pixel = library == "pixel"
        rows = PixelLibrary.create(library_size, patch_size) if pixel else LatentLibrary.create(library_size, width)
        return cls(PromptGenerator(prompts, library_size, classes), rows)

    @classmethod
    def restore(cls, card: Mapping[str, Any], state: Mapping[str, Tensor]) -> PGN:
        """Build one from a checkpoint's card and tensors, in evaluation mode."""
        rows = state["library.rows"]
        library = (PixelLibrary if card["library"]["kind"] == "pixel" else LatentLibrary)(rows)
        prompts = state["generator.mixture.bias"].numel() // len(rows)
        model = cls(PromptGenerator(prompts, len(rows), len(card["classes"])), library)
        model.load_state_dict(state)
        return model.eval()

    def start_peaked(self) -> None:
        """Let prompts start with contrast: bias N(0, 2²), weights N(0, 0.02²).

        Deviation: ours. Rows mixed nearly uniformly, as under the usual initialisation, start as flat grey.
        """
        nn.init.normal_(self.generator.mixture.bias, std=2.0)
        nn.init.normal_(self.generator.mixture.weight, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, r, r) → (B, K, L) mixture weights and (B, C) local logits."""
        weights, local = self.generator(x)
        return weights, local

    def prompt_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """(B, K, L) mixture weights → (B, K, D) tokens, float32: the L rows are embedded once, then mixed."""
        with torch.autocast(weights.device.type, enabled=False):
            return weights.float() @ self.library.tokens(embedding)

    def prompt_patches(self, weights: Tensor, embedding: PatchEmbedding | None, route: str = "exact") -> Tensor:
        """(B, K, L) mixture weights → (B, K, 3, P, P) in [0, 1], unit space.

        Args:
            weights: mixture weights.
            embedding: the endpoint's patch embedding; a pixel library does not need it.
            route: ``exact`` for a pixel library; ``bounded`` or ``pseudo_inverse`` for a latent one.
        """
        if isinstance(self.library, PixelLibrary):
            return inversion.exact(weights, self.library.patches())
        if embedding is None:
            raise ConfigurationError(
                "inversion of a latent library: got no patch embedding; train the checkpoint again"
            )
        return inversion.route(route)(self.prompt_tokens(weights, embedding), embedding)

    @torch.inference_mode()
    def render(
        self, pictures: Tensor, *, resolution: int, embedding: PatchEmbedding | None = None, route: str = "exact"
    ) -> tuple[Tensor, Tensor]:
        """Serve: pictures → prompt patches in whole grey values, and the local head's opinion.

        Args:
            pictures: (B, 3, h, w) uint8, fitted to the canvas's box.
            resolution: side of the generator's input, in pixels.
            embedding: see :meth:`prompt_patches`.
            route: see :meth:`prompt_patches`.

        Returns:
            (B, K, P, P, 3) uint8, pixel space, rounded to nearest; (B, C) float32 log-probabilities.
        """
        weights, local = self(generator_input(pictures, resolution))
        patches = self.prompt_patches(weights, embedding, route)
        return (patches * 255).round().to(torch.uint8).movedim(2, -1), local.log_softmax(dim=-1)

    def parameter_groups(self, rates: Rates) -> list[dict[str, Any]]:
        """Return optimiser groups: each part at its own rate."""
        g = self.generator
        trunk = [*g.trunk.parameters(), *g.local_head.parameters()]
        return [
            {"params": [self.library.rows], "lr": rates.library},
            {"params": [g.mixture.bias], "lr": rates.bias},
            {"params": [g.mixture.weight], "lr": rates.mixture},
            {"params": trunk, "lr": rates.trunk},
        ]
