"""Token libraries: the learned rows that a generator's weights mix into prompts.

A softmax mixture is convex, so a mixture of pixels is a valid image. The patch embedding is affine,
so the tokens of mixed pixels are the mixed tokens. A library of pixels is therefore trained in the
embedding space and deployed exactly. Latent rows, as published, have to be inverted (see
``inversion``).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting import inversion
from pgn_client.surrogate.patch_embedding import PatchEmbedding

PROJECTION_STEPS = 20
"""Iterations of projected gradient after each training step; few, since rows move little a step."""


class TokenLibrary(nn.Module):
    """L learned rows; a prompt is a convex mixture of them.

    Args:
        rows: Free parameters of the L rows; subclasses define their shape and meaning.

    Attributes:
        kind: Name in options and on checkpoint cards.
        exact: Whether the rows are pixels, so that prompts need no inversion.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = False

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    @classmethod
    def create(cls, size: int, patch_size: int, width: int) -> TokenLibrary:
        """Draw ``size`` random rows for patches of side ``patch_size`` and tokens of ``width``
        numbers.
        """
        raise TypeError(f"{cls.__name__} must define create")

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the rows as (L, D) tokens, float32, without position embedding."""
        raise TypeError(f"{type(self).__name__} must define tokens")

    def mixed_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """Return the prompt tokens of mixture weights: the L rows are embedded once, then mixed.

        Args:
            weights: Mixture weights, (B, K, L); each row is at least 0 and sums to 1.
            embedding: Patch embedding of the endpoint's model.

        Returns:
            (B, K, D) float32.
        """
        # In bfloat16 the weights would not sum to 1, and the tokens not be those of mixed pixels.
        with torch.autocast(weights.device.type, enabled=False):
            return weights.float() @ self.tokens(embedding)

    def stay_within(self, embedding: PatchEmbedding) -> None:
        """Move the rows back into their bounds, if the library has any; training calls this after
        each step.
        """


class LatentLibrary(TokenLibrary):
    """Rows are D-vectors, as published, drawn from N(0, 0.02²).

    To become RGB patches they need ``inversion``, which is inexact.
    """

    kind = "latent"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int) -> LatentLibrary:
        """Draw random rows of ``width`` numbers."""
        return cls(torch.randn(size, width) * 0.02)

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the rows themselves, (L, D)."""
        return self.rows


class ReachableLibrary(LatentLibrary):
    """Latent rows that pixels can reach: each training step ends with a projection of every row to
    the nearest token of a valid patch.

    The tokens of valid patches form a convex set, so mixtures of reachable rows are reachable too,
    and bounded inversion is exact up to rounding. It represents the same prompts as a pixel
    library, in other coordinates. Deviation: ours.
    """

    kind = "reachable"

    def stay_within(self, embedding: PatchEmbedding) -> None:
        """Project the rows onto the tokens of valid pixels (``inversion.bounded``)."""
        with torch.no_grad():
            patches = inversion.bounded(self.rows, embedding, steps=PROJECTION_STEPS)
            self.rows.copy_(embedding(patches))


class PixelLibrary(TokenLibrary):
    """Rows are RGB patches, so a mixture of them is a valid image.

    A row is the sigmoid of free numbers, in [0, 1]. These are drawn with a standard deviation of 1,
    which gives the rows contrast. Deviation: ours; the published library is latent.

    Args:
        rows: Free numbers, (L, 3, P, P) float32 here.
        patch_size: P, side of a patch, in pixels.
    """

    kind = "pixel"
    exact = True

    def __init__(self, rows: Tensor, patch_size: int) -> None:
        super().__init__(rows)
        self.patch_size = patch_size

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> PixelLibrary:
        """Draw random rows of 3 x P x P numbers."""
        # All kinds of libraries are created in the same way, but only latent rows need ``width``.
        return cls(torch.randn(size, 3, patch_size, patch_size), patch_size)

    def patches(self) -> Tensor:
        """Return the rows as patches, (L, 3, P, P) float32 in [0, 1], unit space."""
        return self.rows.sigmoid()

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the embedded rows, (L, D)."""
        return embedding(self.patches())

    def mixed_patches(self, weights: Tensor) -> Tensor:
        """Return the prompt patches of mixture weights: a mixture of valid patches is a valid one.

        Args:
            weights: Mixture weights, (B, K, L); each row is at least 0 and sums to 1.

        Returns:
            (B, K, 3, P, P) in [0, 1], unit space.
        """
        return inversion.exact(weights, self.patches())


class SmoothLibrary(PixelLibrary):
    """A pixel library of low frequencies, for servers that re-encode: JPEG preserves them best.

    Rows are coarse grids of P/4 x P/4 colors, enlarged to the patch by bilinear interpolation.
    Deviation: ours.
    """

    kind = "smooth"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> SmoothLibrary:
        """Draw random rows of 3 x P/4 x P/4 numbers."""
        side = max(1, patch_size // 4)
        return cls(torch.randn(size, 3, side, side), patch_size)

    def patches(self) -> Tensor:
        """Return the enlarged rows as patches, (L, 3, P, P) float32 in [0, 1], unit space."""
        return nn.functional.interpolate(self.rows.sigmoid(), size=self.patch_size, mode="bilinear")


class LumaLibrary(PixelLibrary):
    """A pixel library without color, for servers that re-encode: chroma subsampling does not change
    it.

    Deviation: ours.
    """

    kind = "luma"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> LumaLibrary:
        """Draw random rows of P x P numbers."""
        return cls(torch.randn(size, 1, patch_size, patch_size), patch_size)

    def patches(self) -> Tensor:
        """Return the rows as gray patches, (L, 3, P, P) float32 in [0, 1], unit space."""
        return self.rows.sigmoid().expand(-1, 3, -1, -1)


LIBRARIES: dict[str, type[TokenLibrary]] = {
    library.kind: library
    for library in (PixelLibrary, SmoothLibrary, LumaLibrary, LatentLibrary, ReachableLibrary)
}


def library(kind: str) -> type[TokenLibrary]:
    """Return a kind of library by name.

    Raises:
        ConfigurationError: The name is unknown.
    """
    if kind not in LIBRARIES:
        raise ConfigurationError(f"library: got {kind!r}, expected one of {', '.join(LIBRARIES)}")
    return LIBRARIES[kind]
