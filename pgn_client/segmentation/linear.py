"""A linear map from a frozen model's patch tokens to masks: the baseline, and where the training of
prompts starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pgn_client.arrays import Floats
from pgn_client.errors import ShapeError
from pgn_client.mapping.logistic_regression import logistic_regression_cv
from pgn_client.prompting.methods.expres import EXPRES
from pgn_client.segmentation.iou import IGNORED
from pgn_client.surrogate.backbone import Backbone

BATCH = 8
VERSIONS = 8
"""Of a square image: turned by 0, 90, 180 or 270 degrees, mirrored or not."""
TURNED = 4
"""How many of them logistic regression learns from, none mirrored: half the time, nearly as good
(``LOG.md``).
"""


@dataclass(frozen=True)
class LinearHead:
    """A linear map of patch tokens.

    Attributes:
        weight: (D, C) float32.
        bias: (C,) float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """(..., D) → (..., C) logits."""
        return tokens @ self.weight + self.bias


@dataclass(frozen=True)
class Versions:
    """All versions of some images, as a frozen model sees them: version by version, and in it
    image by image.

    Attributes:
        tokens: (8 n, N, D) float32, patch tokens after the final norm.
        masks: (8 n, H, W) uint8.
        quarters: (8 n, N) int64 in [0, 4 n): 4 times the image, and the quarter of it that the
            patch is of.
    """

    tokens: Tensor
    masks: Tensor
    quarters: Tensor


def version(images: Tensor, number: int) -> Tensor:
    """(..., S, S) → the same, turned and mirrored; ``number`` in [0, VERSIONS), 0 for as it is."""
    turned = images.rot90(number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


@torch.no_grad()
def patch_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 → (n, N, D) float32, the frozen model's patch tokens after the final norm.

    Raises:
        ShapeError: images of another size than the model's.
    """
    check_size(backbone, images)
    nothing = EXPRES(torch.zeros(0, backbone.width), {}).to(backbone.device)
    parts = [
        nothing.encoded(backbone.tokens(x), backbone)[0]
        for x in images.to(backbone.device).split(BATCH)
    ]
    return torch.cat(parts)


def check_size(backbone: Backbone, images: Tensor) -> None:
    """Refuse images whose patches the model does not know the places of.

    Raises:
        ShapeError: images of another size than the model's.
    """
    size = (backbone.input_size, backbone.input_size)
    if tuple(images.shape[-2:]) != size:
        raise ShapeError(
            f"segmentation: got images of {tuple(images.shape[-2:])}, expected {size}; resize them"
        )


def versions(backbone: Backbone, images: Tensor, masks: Tensor) -> Versions:
    """Let the frozen model see all versions of (n, 3, H, W) uint8 images with (n, H, W) masks."""
    tokens = torch.cat([patch_tokens(backbone, version(images, v)) for v in range(VERSIONS)])
    side = math.isqrt(tokens.shape[1])
    half = (torch.arange(side) >= side / 2).long()
    quarters = 2 * half[:, None] + half + 4 * torch.arange(len(images))[:, None, None]
    turned = [[version(x, v) for v in range(VERSIONS)] for x in (masks, quarters)]
    return Versions(tokens, torch.cat(turned[0]), torch.cat(turned[1]).flatten(1))


def patch_targets(masks: Tensor, patch: int, classes: int) -> Tensor:
    """(n, H, W) masks → (n, N) int64: the class that most of a patch's pixels have, ``IGNORED``
    where most are.
    """
    shown = torch.stack([masks == c for c in (*range(classes), IGNORED)], dim=1).float()
    most = F.avg_pool2d(shown, patch).flatten(2).argmax(1)
    return torch.where(most == classes, IGNORED, most)


def enlarged(scores: Tensor, size: int) -> Tensor:
    """(n, N, C) scores of patches → (n, C, size, size), bilinear."""
    side = math.isqrt(scores.shape[1])
    grid = scores.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)


def pixel_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of enlarged (n, N, C) patch scores with (n, H, W) masks, in nats per pixel that
    counts.
    """
    return F.cross_entropy(
        enlarged(scores, masks.shape[-1]), masks.to(scores.device).long(), ignore_index=IGNORED
    )


def fit_linear(seen: Versions, patch: int, classes: int) -> LinearHead:
    """Fit multinomial logistic regression of patches' classes on standardised tokens.

    The L2 strength is chosen by cross-validation. No fold parts an image's versions, nor, where
    every class is shown by two images or more, an image; where one is not, quarters of images
    are held out.

    Args:
        seen: the images to learn from.
        patch: side of a patch, in pixels.
        classes: C, background included.
    """
    rows = len(seen.masks) // VERSIONS * TURNED
    targets = patch_targets(seen.masks[:rows], patch, classes)
    counts = targets != IGNORED
    y, group = (t[counts].cpu().numpy() for t in (targets, seen.quarters[:rows]))
    images = group // 4
    once = any(len(np.unique(images[y == c])) < 2 for c in range(classes))
    x = seen.tokens[:rows].cpu()[counts.cpu()].double().numpy()
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    fit = logistic_regression_cv((x - mean) / scale, y, classes, groups=group if once else images)
    weight = fit.weight / scale[:, None]
    return LinearHead(_tensor(weight, seen.tokens), _tensor(fit.bias - mean @ weight, seen.tokens))


def _tensor(array: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like)
