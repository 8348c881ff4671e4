"""Fusion of endpoint and local head, and the gate that chooses the images to send.

The local head is a classifier that runs in the client. The gate classifies an image locally,
without sending it, where the local head is confident enough. Needs NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pgn_client.arrays import Booleans, Floats, Integers
from pgn_client.errors import ConfigurationError, ShapeError
from pgn_client.mapping.probability import log_likelihood, log_loss, log_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence


LEAST = -700.0  # floor of log-probabilities, near the logarithm of the smallest float
ALPHAS = tuple(step / 20 for step in range(21))  # candidates for α: 0, 0.05, ..., 1


def fuse(log_p_endpoint: Floats, log_p_local: Floats, alpha: float) -> Floats:
    """Return (1 - alpha)·log p_endpoint + alpha·log p_local, normalized to log-probabilities.

    This fuses the endpoint with the local head, a classifier that runs in the client.

    Args:
        log_p_endpoint: Log-probabilities of the endpoint after the label mapping, (n, C) float64.
        log_p_local: Log-probabilities of the local head, (n, C) float64.
        alpha: Weight of the local head in [0, 1]: 0 is the endpoint alone, 1 the local head alone.

    Returns:
        Log-probabilities, (n, C) float64.

    Raises:
        ConfigurationError: ``alpha`` is outside [0, 1].
        ShapeError: The shapes of the arrays do not match.
    """
    if not 0 <= alpha <= 1:
        raise ConfigurationError(f"fusion: got alpha={alpha}, expected a number in [0, 1]")
    _check_scores("fusion", log_p_endpoint, log_p_local)

    # At the ends, one side alone decides, and the floor below must not change its scores.
    if alpha in (0, 1):
        return log_softmax(log_p_local if alpha else log_p_endpoint)

    # If one side or the other gives each class a probability of 0, all sums would be minus
    # infinity, and the classes could not be ranked.
    endpoint = np.maximum(log_p_endpoint, LEAST)
    local = np.maximum(log_p_local, LEAST)
    return log_softmax((1 - alpha) * endpoint + alpha * local)


def best_fusion(log_p_endpoint: Floats, log_p_local: Floats, labels: Integers) -> float:
    """Return the fusion weight of the local head with the smallest log-loss on validation images.

    The candidates for alpha (see :func:`fuse`) are 0, 0.05, ..., 1. Among equals the smallest alpha
    wins. Accuracy is not the criterion: with a few hundred images it changes in steps of a few
    images, and choosing by it cost up to 2.5 points on other images.

    Args:
        log_p_endpoint: Log-probabilities of the endpoint, (n, C) float64, n >= 1.
        log_p_local: Log-probabilities of the local head, (n, C) float64.
        labels: Class indices, (n,) int64 in [0, C).

    Raises:
        ShapeError: The shapes of the arrays do not match.
    """
    _check_labels("fusion", labels, log_p_endpoint)

    def loss(alpha: float) -> float:
        # Rounded, so that rounding errors do not decide between values of alpha that are equal.
        return round(log_loss(fuse(log_p_endpoint, log_p_local, alpha), labels), 12)

    return min(ALPHAS, key=loss)


@dataclass(frozen=True)
class GatePoint:
    """Cost and accuracy of one threshold of the gate, which chooses the images to send.

    Attributes:
        query_below: Threshold, in [0, 1]; images whose greatest local probability is lower are
            sent.
        sent: Share of the images that are sent to the endpoint, in [0, 1].
        accuracy: Accuracy over all images, sent or not, in [0, 1].
    """

    query_below: float
    sent: float
    accuracy: float


def gate(log_p_served: Floats, log_p_local: Floats, query_below: float | None) -> Floats:
    """Return local log-probabilities for images that the gate does not send, else the served ones.

    The gate does not send an image to the endpoint if the local head, a classifier that runs in the
    client, gives some class a probability of ``query_below`` or more. The client makes the same
    comparison.

    Args:
        log_p_served: Log-probabilities of the served score (see :func:`fuse`), (n, C) float64.
        log_p_local: Log-probabilities of the local head, (n, C) float64.
        query_below: Threshold in [0, 1]: 0 sends no image, ``None`` sends every image.

    Returns:
        Log-probabilities, (n, C) float64.

    Raises:
        ConfigurationError: ``query_below`` is outside [0, 1].
        ShapeError: The shapes of the arrays do not match.
    """
    _check_scores("gate", log_p_served, log_p_local)
    if query_below is None:
        # A copy, because the other case returns a new array too.
        return log_p_served.copy()
    return np.where(is_confident(log_p_local, query_below)[:, None], log_p_local, log_p_served)


def is_confident(log_p_local: Floats, query_below: float) -> Booleans:
    """Return a mask (n,) of the images that the local head classifies, without the endpoint.

    Args:
        log_p_local: Log-probabilities of the local head, (n, C) float64.
        query_below: Threshold in [0, 1] for the greatest probability of an image; at or above it,
            the image is in the mask.

    Raises:
        ConfigurationError: ``query_below`` is outside [0, 1].
    """
    _check_threshold(query_below)
    return _confidence(log_p_local) >= query_below


def gate_curve(
    log_p_served: Floats, log_p_local: Floats, labels: Integers, thresholds: Sequence[float]
) -> list[GatePoint]:
    """Return the share of images sent to the endpoint and the accuracy, for each gate threshold.

    Args:
        log_p_served: Log-probabilities of the served score, (n, C) float64, n >= 1.
        log_p_local: Log-probabilities of the local head, (n, C) float64.
        labels: Class indices, (n,) int64 in [0, C).
        thresholds: Thresholds in [0, 1], in any order.

    Returns:
        One point for each threshold, in the order of ``thresholds``.

    Raises:
        ConfigurationError: A threshold is outside [0, 1].
        ShapeError: The shapes of the arrays do not match.
    """
    confidence, hits = gate_hits(log_p_served, log_p_local, labels)

    points = []
    for threshold in thresholds:
        _check_threshold(threshold)
        # The number of images with a confidence strictly below the threshold.
        sent = int(np.searchsorted(confidence, threshold))
        points.append(
            GatePoint(float(threshold), sent / len(labels), int(hits[sent]) / len(labels))
        )
    return points


def best_gate(log_p_served: Floats, log_p_local: Floats, labels: Integers) -> float | None:
    """Return the gate threshold that sends the fewest validation images without a higher log-loss.

    The candidates are the distinct confidences of the local head, that is its greatest probability
    for each image, so images with the same confidence are either all sent or all not sent. Among
    the candidates whose log-loss is at most that of sending everything, the lowest wins. Accuracy
    is not the criterion: on two sets, choosing by it cost 1.0 point of accuracy on other images (up
    to 9), and the log-loss rose by 0.2 (up to 1.5).

    Args:
        log_p_served: Log-probabilities of the served score, (n, C) float64, n >= 1.
        log_p_local: Log-probabilities of the local head, (n, C) float64.
        labels: Class indices, (n,) int64 in [0, C).

    Returns:
        ``query_below`` in [0, 1]: 0.0 (send nothing) where the local head alone is as good;
        ``None`` where only sending everything is good enough.

    Raises:
        ShapeError: The shapes of the arrays do not match.
    """
    _check_scores("gate", log_p_served, log_p_local)
    _check_labels("gate", labels, log_p_served)

    confidence = _confidence(log_p_local)
    order = np.argsort(confidence)
    confidence = confidence[order]
    served = log_likelihood(log_p_served, labels)[order]
    local = log_likelihood(log_p_local, labels)[order]

    # gains[k]: gain in log-likelihood from sending the k least confident images.
    gains = np.concatenate([[0.0], np.cumsum(served - local)])
    # A threshold can send exactly k images only if the next image has a higher confidence.
    reachable = np.concatenate([[True], confidence[1:] > confidence[:-1], [True]])
    # The tolerance keeps rounding errors of the sums from rejecting an equal log-loss.
    sent = int(np.argmax(reachable & (gains >= gains[-1] - 1e-9)))
    if sent == len(confidence):
        return None
    return float(confidence[sent]) if sent else 0.0


def gate_hits(
    log_p_served: Floats, log_p_local: Floats, labels: Integers
) -> tuple[Floats, Integers]:
    """Return how many images are classified correctly, for every number of images sent.

    Args:
        log_p_served: Log-probabilities of the served score, (n, C) float64, n >= 1.
        log_p_local: Log-probabilities of the local head, (n, C) float64.
        labels: Class indices, (n,) int64 in [0, C).

    Returns:
        Confidences of the local head, (n,) float64, ascending; and hits, (n + 1,) int64: entry k is
        the number of correct images if the k least confident are sent.

    Raises:
        ShapeError: The shapes of the arrays do not match.
    """
    _check_scores("gate", log_p_served, log_p_local)
    _check_labels("gate", labels, log_p_served)

    confidence = _confidence(log_p_local)
    order = np.argsort(confidence)
    local = (log_p_local.argmax(axis=1) == labels)[order].astype(np.int64)
    served = (log_p_served.argmax(axis=1) == labels)[order].astype(np.int64)
    return confidence[order], local.sum() + np.concatenate([[0], np.cumsum(served - local)])


def _confidence(log_p: Floats) -> Floats:
    """Return the greatest class probability of each image, (n,) float64 in [0, 1]."""
    # The client uses math.exp too. np.exp may differ in the last bit, which matters because a
    # threshold is itself one of the confidences. Rounding can put a probability slightly above 1,
    # which is not a valid threshold, so it is limited to 1.
    confidences = [min(math.exp(value), 1.0) for value in log_p.max(axis=1).tolist()]
    return np.array(confidences, dtype=np.float64)


def _check_scores(what: str, log_p: Floats, log_p_local: Floats) -> None:
    if log_p.ndim != 2 or log_p.shape != log_p_local.shape:
        raise ShapeError(
            f"{what}: got scores {log_p.shape} and {log_p_local.shape}, expected (n, C) for both"
        )


def _check_labels(what: str, labels: Integers, log_p: Floats) -> None:
    if not len(labels) or labels.shape != log_p.shape[:1]:
        raise ShapeError(
            f"{what}: got labels {labels.shape} and scores {log_p.shape}, "
            "expected (n,) and (n, C), n >= 1"
        )


def _check_threshold(query_below: float) -> None:
    if not 0 <= query_below <= 1:
        raise ConfigurationError(
            f"gate: got query_below={query_below}, expected a number in [0, 1]"
        )
