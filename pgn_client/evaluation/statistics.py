"""Confidence intervals and tests for accuracies and their differences on a test set.

Importing needs NumPy only; McNemar's test needs SciPy, which the extra ``[train]`` installs. All
intervals are at 95 %. Comparisons are *paired*: both methods classify the same images in the same
order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pgn_client.arrays import Booleans, Floats
from pgn_client.errors import ConfigurationError, MissingDependencyError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def accuracy_interval(correct: Booleans | Floats) -> tuple[float, float, float]:
    """Return the accuracy with its 95 % Wilson score interval.

    Args:
        correct: Whether each image is right, (n,) bool, n >= 1. Floats in [0, 1] are means over
            seeds; the interval is then a little too wide.

    Returns:
        (accuracy, low, high), each in [0, 1].

    Raises:
        ShapeError: ``correct`` is empty, or has other than one dimension.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", JASA
    1927.
    """
    _check_row(correct)
    n = len(correct)
    p = float(np.mean(correct))

    # SciPy has this interval too, as binomtest(k, n).proportion_ci(method="wilson"). It accepts
    # whole counts k only, but means over seeds are fractions.
    center = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n)) / (1 + Z_95**2 / n)

    # At p = 0 and p = 1 one end of the interval equals p; rounding errors would move it off p.
    low = min(p, max(0.0, center - half))
    high = max(p, min(1.0, center + half))
    return p, low, high


def paired_bootstrap(
    correct_a: Booleans, correct_b: Booleans, *, seed: int, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images, with its 95 % percentile
    bootstrap interval.

    Images are drawn with replacement. The difference on one image is 1, -1 or 0. Drawing how often
    each value occurs, from a multinomial distribution, is equivalent, and its cost does not grow
    with n.

    Args:
        correct_a: Whether method a is right on each image, (n,) bool, n >= 1.
        correct_b: Whether method b is right on the same images, (n,) bool.
        seed: Seed of the draws.
        resamples: Number of draws, at least 1.

    Returns:
        (difference a - b, low, high), each in [-1, 1].

    Raises:
        ShapeError: The arrays are empty, or their lengths differ.
        ConfigurationError: ``resamples`` is below 1.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    only_a, only_b = discordant(correct_a, correct_b)
    _check_resamples(resamples)
    n = len(correct_a)
    draws = _resampled(only_a, only_b, n, np.random.default_rng(seed), resamples)
    low, high = np.quantile(draws, [0.025, 0.975])
    return (only_a - only_b) / n, float(low), float(high)


def pooled_bootstrap(
    differences: Sequence[Floats], *, seed: int, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Return the mean difference of two accuracies over several runs, with its 95 % percentile
    bootstrap interval.

    A run is one image set. Every run has the same weight, however many images it has. Images are
    drawn with replacement within each run, and independently between runs. The runs stay fixed: the
    interval holds for *these* sets and other images of the same kind, not for sets in general.
    Several seeds on the same images are one run: average them image by image first, or the interval
    is too narrow.

    Args:
        differences: One array for each run i, (n_i,) in [-1, 1], n_i >= 1 images: 1 if method a is
            right, else 0, minus the same for method b; averaged over seeds. Without method b, in
            [0, 1], the result is a mean accuracy and its interval.
        seed: Seed of the draws.
        resamples: Number of draws, at least 1.

    Returns:
        (mean difference a - b, low, high), each in [-1, 1].

    Raises:
        ShapeError: There are no runs, or a run is empty or has other than one dimension.
        ConfigurationError: ``resamples`` is below 1, or a difference is outside [-1, 1].

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, chapters 8 and 13.
    """
    _check_resamples(resamples)
    if not len(differences):
        raise ShapeError("pooled bootstrap: got no runs, expected at least one")
    rng = np.random.default_rng(seed)
    mean = 0.0
    draws = np.zeros(resamples)
    for row in differences:
        _check_row(row)
        # Written so that NaN is refused too.
        if not (np.abs(row) <= 1).all():
            raise ConfigurationError(
                "pooled bootstrap: got a difference outside [-1, 1], expected differences of two "
                "accuracies"
            )
        # There are few distinct values. Drawing how often each occurs is the same experiment as
        # drawing images, and faster.
        values, counts = np.unique(row, return_counts=True)
        mean += float(np.mean(row))
        draws += rng.multinomial(len(row), counts / len(row), size=resamples) @ values / len(row)
    low, high = np.quantile(draws / len(differences), [0.025, 0.975])
    return mean / len(differences), float(low), float(high)


def discordant(correct_a: Booleans, correct_b: Booleans) -> tuple[int, int]:
    """Return the number of images that only method a gets right, and that only method b gets right.

    Args:
        correct_a: Whether method a is right on each image, (n,) bool, n >= 1.
        correct_b: Whether method b is right on the same images, (n,) bool.

    Raises:
        ShapeError: The arrays are empty, or their lengths differ.
    """
    _check_row(correct_a)
    if correct_a.shape != correct_b.shape:
        raise ShapeError(
            f"paired comparison: got arrays of shapes {correct_a.shape} and {correct_b.shape}, "
            "expected the same images in both"
        )
    a = np.asarray(correct_a, dtype=bool)
    b = np.asarray(correct_b, dtype=bool)
    return int((a & ~b).sum()), int((b & ~a).sum())


def mcnemar(correct_a: Booleans, correct_b: Booleans) -> float:
    """Return the two-sided p-value of the exact McNemar test; its null hypothesis is that both
    methods are right equally often.

    With b and c images that only one method gets right, p = min(1, 2·P[X <= min(b, c)]), X ~
    Binomial(b + c, 1/2); 1 where the methods never differ.

    Args:
        correct_a: Whether method a is right on each image, (n,) bool, n >= 1.
        correct_b: Whether method b is right on the same images, (n,) bool.

    Raises:
        MissingDependencyError: SciPy is not installed.
        ShapeError: The arrays are empty, or their lengths differ.

    Reference: McNemar, "Note on the sampling error of the difference between correlated
    proportions", 1947.
    """
    only_a, only_b = discordant(correct_a, correct_b)
    if only_a + only_b == 0:
        return 1.0  # binomtest raises an error for zero trials.
    # Imported here, because results can be loaded and shown without SciPy.
    try:
        from scipy.stats import binomtest
    except ImportError as error:
        raise MissingDependencyError("McNemar's test", "train") from error
    return float(binomtest(min(only_a, only_b), only_a + only_b, 0.5).pvalue)


def _resampled(
    only_a: int, only_b: int, n: int, rng: np.random.Generator, resamples: int
) -> Floats:
    """Draw n images with replacement, ``resamples`` times; return the difference of two accuracies
    in each draw, (resamples,).
    """
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    draws = rng.multinomial(n, shares, size=resamples)  # (resamples, 3)
    return np.asarray((draws[:, 0] - draws[:, 1]) / n)


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ConfigurationError(f"bootstrap: got resamples={resamples}, expected at least 1")


def _check_row(correct: NDArray[Any]) -> None:
    if correct.ndim != 1 or not len(correct):
        raise ShapeError(
            f"accuracy: got an array of shape {correct.shape}, expected (n,) with n >= 1"
        )
