"""Log-probabilities: normalization, floors, and the log-loss of validation images. NumPy only."""

from __future__ import annotations

import math

import numpy as np

from pgn_client.arrays import Booleans, Floats, Integers

FLOOR = 1e-6
"""Smallest probability of a label before the final normalization; it keeps logarithms finite."""


def log_normalised(mass: Floats) -> Floats:
    """Return the log-probabilities, (n, S), of n rows of non-negative masses, (n, S).

    Each row is normalized, raised to at least ``FLOOR``, and normalized again. A row of zeros
    becomes uniform.
    """
    total = mass.sum(axis=1, keepdims=True)
    p = np.maximum(mass / np.where(total > 0, total, 1.0), FLOOR)
    # NumPy types the logarithm as Any; here and below, asarray changes nothing but the type.
    return np.asarray(np.log(p / p.sum(axis=1, keepdims=True)))


def log_softmax(logits: Floats) -> Floats:
    """Return the log-probabilities (n, C) of logits (n, C)."""
    # The shift keeps exp from overflowing; it cancels in the result.
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def log_likelihood(log_p: Floats, labels: Integers) -> Floats:
    """Return the log-probability of each image's true class.

    Each value is at least log ``FLOOR``, so that a single confident mistake does not decide a
    choice.

    Args:
        log_p: Log-probabilities, (n, C) float64.
        labels: True class indices, (n,) int64 in [0, C).

    Returns:
        Log-probabilities, (n,) float64.
    """
    return np.maximum(log_p[np.arange(len(labels)), labels], math.log(FLOOR))


def log_loss(log_p: Floats, labels: Integers) -> float:
    """Return the mean over n images of minus the log-probability of the true class, in nats.

    Each log-probability is at least log ``FLOOR``. Every choice on validation images minimizes this
    log-loss.
    """
    return float(-log_likelihood(log_p, labels).mean())


def right(log_p: Floats, targets: Integers) -> Booleans:
    """Return a mask (n,) of the images whose most likely class is the true class.

    Args:
        log_p: Log-probabilities, (n, C) float64.
        targets: True class indices, (n,) int64 in [0, C).
    """
    # The annotation is for mypy, to which NumPy's comparison is Any.
    hits: Booleans = log_p.argmax(axis=1) == targets
    return hits
