"""The backbone’s first, affine map: an RGB patch becomes a token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PatchEmbedding:
    """The backbone's first, affine map: an RGB patch becomes a token, W norm(x) + b.

    Attributes:
        weight: (D, 3, P, P) float32.
        bias: (D,) float32; zeros where the backbone has none.
        mean, std: of the normalised space, per channel, unit scale.
    """

    weight: Tensor
    bias: Tensor
    mean: Triple
    std: Triple

    @property
    def patch_size(self) -> int:
        """P, in pixels."""
        return self.weight.shape[-1]

    @property
    def width(self) -> int:
        """D."""
        return self.weight.shape[0]

    @cached_property
    def inverse(self) -> Tensor:
        """(3P², D) pseudo-inverse of the flat weight."""
        inverse: Tensor = torch.linalg.pinv(self.weight.flatten(1))
        return inverse

    @cached_property
    def largest_gain(self) -> Tensor:
        """Largest eigenvalue of WᵀW, W the flat weight."""
        gain: Tensor = torch.linalg.matrix_norm(self.weight.flatten(1), ord=2).square()
        return gain

    def normalise(self, unit: Tensor) -> Tensor:
        """(..., 3, h, w) float in [0, 1], unit space → the normalised space."""
        return normalised(unit, self.mean, self.std)

    def __call__(self, patches: Tensor) -> Tensor:
        """(..., 3, P, P) float in [0, 1], unit space → (..., D) tokens, without position
        embedding.
        """
        return F.linear(self.normalise(patches).flatten(-3), self.weight.flatten(1), self.bias)

    def to(self, device: str | torch.device) -> PatchEmbedding:
        """Return the same on a device."""
        return PatchEmbedding(self.weight.to(device), self.bias.to(device), self.mean, self.std)

    def sha256(self) -> str:
        """Fingerprint: SHA-256 of little-endian float32 weight, then bias, both in C order."""
        arrays = (t.detach().cpu().numpy().astype("<f4") for t in (self.weight, self.bias))
        return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def normalised(unit: Tensor, mean: Triple, std: Triple) -> Tensor:
    """(..., 3, h, w) float in [0, 1], unit space → (unit - mean) / std, per channel."""
    m, s = (
        torch.tensor(v, device=unit.device, dtype=unit.dtype).view(3, 1, 1) for v in (mean, std)
    )
    return (unit - m) / s


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(v) for v in values)
    return red, green, blue
