"""PGN as its authors published it: latent prompts that were trained without a position embedding.

The published model appends the prompts to the patch tokens after it has added the position
embedding. Pixels cannot do that. Here each prompt p is painted into a cell, one patch of the image,
where the endpoint adds the cell's position embedding e. The patch must therefore be embedded as
p - e (see ``inversion``). With K prompts the model has N tokens here, instead of the published
N + K.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgn_client.checkpoint.card import Interpolation
from pgn_client.errors import CheckpointError, ConfigurationError, printable
from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Setting
from pgn_client.prompting.methods.pgn import PGN
from pgn_client.prompting.token_library import TokenLibrary
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.patch_embedding import PatchEmbedding, normalised

RESOLUTION = 224
"""Side of a published generator's input, in pixels.

The shorter edge of the image is resized to it, and the center is cropped.
"""
INTERPOLATION: Interpolation = "bilinear"
"""Interpolation that resizes images for a published generator, with antialiasing.

It is torchvision's default, which the authors use for test images.
"""
MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of the generator's input per channel: CLIP's, for every backbone."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of the generator's input per channel: CLIP's, for every backbone."""

NAMES = {
    "tl_vectors": "library.rows",
    "model.input_net.": "generator.trunk.input_net.",
    "model.blocks.": "generator.trunk.blocks.",
    "model.output_net.2.": "generator.mixture.",
}
"""Names of tensors in a published checkpoint, or their prefixes → the names in this library."""


class PublishedPGN(PGN):
    """A PGN with the generator and library that its authors published; imported, not trained.

    Args:
        generator: Generator of mixture weights. Its local head is all zeros, since published
            generators have none.
        library: Latent rows.
        position: Position embedding of the prompt cells, (K, D).
    """

    name = "pgn_published"
    title = "PGN as published"

    def __init__(self, generator: PromptGenerator, library: TokenLibrary, position: Tensor) -> None:
        super().__init__(generator, library)
        self.position: Tensor
        self.register_buffer("position", position)

    @classmethod
    def create(cls, setting: Setting) -> PublishedPGN:
        """Create the method with random parameters, to be replaced by those of a checkpoint.

        Raises:
            ConfigurationError: The library is not latent, or the layout has no prompt cells.
        """
        if setting.library != "latent":
            raise ConfigurationError(
                f"library: got {setting.library} for method {cls.name}, expected latent"
            )
        pgn = PGN.create(setting)
        position = torch.zeros(setting.canvas.prompts, setting.width)
        return cls(pgn.generator, pgn.library, position)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Load the authors' tensors into this model; the local head becomes all zeros.

        Raises:
            CheckpointError: Tensors are missing, unknown, or of another shape.
        """
        # The authors' state has neither a local head nor positions.
        tensors = {"position": self.position}
        for name, tensor in self.state_dict().items():
            if name.startswith("generator.local_head."):
                tensors[name] = torch.zeros_like(tensor)
        tensors |= {renamed(name): tensor for name, tensor in state.items()}

        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            # torch's message names the tensor.
            reason = printable(" ".join(str(error).split()))[:300]
            raise CheckpointError(
                f"published checkpoint: {reason}; expected a state dict of the authors' PGN"
            ) from error

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixture weights and the local logits of (B, 3, r, r) images in [-1, 1].

        Returns:
            (B, K, L) weights of the L library rows for K prompts; (B, C) logits for the C task
            classes, all 0.
        """
        # Generators trained here read [-1, 1], so `generator_input` gives that; undo it.
        return super().forward(normalised((x + 1) / 2, MEAN, STD))

    def published_logits(self, weights: Tensor, images: Tensor, backbone: Backbone) -> Tensor:
        """Compute a backbone's logits as the authors' code does, with prompts as additional tokens.

        The image fills the whole input, and the prompts follow all other tokens.

        Args:
            weights: Mixture weights, (B, K, L).
            images: Images at the backbone's input size, (B, 3, H, W) uint8. They are normalized
                with CLIP's mean and deviation for every backbone, as in the authors' code.
            backbone: The model that the prompts were trained for.

        Returns:
            (B, S) float32 logits of the S endpoint labels.
        """
        prompts = self.prompt_tokens(weights, backbone.embedding)
        return backbone.logits_with_more_tokens(
            normalised(images.float() / 255, MEAN, STD), prompts
        )

    def cell_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """Return the tokens to make from pixels, (B, K, D), for (B, K, L) mixture weights.

        They are the prompt tokens minus the position embedding, which the model adds again.
        """
        return self.prompt_tokens(weights, embedding) - self.position


def renamed(name: str) -> str:
    """Return this library's name of a published tensor; unknown names stay unchanged."""
    for theirs, ours in NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def sizes(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return the numbers of prompts and library rows, and the token width, of a published PGN.

    Raises:
        CheckpointError: The tensors are not those of a published PGN, or hold numbers that are not
            finite.
    """
    rows = state.get("tl_vectors")
    mixture = state.get("model.output_net.2.bias")
    if (
        rows is None
        or mixture is None
        or (rows.ndim, mixture.ndim) != (2, 1)
        or not len(rows)
        or len(mixture) % len(rows)
    ):
        raise CheckpointError(
            f"published checkpoint: got tensors such as {sorted(state)[:3]}, expected tl_vectors "
            "(L, D) and model.output_net.2.bias (K times L,); give a file of the authors' code"
        )

    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"published checkpoint: got numbers that are not finite in {broken[0]}; download "
            "it again"
        )
    return len(mixture) // len(rows), *rows.shape
