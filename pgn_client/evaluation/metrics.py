"""Calibration and per-class metrics. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgn_client.arrays import Floats, Integers
from pgn_client.errors import ShapeError

BINS = 15
"""Of equal width, as in Guo et al. and most papers since, so that numbers compare; equal mass would
be steadier.
"""


@dataclass(frozen=True)
class Bin:
    """Images whose answers are about equally sure.

    Attributes:
        count: how many, at least 1.
        confidence: mean of their greatest probabilities, in [0, 1].
        accuracy: share that is right, in [0, 1].
    """

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassScore:
    """How one class fares.

    Attributes:
        name: of the class.
        support: images of it.
        precision: share of the images so answered that are of it; ``None`` where none is so
            answered.
        recall: share of its images that are so answered; ``None`` where there are none.
        f1: harmonic mean of the two, 2·hits / (answered + support); ``None`` where both counts are
            0.
    """

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


def reliability(log_p: Floats, labels: Integers) -> list[Bin]:
    """Return accuracy against confidence in bins ((m - 1)/15, m/15], from the least sure; empty
    ones are left out.

    Args:
        log_p: (n, C) float64 log-probabilities, n >= 1.
        labels: (n,) int64 in [0, C).

    Raises:
        ShapeError: arrays that do not fit.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599.
    """
    _check(log_p, labels)
    confidence = np.minimum(np.exp(log_p.max(axis=1)), 1.0)
    right = log_p.argmax(axis=1) == labels
    number = np.digitize(confidence, np.arange(1, BINS) / BINS, right=True)
    masks = (number == m for m in range(BINS))
    return [
        Bin(int(m.sum()), float(confidence[m].mean()), float(right[m].mean()))
        for m in masks
        if m.any()
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error (ECE) of :func:`reliability`: mean |accuracy -
    confidence|, in [0, 1].
    """
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / sum(b.count for b in bins)


def confusion(log_p: Floats, labels: Integers) -> Integers:
    """Return (C, C) int64: how many images of each class (row) are answered as each class (column).

    Args:
        log_p: (n, C) float64 log-probabilities, n >= 1.
        labels: (n,) int64 in [0, C).

    Raises:
        ShapeError: arrays that do not fit.
    """
    _check(log_p, labels)
    counts = np.zeros((log_p.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (labels, log_p.argmax(axis=1)), 1)
    return counts


def by_class(counts: Integers, classes: Sequence[str]) -> list[ClassScore]:
    """Return the scores of each class, in order, from the (C, C) counts of :func:`confusion` and
    the C names.
    """
    hits, answered, support = (
        x.tolist() for x in (counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1))
    )
    return [
        ClassScore(name, s, _share(h, a), _share(h, s), _share(2 * h, a + s))
        for name, h, a, s in zip(classes, hits, answered, support, strict=True)
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _check(log_p: Floats, labels: Integers) -> None:
    if log_p.ndim != 2 or not len(labels) or labels.shape != log_p.shape[:1]:
        raise ShapeError(
            f"measures: got labels {labels.shape} and scores {log_p.shape}, expected "
            "(n,), (n, C), n >= 1"
        )
