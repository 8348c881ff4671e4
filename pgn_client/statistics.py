"""How sure a comparison on a test set is, and the weight of the local head. NumPy only.

All intervals are at 95 %. Comparisons are *paired*: both methods answer the same images in the same order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pgn_client.errors import ConfigurationError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]
    Integers = NDArray[np.int64]

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
ALPHAS = tuple(step / 20 for step in range(21))  # 0, 0.05, ..., 1


def accuracy_interval(correct: Bools) -> tuple[float, float, float]:
    """Return accuracy with its 95 % Wilson score interval.

    Args:
        correct: (n,) bool, n >= 1.

    Returns:
        (accuracy, low, high), each in [0, 1].

    Raises:
        ShapeError: not a non-empty row.

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    _check_row(correct)
    n, p = len(correct), float(np.mean(correct))
    centre = (p + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n)) / (1 + Z_95**2 / n)
    # At p = 0 and 1 an end of the interval is p itself, which rounding would miss.
    return p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def paired_bootstrap(
    correct_a: Bools, correct_b: Bools, *, seed: int, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images, with its 95 % percentile bootstrap interval.

    Images are drawn with replacement. The difference of an image is -1, 0 or 1, so drawing the three counts from their
    multinomial distribution is the same experiment, and its cost does not grow with n.

    Args:
        correct_a: (n,) bool, n >= 1.
        correct_b: (n,) bool, the same images.
        seed: of the draws.
        resamples: number of draws, at least 1.

    Returns:
        (difference a - b, low, high), each in [-1, 1].

    Raises:
        ShapeError: rows that are empty or of different lengths.
        ConfigurationError: no resamples.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    n = _check_pair(correct_a, correct_b)
    if resamples < 1:
        raise ConfigurationError(f"paired bootstrap: got resamples={resamples}, expected at least 1")
    only_a, only_b = _discordant(correct_a, correct_b)
    shares = np.array([only_a, only_b, n - only_a - only_b]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)  # (resamples, 3)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975])
    return (only_a - only_b) / n, float(low), float(high)


def mcnemar(correct_a: Bools, correct_b: Bools) -> float:
    """Return the two-sided p-value of the exact McNemar test that two methods are right equally often.

    With b and c images that only one method gets right, p = min(1, 2·P[X <= min(b, c)]), X ~ Binomial(b + c, 1/2);
    1 where the methods never differ.

    Args:
        correct_a: (n,) bool, n >= 1.
        correct_b: (n,) bool, the same images.

    Raises:
        ShapeError: rows that are empty or of different lengths.

    Reference: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    _check_pair(correct_a, correct_b)
    only_a, only_b = _discordant(correct_a, correct_b)
    m = only_a + only_b
    # Logarithms, because 2**m leaves the range of floats at m = 1024; fsum, because the terms span many magnitudes.
    terms = (
        math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) - m * math.log(2)
        for k in range(min(only_a, only_b) + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(term) for term in terms))


def fuse(log_p_endpoint: Floats, log_p_local: Floats, alpha: float) -> Floats:
    """Return (1 - alpha)·log p_endpoint + alpha·log p_local, normalised again: the served score.

    Args:
        log_p_endpoint: (n, C) float64 log-probabilities of the endpoint after the label mapping.
        log_p_local: (n, C) float64 log-probabilities of the local head.
        alpha: in [0, 1]; 0 is the endpoint alone, 1 the local head alone.

    Returns:
        (n, C) float64 log-probabilities.

    Raises:
        ConfigurationError: ``alpha`` outside [0, 1].
        ShapeError: arrays that do not fit.
    """
    if not 0 <= alpha <= 1:
        raise ConfigurationError(f"fusion: got alpha={alpha}, expected a number in [0, 1]")
    if log_p_endpoint.ndim != 2 or log_p_endpoint.shape != log_p_local.shape:
        raise ShapeError(f"fusion: got {log_p_endpoint.shape} and {log_p_local.shape}, expected (n, C) twice")
    # At the ends the other side is left out rather than multiplied by 0: 0 times minus infinity is NaN.
    if alpha in (0, 1):
        mixed = log_p_local if alpha else log_p_endpoint
    else:
        mixed = (1 - alpha) * log_p_endpoint + alpha * log_p_local
    shifted = mixed - mixed.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def best_fusion(log_p_endpoint: Floats, log_p_local: Floats, labels: Integers) -> float:
    """Return the alpha in 0, 0.05, ..., 1 of the best accuracy on these (validation) images.

    Among equal accuracies the lower log-loss wins, among equal log-losses the smaller alpha.

    Args:
        log_p_endpoint: (n, C) float64 log-probabilities, n >= 1.
        log_p_local: (n, C) float64 log-probabilities.
        labels: (n,) int64 in [0, C).

    Raises:
        ShapeError: arrays that do not fit.
    """
    if not len(labels) or labels.shape != log_p_endpoint.shape[:1]:
        raise ShapeError(f"fusion: got labels {labels.shape} and scores {log_p_endpoint.shape}, expected (n,), (n, C)")

    def rank(alpha: float) -> tuple[int, float]:
        log_p = fuse(log_p_endpoint, log_p_local, alpha)
        errors = int((log_p.argmax(axis=1) != labels).sum())
        # Rounded, so that rounding errors do not decide between sides that say the same.
        return errors, round(-float(log_p[np.arange(len(labels)), labels].mean()), 12)

    return min(ALPHAS, key=rank)


def _discordant(correct_a: Bools, correct_b: Bools) -> tuple[int, int]:
    """Return how many images only a, and only b, gets right."""
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    return int((a & ~b).sum()), int((b & ~a).sum())


def _check_pair(correct_a: Bools, correct_b: Bools) -> int:
    _check_row(correct_a)
    if correct_a.shape != correct_b.shape:
        raise ShapeError(f"paired comparison: got {correct_a.shape} and {correct_b.shape}, expected the same images")
    return len(correct_a)


def _check_row(correct: Bools) -> None:
    if correct.ndim != 1 or not len(correct):
        raise ShapeError(f"accuracy: got correct {correct.shape}, expected (n,) with n >= 1")
