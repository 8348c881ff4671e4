"""PGN as its authors published it: latent prompts that were trained to stand in the sequence
without a position.

The published model appends them behind the patch tokens, after the position embedding was added.
Pixels have no such place: here each prompt goes to a cell of the canvas, where the endpoint adds
the cell's position e. So the cell's patch embedding has to yield p - e (see ``inversion``), and the
model has N tokens instead of N + K.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Setting
from pgn_client.prompting.methods.pgn import PGN
from pgn_client.prompting.token_library import TokenLibrary
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.patch_embedding import PatchEmbedding, normalised

RESOLUTION = 224
"""Side of the generator's input, in pixels: the shorter edge is resized to it, then the centre is
cropped.
"""
INTERPOLATION = "bilinear"
"""Of that resize, with antialiasing: torchvision's default, which the authors' test images go
through.
"""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the generator's input, whatever the backbone's are: CLIP's."""

NAMES = {
    "tl_vectors": "library.rows",
    "model.input_net.": "generator.trunk.input_net.",
    "model.blocks.": "generator.trunk.blocks.",
    "model.output_net.2.": "generator.mixture.",
}
"""How the published tensors are called, and how they are called here."""


class PublishedPGN(PGN):
    """A published generator and library; it is imported, not trained.

    Args:
        generator: image → mixture weights; its local head is silent, since published ones have
            none.
        library: latent rows.
        position: (K, D) position embedding of the cells that the prompts go to.
    """

    name = "pgn_published"
    title = "PGN as published"

    def __init__(self, generator: PromptGenerator, library: TokenLibrary, position: Tensor) -> None:
        super().__init__(generator, library)
        self.position: Tensor
        self.register_buffer("position", position)

    @classmethod
    def create(cls, setting: Setting) -> PublishedPGN:
        """Draw one, to be filled from a checkpoint.

        Raises:
            ConfigurationError: a library that is not latent, or a canvas without cells.
        """
        if setting.library != "latent":
            raise ConfigurationError(
                f"library: got {setting.library} for method {cls.name}, expected latent"
            )
        drawn = PGN.create(setting)
        return cls(
            drawn.generator, drawn.library, torch.zeros(setting.canvas.prompts, setting.width)
        )

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take over the authors' tensors; the local head is silenced.

        Raises:
            CheckpointError: tensors are missing, unknown, or of another shape.
        """
        own = {
            k: v
            for k, v in self.state_dict().items()
            if k.startswith(("generator.local_head.", "position"))
        }
        own |= {k: torch.zeros_like(v) for k, v in own.items() if k != "position"}
        try:
            self.load_state_dict(own | {renamed(name): tensor for name, tensor in state.items()})
        except RuntimeError as error:  # torch's says which tensor
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"published checkpoint: {reason}; expected a state dict of the authors' PGN"
            ) from error

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, r, r) in [-1, 1] → (B, K, L) mixture weights and (B, C) equal local logits."""
        return super().forward(normalised((x + 1) / 2, MEAN, STD))

    def published_logits(self, weights: Tensor, images: Tensor, backbone: Backbone) -> Tensor:
        """Answer as the authors' code does: prompts behind all other tokens, whole images, no
        canvas.

        Args:
            weights: (B, K, L) mixture weights.
            images: (B, 3, H, W) uint8, of the backbone's size. As there, any backbone gets what
                the generator gets: images normalised with CLIP's numbers.
            backbone: the model that the prompts were trained for.

        Returns:
            (B, S) float32 logits.
        """
        prompts = self.prompt_tokens(weights, backbone.embedding)
        return backbone.logits_with_more_tokens(
            normalised(images.float() / 255, MEAN, STD), prompts
        )

    def cell_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """See ``PGN``: what the model must find there before it adds the cell's position."""
        return self.prompt_tokens(weights, embedding) - self.position


def renamed(name: str) -> str:
    """Return what a published tensor is called here; unknown names stay as they are."""
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def sizes(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return K, L and D of a published state dict.

    Raises:
        CheckpointError: it is none, or holds numbers that are not finite.
    """
    rows, mixture = state.get("tl_vectors"), state.get("model.output_net.2.bias")
    if (
        rows is None
        or mixture is None
        or (rows.ndim, mixture.ndim) != (2, 1)
        or not len(rows)
        or len(mixture) % len(rows)
    ):
        raise CheckpointError(
            f"published checkpoint: got tensors such as {sorted(state)[:3]}, expected tl_vectors "
            "(L, D) and "
            "model.output_net.2.bias (K L), as in the authors' state dicts"
        )
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"published checkpoint: got numbers that are not finite in {broken[0]}; download "
            "it again"
        )
    return len(mixture) // len(rows), *rows.shape
