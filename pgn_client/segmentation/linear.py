"""The linear baseline of segmentation: a linear map from a frozen model's patch tokens to classes.

The training of EXPRES prompts starts from the same linear map.
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
"""Number of images in one forward pass of the frozen model."""
VERSIONS = 8
"""Number of versions that training makes of a square image.

They are rotations by 0, 90, 180 and 270 degrees, each of them mirrored or not.
"""
TURNED = 4
"""Number of versions of each image that logistic regression is fitted to: the four rotations.

Leaving out the mirrored versions halves the time and is nearly as good (see ``benchmarks/LOG.md``).
"""


@dataclass(frozen=True)
class LinearHead:
    """A linear map from the patch tokens of a vision transformer to class logits.

    Attributes:
        weight: Weight, (D, C) float32, for tokens of width D and C classes.
        bias: Bias, (C,) float32.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return class logits, (..., C), for patch tokens, (..., D)."""
        return tokens @ self.weight + self.bias


@dataclass(frozen=True)
class Versions:
    """Patch tokens and masks of n images, each rotated and mirrored in 8 versions.

    The first n rows are version 0 of every image, the next n rows version 1, and so on.

    Attributes:
        tokens: Patch tokens after the final norm, (8 n, N, D) float32: N patches per image, tokens
            of width D.
        masks: Masks, (8 n, H, W) uint8.
        quarters: Quarter of an image that each patch belongs to, (8 n, N) int64 in [0, 4 n): 4
            times the image's number, plus 0 to 3 for the quarter.
    """

    tokens: Tensor
    masks: Tensor
    quarters: Tensor


def version(images: Tensor, number: int) -> Tensor:
    """Return one of the 8 versions of square images: rotated, and mirrored or not.

    Args:
        images: Images or masks with sides of S pixels, (..., S, S).
        number: Number of the version in [0, VERSIONS); 0 changes nothing, 4 and above are mirrored.
    """
    turned = images.rot90(number % 4, (-2, -1))
    return turned.flip(-1) if number >= 4 else turned


@torch.no_grad()
def patch_tokens(backbone: Backbone, images: Tensor) -> Tensor:
    """Compute the patch tokens of images with a frozen vision transformer, after the final norm.

    Args:
        backbone: The frozen model.
        images: Images, (n, 3, H, W) uint8.

    Returns:
        Patch tokens, (n, N, D) float32: N patches per image, tokens of width D.

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
    """Raise an error if images do not have the model's input size.

    The model has position embeddings for its input size only.

    Raises:
        ShapeError: The images do not have the model's input size.
    """
    size = (backbone.input_size, backbone.input_size)
    if tuple(images.shape[-2:]) != size:
        raise ShapeError(
            f"segmentation: got images of {tuple(images.shape[-2:])}, expected {size}; resize them"
        )


def versions(backbone: Backbone, images: Tensor, masks: Tensor) -> Versions:
    """Rotate and mirror images in 8 versions, and compute the patch tokens of every version.

    Square masks are rotated and mirrored in the same way.

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
    """Return the class of each patch: the most frequent mask value among its pixels.

    Args:
        masks: Masks, (n, H, W) uint8 in [0, classes) or ``IGNORED``.
        patch: Side of a patch, in pixels.
        classes: Number of classes, the background included.

    Returns:
        Classes or ``IGNORED``, (n, N) int64, for N patches per mask.
    """
    # argmax returns the first of equal values: in a tie a class wins over IGNORED, which is last.
    values = (*range(classes), IGNORED)
    one_hot = torch.stack([masks == value for value in values], dim=1).float()
    most_frequent = F.avg_pool2d(one_hot, patch).flatten(2).argmax(1)
    return torch.where(most_frequent == classes, IGNORED, most_frequent)


def enlarged(scores: Tensor, size: int) -> Tensor:
    """Return class scores of pixels, interpolated bilinearly from those of patches.

    Args:
        scores: Scores of C classes for the N patches of each image, (n, N, C).
        size: Side of the square images, in pixels.

    Returns:
        Scores of the pixels, (n, C, size, size).
    """
    side = math.isqrt(scores.shape[1])
    grid = scores.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)


def pixel_loss(scores: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross-entropy per pixel, in nats, of patch scores against masks.

    The scores of the patches are first enlarged to pixels.

    Args:
        scores: Scores of C classes for the N patches of each image, (n, N, C).
        masks: Masks, (n, H, W) uint8; pixels with ``IGNORED`` do not count.
    """
    return F.cross_entropy(
        enlarged(scores, masks.shape[-1]), masks.to(scores.device).long(), ignore_index=IGNORED
    )


def fit_linear(seen: Versions, patch: int, classes: int) -> LinearHead:
    """Fit a linear head, which classifies patch tokens, by multinomial logistic regression.

    Cross-validation chooses the strength of the L2 penalty. All rotated versions of an image are in
    the same fold. If some class is shown by fewer than two images, quarters of images are assigned
    to the folds instead of whole images.

    Args:
        seen: Patch tokens and masks of the training images; the mirrored versions are not used.
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
