"""Calibration and per-class metrics. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgn_client.arrays import Floats, Integers
from pgn_client.errors import ShapeError

BINS = 15
"""Number of confidence bins of the calibration error, of equal width over [0, 1].

Guo et al. and most papers since use bins of equal width, so the errors are comparable. Bins with
equal numbers of images would give a less noisy estimate.
"""


@dataclass(frozen=True)
class Bin:
    """Calibration bin: images whose predictions have about the same confidence.

    Attributes:
        count: Number of images, at least 1.
        confidence: Mean probability of the predicted class, in [0, 1].
        accuracy: Share of right predictions, in [0, 1].
    """

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class.

    Attributes:
        name: Name of the class.
        support: Number of images of the class.
        precision: Share of right predictions among the images predicted as this class; ``None`` if
            no image is predicted as this class.
        recall: Share of right predictions among the images of this class; ``None`` if no image is
            of this class.
        f1: Harmonic mean of precision and recall, 2·hits / (predicted + support); ``None`` if no
            image is predicted as this class or belongs to it.
    """

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


def reliability(log_p: Floats, labels: Integers) -> list[Bin]:
    """Sort predictions into 15 bins by confidence; return accuracy and mean confidence of each bin.

    Bin m holds confidences in ((m - 1)/15, m/15]. Bins are in ascending order, without empty ones.

    Args:
        log_p: Log-probabilities, (n, C) float64, n >= 1.
        labels: True class indices, (n,) int64 in [0, C).

    Raises:
        ShapeError: The shapes of the two arrays do not fit.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599.
    """
    _check(log_p, labels)
    # The exponential of a rounded log-probability can exceed 1 by a rounding error.
    confidence = np.minimum(np.exp(log_p.max(axis=1)), 1.0)
    right = log_p.argmax(axis=1) == labels
    # Inner edges alone: otherwise confidence 0 would fall outside the first bin.
    bin_of = np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)
    masks = (bin_of == m for m in range(BINS))
    return [
        Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean()))
        for m in masks
        if m.any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error (ECE), in [0, 1]: the mean of |accuracy - confidence|
    over bins, weighted by their numbers of images.

    Args:
        bins: Bins of :func:`reliability`.
    """
    images = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / images


def confusion(log_p: Floats, labels: Integers) -> Integers:
    """Return the confusion matrix, (C, C) int64: true classes in rows, predicted ones in columns.

    Args:
        log_p: Log-probabilities, (n, C) float64, n >= 1.
        labels: True class indices, (n,) int64 in [0, C).

    Raises:
        ShapeError: The shapes of the two arrays do not fit.
    """
    _check(log_p, labels)
    counts = np.zeros((log_p.shape[1],) * 2, dtype=np.int64)
    # `counts[...] += 1` would count a pair of classes once, however often it occurs.
    np.add.at(counts, (labels, log_p.argmax(axis=1)), 1)
    return counts


def by_class(counts: Integers, classes: Sequence[str]) -> list[ClassScore]:
    """Return precision, recall and F1 of each class, in the order of ``classes``.

    Args:
        counts: Confusion matrix of :func:`confusion`, (C, C).
        classes: Names of the C classes.
    """
    hits = counts.diagonal().tolist()
    predicted = counts.sum(axis=0).tolist()
    support = counts.sum(axis=1).tolist()
    return [
        ClassScore(name, s, _share(h, p), _share(h, s), _share(2 * h, p + s))
        for name, h, p, s in zip(classes, hits, predicted, support, strict=True)
    ]


def _share(part: int, total: int) -> float | None:
    return part / total if total else None


def _check(log_p: Floats, labels: Integers) -> None:
    if log_p.ndim != 2 or not len(labels) or labels.shape != log_p.shape[:1]:
        raise ShapeError(
            f"metrics: got labels of shape {labels.shape} and scores of shape {log_p.shape}, "
            "expected (n,) and (n, C) with n >= 1"
        )
