"""Token libraries: the learned rows that a generator's weights mix into prompts.

A softmax mixture is convex, so a mixture of pixels is a valid image. The patch embedding is affine,
so the tokens of mixed pixels are the mixed tokens. Training can therefore mix the tokens of a pixel
library, and serving can send the mixed pixels, with the same result. Latent rows, as published, are
tokens themselves and have to be turned into pixels (see ``inversion``).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting import inversion
from pgn_client.surrogate.patch_embedding import PatchEmbedding

PROJECTION_STEPS = 20
"""Iterations that move latent rows back to reachable tokens after each training step."""


class TokenLibrary(nn.Module):
    """Base of all token libraries: L learned rows, of which each prompt is a convex mixture.

    Args:
        rows: Free parameters of the L rows; subclasses define their shape and meaning.

    Attributes:
        kind: Name in options and on checkpoint cards.
        exact: Whether the rows are pixels, so that prompts become patches without inversion.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = False

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    @classmethod
    def create(cls, size: int, patch_size: int, width: int) -> TokenLibrary:
        """Create a library of ``size`` random rows.

        Args:
            size: Number of rows, L.
            patch_size: Side of a patch, P, in pixels; only for rows that are pixels.
            width: Width of a token, D; only for latent rows.
        """
        raise TypeError(f"{cls.__name__} must define create")

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the library's L rows as tokens, (L, D) float32, without position embedding."""
        raise TypeError(f"{type(self).__name__} must define tokens")

    def mixed_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """Return the prompt tokens of mixture weights: the L rows are embedded once, then mixed.

        Args:
            weights: Mixture weights, (B, K, L), for K prompts per image; they are at least 0 and
                sum to 1 over the L rows.
            embedding: Patch embedding of the endpoint's model.

        Returns:
            Prompt tokens, (B, K, D) float32, without position embedding.
        """
        # In bfloat16 the weights would not sum to 1, and the tokens not be those of mixed pixels.
        with torch.autocast(weights.device.type, enabled=False):
            return weights.float() @ self.tokens(embedding)

    def stay_within(self, embedding: PatchEmbedding) -> None:
        """Move the library's rows back into their bounds, if there are any.

        Training calls this after each step.
        """


class LatentLibrary(TokenLibrary):
    """A library whose rows are tokens of D numbers, as published, drawn from N(0, 0.02²).

    Mixtures of such rows become RGB patches by ``inversion``, which is inexact.
    """

    kind = "latent"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int) -> LatentLibrary:
        """Create a library of ``size`` random rows, each a token of ``width`` numbers."""
        return cls(torch.randn(size, width) * 0.02)

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the L rows, which are tokens already, (L, D)."""
        return self.rows


class ReachableLibrary(LatentLibrary):
    """Latent rows that pixels can reach: each training step ends with a projection of every row to
    the nearest token of a valid patch.

    The tokens of valid patches form a convex set, so mixtures of reachable rows are reachable too,
    and ``inversion.bounded`` is exact up to rounding. The library can represent the same prompts
    as a pixel library, in other coordinates. Deviation: ours.
    """

    kind = "reachable"

    def stay_within(self, embedding: PatchEmbedding) -> None:
        """Replace each row by the nearest token of a valid patch (``inversion.bounded``)."""
        with torch.no_grad():
            patches = inversion.bounded(self.rows, embedding, steps=PROJECTION_STEPS)
            self.rows.copy_(embedding(patches))


class PixelLibrary(TokenLibrary):
    """A library whose rows are RGB patches, so a mixture of them is a valid patch.

    A row is the sigmoid of free numbers, so it is in [0, 1]. The free numbers are drawn with a
    standard deviation of 1, which gives the rows contrast. Deviation: ours; the published library
    is latent.

    Args:
        rows: Free numbers of the L rows, (L, 3, P, P) float32.
        patch_size: P, side of a patch, in pixels.
    """

    kind = "pixel"
    exact = True

    def __init__(self, rows: Tensor, patch_size: int) -> None:
        super().__init__(rows)
        self.patch_size = patch_size

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> PixelLibrary:
        """Create a library of ``size`` random RGB patches, 3 x P x P free numbers each."""
        # All kinds of libraries are created in the same way, but only latent rows need ``width``.
        return cls(torch.randn(size, 3, patch_size, patch_size), patch_size)

    def patches(self) -> Tensor:
        """Return the L rows as RGB patches, (L, 3, P, P) float32 in [0, 1], unit space."""
        return self.rows.sigmoid()

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the tokens of the library's L patches, (L, D), without position embedding."""
        return embedding(self.patches())

    def mixed_patches(self, weights: Tensor) -> Tensor:
        """Mix the library's patches into prompt patches; a mixture of valid patches is valid.

        Args:
            weights: Mixture weights, (B, K, L), for K prompts per image; they are at least 0 and
                sum to 1 over the L rows.

        Returns:
            Prompt patches, (B, K, 3, P, P) in [0, 1], unit space.
        """
        return inversion.exact(weights, self.patches())


class SmoothLibrary(PixelLibrary):
    """A pixel library of smooth patches, because JPEG preserves low frequencies best.

    It is for servers that re-encode the images. Rows are coarse grids of P/4 x P/4 colors, enlarged
    to the patch by bilinear interpolation. Deviation: ours.
    """

    kind = "smooth"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> SmoothLibrary:
        """Create a library of ``size`` random coarse patches, 3 x P/4 x P/4 free numbers each."""
        side = max(1, patch_size // 4)
        return cls(torch.randn(size, 3, side, side), patch_size)

    def patches(self) -> Tensor:
        """Return the L rows enlarged to RGB patches, (L, 3, P, P) float32 in [0, 1], unit space."""
        return nn.functional.interpolate(self.rows.sigmoid(), size=self.patch_size, mode="bilinear")


class LumaLibrary(PixelLibrary):
    """A pixel library of gray patches, which chroma subsampling does not change.

    It is for servers that re-encode the images as JPEG. Deviation: ours.
    """

    kind = "luma"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> LumaLibrary:
        """Create a library of ``size`` random gray patches, P x P free numbers each."""
        return cls(torch.randn(size, 1, patch_size, patch_size), patch_size)

    def patches(self) -> Tensor:
        """Return the L rows as gray RGB patches, (L, 3, P, P) float32 in [0, 1], unit space."""
        return self.rows.sigmoid().expand(-1, 3, -1, -1)


LIBRARIES: dict[str, type[TokenLibrary]] = {
    library.kind: library
    for library in (PixelLibrary, SmoothLibrary, LumaLibrary, LatentLibrary, ReachableLibrary)
}


def library(kind: str) -> type[TokenLibrary]:
    """Return the library class of a kind, such as ``pixel`` or ``latent``.

    Raises:
        ConfigurationError: The name is unknown.
    """
    if kind not in LIBRARIES:
        raise ConfigurationError(f"library: got {kind!r}, expected one of {', '.join(LIBRARIES)}")
    return LIBRARIES[kind]
