"""How well predicted masks overlap with the true ones."""

from __future__ import annotations

import torch
from torch import Tensor

from pgn_client.errors import ShapeError

IGNORED = 255
"""Value of mask pixels that neither train nor count."""


def mean_iou(predicted: Tensor, masks: Tensor, classes: int) -> float:
    """Return the mean over classes of intersection over union, pooled over all images.

    A class that is neither predicted nor there has no union, and is left out of the mean.

    Args:
        predicted: (n, H, W) integers in [0, classes).
        masks: (n, H, W) integers in [0, classes), or ``IGNORED``.
        classes: number of classes, background included.

    Returns:
        In [0, 1].

    Raises:
        ShapeError: shapes that differ, or no pixel that counts.
    """
    if predicted.shape != masks.shape:
        raise ShapeError(
            f"mean IoU: got predictions {tuple(predicted.shape)}, expected {tuple(masks.shape)}"
        )
    counts = masks != IGNORED
    if not counts.any():
        raise ShapeError(
            "mean IoU: got no pixel that counts, expected some; leave images that are ignored out"
        )
    found, true = predicted[counts].long(), masks[counts].long()
    table = (
        torch.bincount(true * classes + found, minlength=classes**2).view(classes, classes).double()
    )
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return float((table.diagonal()[union > 0] / union[union > 0]).mean())
