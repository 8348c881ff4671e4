"""The patch embedding: a ViT's first layer, an affine map from an RGB patch to a token."""

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
    """A backbone's patch embedding: token = W norm(patch) + b.

    Attributes:
        weight: Weight W, (D, 3, P, P) float32.
        bias: Bias b, (D,) float32; zeros where the backbone has none.
        mean: Mean per channel that norm subtracts, unit space.
        std: Standard deviation per channel that norm divides by, unit space.
    """

    weight: Tensor
    bias: Tensor
    mean: Triple
    std: Triple

    @property
    def patch_size(self) -> int:
        """P, side of a patch, in pixels."""
        return self.weight.shape[-1]

    @property
    def width(self) -> int:
        """D, the number of values in a token."""
        return self.weight.shape[0]

    # cached_property stores its value in __dict__, which a frozen dataclass allows.
    @cached_property
    def inverse(self) -> Tensor:
        """Pseudo-inverse of the flattened weight W, (3P², D), which maps tokens to patches."""
        inverse: Tensor = torch.linalg.pinv(self.weight.flatten(1))
        return inverse

    @cached_property
    def largest_gain(self) -> Tensor:
        """Largest eigenvalue of WᵀW, where W is the flattened weight."""
        gain: Tensor = torch.linalg.matrix_norm(self.weight.flatten(1), ord=2).square()
        return gain

    def normalise(self, unit: Tensor) -> Tensor:
        """Map (..., 3, h, w) float in [0, 1], unit space, to the normalized space."""
        return normalised(unit, self.mean, self.std)

    def __call__(self, patches: Tensor) -> Tensor:
        """Embed patches: (..., 3, P, P) float in [0, 1], unit space → (..., D) tokens, without
        position embedding.
        """
        return F.linear(self.normalise(patches).flatten(-3), self.weight.flatten(1), self.bias)

    def to(self, device: str | torch.device) -> PatchEmbedding:
        """Return a copy whose tensors are on ``device``."""
        return PatchEmbedding(self.weight.to(device), self.bias.to(device), self.mean, self.std)

    def sha256(self) -> str:
        """Return the SHA-256 of the weight, then the bias, as little-endian float32 in C order."""
        digest = hashlib.sha256()
        for tensor in (self.weight, self.bias):
            digest.update(tensor.detach().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


def normalised(unit: Tensor, mean: Triple, std: Triple) -> Tensor:
    """Return (unit - mean) / std per channel, for (..., 3, h, w) float in [0, 1], unit space."""
    mean_tensor = torch.tensor(mean, device=unit.device, dtype=unit.dtype).view(3, 1, 1)
    std_tensor = torch.tensor(std, device=unit.device, dtype=unit.dtype).view(3, 1, 1)
    return (unit - mean_tensor) / std_tensor


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
