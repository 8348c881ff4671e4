"""A linear map from a frozen model's patch tokens to masks: the baseline, and where the training of prompts starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pgn_client.backbone import Backbone
from pgn_client.errors import ShapeError
from pgn_client.methods.expres import EXPRES
from pgn_client.regression import logistic_regression_cv
from pgn_client.segmentation.overlap import IGNORED

VERSIONS = 8
"""Of a square picture: turned by 0, 90, 180 or 270 degrees, mirrored or not."""


@dataclass(frozen=True)
class LinearHead:
    """A linear map of patch tokens.

    Attributes:
        weight: (D, C) float32. bias: (C,) float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """(..., D) → (..., C) logits."""
        return tokens @ self.weight + self.bias


@torch.no_grad()
def patch_tokens(backbone: Backbone, pictures: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 → (n, N, D) float32, the frozen model's patch tokens after the final norm.

    Raises:
        ShapeError: pictures of another size than the model's.
    """
    size = (backbone.input_size, backbone.input_size)
    if tuple(pictures.shape[-2:]) != size:
        raise ShapeError(f"segmentation: got pictures {tuple(pictures.shape[-2:])}, expected {size}; resize them")
    nothing = EXPRES(torch.zeros(0, backbone.width), {}).to(backbone.device)
    parts = [nothing.encoded(backbone.tokens(x), backbone)[0] for x in pictures.to(backbone.device).split(8)]
    return torch.cat(parts)


def version(pictures: Tensor, number: int) -> Tensor:
    """(..., S, S) → the same, turned and mirrored; ``number`` in [0, VERSIONS), 0 for as it is."""
    turned = pictures.rot90(number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


def patch_targets(masks: Tensor, patch: int, classes: int) -> Tensor:
    """(n, H, W) masks → (n, N) int64: the class that most of a patch's pixels have, ``IGNORED`` where most are."""
    shown = torch.stack([masks == c for c in (*range(classes), IGNORED)], dim=1).float()
    most = F.avg_pool2d(shown, patch).flatten(2).argmax(1)
    return torch.where(most == classes, IGNORED, most)


def enlarged(scores: Tensor, size: int) -> Tensor:
    """(n, N, C) scores of patches → (n, C, size, size), bilinear."""
    side = math.isqrt(scores.shape[1])
    grid = scores.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)


def fit_linear(tokens: Tensor, targets: Tensor, groups: Tensor, classes: int) -> LinearHead:
    """Fit multinomial logistic regression on standardised tokens; cross-validation chooses its L2 strength.

    Args:
        tokens: (n, N, D) float32.
        targets: (n, N) int64 in [0, classes), or ``IGNORED``.
        groups: (n, N) int64; no fold parts a group.
        classes: C, background included.
    """
    counts = targets != IGNORED
    x, y, group = tokens[counts].double().cpu().numpy(), targets[counts].cpu().numpy(), groups[counts].cpu().numpy()
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    fit = logistic_regression_cv((x - mean) / scale, y, classes, groups=group)
    weight = fit.weight / scale[:, None]
    return LinearHead(_tensor(weight, tokens), _tensor(fit.bias - mean @ weight, tokens))


def _tensor(array: NDArray[np.float64], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like)
