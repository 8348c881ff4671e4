"""PGN: every image gets its own prompt, mixed from a learned library (arXiv 2210.06466)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting import inversion
from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Groups, Rates, RGBMethod, Setting, require_layout
from pgn_client.prompting.token_library import PixelLibrary, TokenLibrary, library
from pgn_client.surrogate.patch_embedding import PatchEmbedding

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate


class PGN(RGBMethod):
    """Generator and library together: image → prompt tokens (training) or prompt patches
    (serving).

    Args:
        generator: image → mixture weights.
        library: the rows that are mixed.
    """

    name = "pgn"
    title = "PGN"
    # whether the prompt depends on it, and so teaches the trunk
    sees_image: ClassVar[bool] = True
    generator: PromptGenerator

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__(generator)
        self.library = library

    @classmethod
    def create(cls, setting: Setting) -> PGN:
        """Draw a new one.

        Raises:
            ConfigurationError: an unknown kind of library, or a canvas without cells.
        """
        require_layout(setting, cls)
        generator = PromptGenerator(setting.canvas.prompts, setting.library_size, setting.classes)
        return cls(generator, draw_library(setting))

    def start(self, *, peaked: bool) -> None:
        """Let prompts start with contrast: bias N(0, 2²), weights N(0, 0.02²).

        Deviation: ours. Rows mixed nearly uniformly, as under the usual initialisation, start as
        flat grey.
        """
        if peaked:
            nn.init.normal_(self.generator.mixture.bias, std=2.0)
            nn.init.normal_(self.generator.mixture.weight, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, r, r) → (B, K, L) mixture weights and (B, C) local logits."""
        weights, local = self.generator(x)
        return weights, local

    def scores(self, code: Tensor, images: Tensor, surrogate: Surrogate) -> Tensor:
        """See ``Method``: where the latent space may stand in, prompt tokens replace the patches of
        their cells.
        """
        if not surrogate.latent:
            return super().scores(code, images, surrogate)
        return surrogate.scores(images, self.cell_tokens(code, surrogate.backbone.embedding))

    def after_step(self, surrogate: Surrogate) -> None:
        """See ``Method``."""
        if surrogate.latent:
            self.library.stay_within(surrogate.backbone.embedding)

    def prompt_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """(B, K, L) mixture weights → (B, K, D) tokens, float32: the L rows are embedded once, then
        mixed.
        """
        with torch.autocast(weights.device.type, enabled=False):
            return weights.float() @ self.library.tokens(embedding)

    def cell_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """(B, K, L) mixture weights → (B, K, D) tokens that replace the patch tokens of the prompt
        cells.
        """
        return self.prompt_tokens(weights, embedding)

    def prompt_patches(
        self, weights: Tensor, embedding: PatchEmbedding | None, route: str = "exact"
    ) -> Tensor:
        """(B, K, L) mixture weights → (B, K, 3, P, P) in [0, 1], unit space.

        Args:
            weights: mixture weights.
            embedding: the endpoint's patch embedding; a pixel library does not need it.
            route: ``exact`` for a library of pixels; ``bounded`` or ``pseudo_inverse`` for a latent
                one.
        """
        if isinstance(self.library, PixelLibrary):
            return inversion.exact(weights, self.library.patches())
        if embedding is None:
            raise ConfigurationError(
                "inversion of a latent library: got no patch embedding; train the checkpoint again"
            )
        return inversion.route(route)(self.cell_tokens(weights, embedding), embedding)

    def painted(
        self, code: Tensor, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """See ``RGBMethod``: prompt patches."""
        return self.prompt_patches(code, embedding, route)

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return optimiser groups: each part at its own rate."""
        g = self.generator
        return [
            {"params": [self.library.rows], "lr": rates.library},
            {"params": [g.mixture.bias], "lr": rates.bias},
            {"params": [g.mixture.weight], "lr": rates.mixture},
            {"params": list(g.trunk.parameters()), "lr": rates.trunk},
        ]


def draw_library(setting: Setting) -> TokenLibrary:
    """Draw the rows of a library.

    Raises:
        ConfigurationError: an unknown kind.
    """
    return library(setting.library).create(
        setting.library_size, setting.canvas.patch, setting.width
    )
