"""Mean intersection over union (IoU) of predicted and true segmentation masks."""

from __future__ import annotations

import torch
from torch import Tensor

from pgn_client.errors import ShapeError

IGNORED = 255
"""Value of mask pixels that are left out of training and measurement."""


def mean_iou(predicted: Tensor, masks: Tensor, classes: int) -> float:
    """Return the intersection over union (IoU) of predicted and true masks, averaged over classes.

    For each class, intersection and union are summed over all images before the division. A class
    that is neither predicted nor true in any pixel is left out of the mean.

    Args:
        predicted: Predicted classes, (n, H, W) integers in [0, classes).
        masks: True classes, (n, H, W) integers in [0, classes) or ``IGNORED``.
        classes: Number of classes, the background included.

    Returns:
        Mean IoU in [0, 1].

    Raises:
        ShapeError: The shapes differ, or all pixels are ignored.
    """
    if predicted.shape != masks.shape:
        raise ShapeError(
            f"mean IoU: got predictions {tuple(predicted.shape)}, expected {tuple(masks.shape)}"
        )
    counts = masks != IGNORED
    if not counts.any():
        raise ShapeError(
            "mean IoU: got no pixel that counts, expected some; leave out images whose pixels are "
            "all ignored"
        )

    predicted_classes = predicted[counts].long()
    true_classes = masks[counts].long()
    pairs = torch.bincount(true_classes * classes + predicted_classes, minlength=classes**2)
    confusion = pairs.view(classes, classes).double()

    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return float((intersection[union > 0] / union[union > 0]).mean())
