"""The linear baseline: a linear map from a frozen model's patch tokens to classes.

The training of prompts starts from it.
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
"""Number of images in one forward pass."""
VERSIONS = 8
"""Number of versions of a square image: rotated by 0, 90, 180 or 270 degrees, mirrored or not."""
TURNED = 4
"""Number of versions that logistic regression is fitted to, none of them mirrored. That takes half
the time and is nearly as good (see ``benchmarks/LOG.md``).
"""


@dataclass(frozen=True)
class LinearHead:
    """A linear map from patch tokens to class logits.

    Attributes:
        weight: Weight, (D, C) float32.
        bias: Bias, (C,) float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., D) to logits (..., C)."""
        return tokens @ self.weight + self.bias


@dataclass(frozen=True)
class Versions:
    """Patch tokens and masks of all versions of n images.

    The first n rows are version 0 of every image, the next n rows version 1, and so on.

    Attributes:
        tokens: Patch tokens after the final norm, (8 n, N, D) float32.
        masks: Masks, (8 n, H, W) uint8.
        quarters: Quarter of an image that each patch belongs to, (8 n, N) int64 in [0, 4 n): 4
            times the image's number, plus 0 to 3 for the quarter.
    """

    tokens: Tensor
    masks: Tensor
    quarters: Tensor


def version(images: Tensor, number: int) -> Tensor:
    """Return a version of square images (..., S, S), rotated and mirrored.

    Args:
        images: Images or masks, (..., S, S).
        number: Number of the version in [0, VERSIONS); 0 changes nothing, 4 and above are mirrored.
    """
    turned = images.rot90(number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


@torch.no_grad()
def patch_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the frozen model's patch tokens after the final norm, (n, N, D) float32.

    Args:
        backbone: The frozen model.
        images: Images, (n, 3, H, W) uint8.

    Raises:
        ShapeError: The images do not have the model's input size.
    """
    check_size(backbone, images)

    # EXPRES with no prompts is the frozen model's forward pass up to the patch tokens.
    no_prompts = EXPRES(torch.zeros(0, backbone.width), {}).to(backbone.device)
    parts = []
    for batch in images.to(backbone.device).split(BATCH):
        patches, _ = no_prompts.encoded(backbone.tokens(batch), backbone)
        parts.append(patches)
    return torch.cat(parts)


def check_size(backbone: Backbone, images: Tensor) -> None:
    """Refuse images of another size: the model has position embeddings for its input size only.

    Raises:
        ShapeError: The images do not have the model's input size.
    """
    size = (backbone.input_size, backbone.input_size)
    if tuple(images.shape[-2:]) != size:
        raise ShapeError(
            f"segmentation: got images of {tuple(images.shape[-2:])}, expected {size}; resize them"
        )


def versions(backbone: Backbone, images: Tensor, masks: Tensor) -> Versions:
    """Compute the frozen model's patch tokens for all versions of the images.

    Args:
        backbone: The frozen model.
        images: Images, (n, 3, H, W) uint8.
        masks: Masks of the images, (n, H, W) uint8.

    Raises:
        ShapeError: The images do not have the model's input size.
    """
    tokens = torch.cat([patch_tokens(backbone, version(images, v)) for v in range(VERSIONS)])

    # Quarters are numbered on the grid of patches, then rotated and mirrored like the masks.
    side = math.isqrt(tokens.shape[1])
    half = (torch.arange(side) >= side / 2).long()
    quarters = 2 * half[:, None] + half + 4 * torch.arange(len(images))[:, None, None]

    all_masks = torch.cat([version(masks, v) for v in range(VERSIONS)])
    all_quarters = torch.cat([version(quarters, v) for v in range(VERSIONS)])
    return Versions(tokens, all_masks, all_quarters.flatten(1))


def patch_targets(masks: Tensor, patch: int, classes: int) -> Tensor:
    """Return the most frequent value in each patch of (n, H, W) masks: (n, N) int64.

    Args:
        masks: Masks, (n, H, W) uint8 in [0, classes) or ``IGNORED``.
        patch: Side of a patch, in pixels.
        classes: Number of classes, the background included.
    """
    # argmax returns the first of equal values: in a tie a class wins over IGNORED, which is last.
    values = (*range(classes), IGNORED)
    one_hot = torch.stack([masks == value for value in values], dim=1).float()
    most_frequent = F.avg_pool2d(one_hot, patch).flatten(2).argmax(1)
    return torch.where(most_frequent == classes, IGNORED, most_frequent)


def enlarged(scores: Tensor, size: int) -> Tensor:
    """Enlarge (n, N, C) scores of patches bilinearly to (n, C, size, size) scores of pixels."""
    side = math.isqrt(scores.shape[1])
    grid = scores.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)


def pixel_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Return the cross-entropy of enlarged patch scores and masks, in nats per pixel.

    Args:
        scores: Scores of patches, (n, N, C).
        masks: Masks, (n, H, W) uint8; pixels with ``IGNORED`` do not count.
    """
    return F.cross_entropy(
        enlarged(scores, masks.shape[-1]), masks.to(scores.device).long(), ignore_index=IGNORED
    )


def fit_linear(seen: Versions, patch: int, classes: int) -> LinearHead:
    """Fit multinomial logistic regression from standardized patch tokens to the patches' classes.

    Cross-validation chooses the L2 strength. All versions of an image are in the same fold. If some
    class is shown by one image only, folds hold out quarters of images instead, again with all
    their versions.

    Args:
        seen: Images to fit to.
        patch: Side of a patch, in pixels.
        classes: Number C of classes, the background included.
    """
    # The first versions are the rotated ones; they are followed by the mirrored ones.
    rows = len(seen.masks) // VERSIONS * TURNED
    targets = patch_targets(seen.masks[:rows], patch, classes)
    counts = targets != IGNORED
    y = targets[counts].cpu().numpy()
    quarters = seen.quarters[:rows][counts].cpu().numpy()
    images = quarters // 4
    images_per_class = [len(np.unique(images[y == c])) for c in range(classes)]
    groups = quarters if min(images_per_class) < 2 else images

    x = seen.tokens[:rows].cpu()[counts.cpu()].double().numpy()
    mean = x.mean(axis=0)
    # A small term keeps a constant feature from a division by zero.
    scale = x.std(axis=0) + 1e-6
    fit = logistic_regression_cv((x - mean) / scale, y, classes, groups=groups)

    # The head reads raw tokens, so it includes the standardization.
    weight = fit.weight / scale[:, None]
    bias = fit.bias - mean @ weight
    return LinearHead(_tensor(weight, seen.tokens), _tensor(bias, seen.tokens))


def _tensor(array: Floats, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like)
