"""Log-probabilities: normalising, floors, and the log-loss that every choice on validation goes by.
NumPy only.
"""

from __future__ import annotations

import math

import numpy as np

from pgn_client.arrays import Booleans, Floats, Integers

# least probability of a label before the last renormalisation, so that logarithms stay finite
FLOOR = 1e-6


def log_normalised(mass: Floats) -> Floats:
    """Return logs of (n, S) non-negative rows, normalised and floored; a row of zeros is
    uniform.
    """
    total = mass.sum(axis=1, keepdims=True)
    p = np.maximum(mass / np.where(total > 0, total, 1.0), FLOOR)
    return np.asarray(np.log(p / p.sum(axis=1, keepdims=True)))


def log_softmax(logits: Floats) -> Floats:
    """Return (n, C) log-probabilities of logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def log_likelihood(log_p: Floats, labels: Integers) -> Floats:
    """Return (n,) log-probabilities of the right classes, of (n, C) and (n,) class indices.

    None is below log ``FLOOR``, so that one certain mistake does not decide a choice alone.
    """
    return np.asarray(np.maximum(log_p[np.arange(len(labels)), labels], math.log(FLOOR)))


def log_loss(log_p: Floats, labels: Integers) -> float:
    """Return minus the mean of :func:`log_likelihood`: what every choice on validation examples
    goes by, in nats.
    """
    return float(-log_likelihood(log_p, labels).mean())


def right(log_p: Floats, targets: Integers) -> Booleans:
    """(n, C) log-probabilities, (n,) targets → (n,) whether the most likely class is the target."""
    hits: Booleans = log_p.argmax(axis=1) == targets
    return hits
