"""Token libraries: what the rows are that a generator's weights mix into prompts.

A softmax mixture is convex. Mixed pixels are a valid image, and through the affine patch
embedding mixed tokens are the tokens of mixed pixels; so a library of pixels is trained in the
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
"""Of projected gradient, after each step of a training: rows move little between two of them."""


class TokenLibrary(nn.Module):
    """L learned rows; a prompt is a convex mixture of them.

    Args:
        rows: the free parameters; subclasses say what they mean.

    Attributes:
        kind: as options and checkpoint cards have it.
    """

    kind: ClassVar[str]
    exact: ClassVar[bool] = False  # whether rows are pixels, so that nothing has to be inverted

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    @classmethod
    def create(cls, size: int, patch_size: int, width: int) -> TokenLibrary:
        """Draw ``size`` rows for patches of side ``patch_size`` and tokens of ``width`` numbers."""
        raise TypeError(f"{cls.__name__} does not say how it is drawn")

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the rows as (L, D) tokens, float32, without position embedding."""
        raise TypeError(f"{type(self).__name__} does not say what its rows are")

    def stay_within(self, embedding: PatchEmbedding) -> None:
        """Called after each step of a training: a library with bounds moves its rows back into
        them.
        """


class LatentLibrary(TokenLibrary):
    """Rows are D-vectors, as published, drawn from N(0, 0.02²); RGB needs ``inversion``, which
    loses.
    """

    kind = "latent"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int) -> LatentLibrary:
        """Draw rows of ``width`` numbers."""
        return cls(torch.randn(size, width) * 0.02)

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the rows themselves, (L, D)."""
        return self.rows


class ReachableLibrary(LatentLibrary):
    """Latent rows that pixels can reach: after each step every row goes back to the nearest token
    of a valid patch.

    The tokens of valid patches are a convex set, so mixtures of reachable rows are reachable too,
    and bounded inversion loses nothing but the rounding. What it parametrises is what a pixel
    library does, in other coordinates. Deviation: ours.
    """

    kind = "reachable"

    def stay_within(self, embedding: PatchEmbedding) -> None:
        """See :class:`TokenLibrary`: projected by ``inversion.bounded``."""
        with torch.no_grad():
            self.rows.copy_(
                embedding(inversion.bounded(self.rows, embedding, steps=PROJECTION_STEPS))
            )


class PixelLibrary(TokenLibrary):
    """Rows are RGB patches of side ``patch_size``, sigmoid(free) in [0, 1], so a mixture of them is
    a valid image.

    Deviation: ours; the published library is latent. Standard deviation 1 before the sigmoid gives
    rows contrast.
    """

    kind = "pixel"
    exact = True

    def __init__(self, rows: Tensor, patch_size: int) -> None:
        super().__init__(rows)
        self.patch_size = patch_size

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> PixelLibrary:
        """Draw rows of 3 x P x P numbers."""
        return cls(torch.randn(size, 3, patch_size, patch_size), patch_size)

    def patches(self) -> Tensor:
        """Return (L, 3, P, P) float32 in [0, 1], unit space."""
        return self.rows.sigmoid()

    def tokens(self, embedding: PatchEmbedding) -> Tensor:
        """Return the embedded rows, (L, D)."""
        return embedding(self.patches())


class SmoothLibrary(PixelLibrary):
    """A pixel library of low frequencies, for servers that re-encode: JPEG keeps what is smooth.

    Rows are coarse grids of P/4 x P/4 colours, spread over the patch by bilinear interpolation.
    Deviation: ours.
    """

    kind = "smooth"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> SmoothLibrary:
        """Draw rows of 3 x P/4 x P/4 numbers."""
        side = max(1, patch_size // 4)
        return cls(torch.randn(size, 3, side, side), patch_size)

    def patches(self) -> Tensor:
        """See :class:`PixelLibrary`."""
        return nn.functional.interpolate(self.rows.sigmoid(), size=self.patch_size, mode="bilinear")


class LumaLibrary(PixelLibrary):
    """A pixel library without colour, for servers that re-encode: chroma subsampling cannot touch
    it.

    Deviation: ours.
    """

    kind = "luma"

    @classmethod
    def create(cls, size: int, patch_size: int, width: int = 0) -> LumaLibrary:
        """Draw rows of P x P numbers."""
        return cls(torch.randn(size, 1, patch_size, patch_size), patch_size)

    def patches(self) -> Tensor:
        """See :class:`PixelLibrary`."""
        return self.rows.sigmoid().expand(-1, 3, -1, -1)


LIBRARIES: dict[str, type[TokenLibrary]] = {
    library.kind: library
    for library in (PixelLibrary, SmoothLibrary, LumaLibrary, LatentLibrary, ReachableLibrary)
}


def library(kind: str) -> type[TokenLibrary]:
    """Return a kind of library by name.

    Raises:
        ConfigurationError: unknown.
    """
    if kind not in LIBRARIES:
        raise ConfigurationError(f"library: got {kind!r}, expected one of {', '.join(LIBRARIES)}")
    return LIBRARIES[kind]
