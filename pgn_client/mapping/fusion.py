"""The local head beside the endpoint: fused scores, and the gate that decides which images are
sent. NumPy only.
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


LEAST = -700.0  # log-probability, near the logarithm of the smallest float
ALPHAS = tuple(step / 20 for step in range(21))  # 0, 0.05, ..., 1


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
    _check_scores("fusion", log_p_endpoint, log_p_local)
    # At the ends the other side has no say, not even where it gives a class no probability at all.
    if alpha in (0, 1):
        return log_softmax(log_p_local if alpha else log_p_endpoint)
    # Between them, where every class had a probability of 0 on one side, minus infinity would leave
    # nothing to rank.
    endpoint, local = np.maximum(log_p_endpoint, LEAST), np.maximum(log_p_local, LEAST)
    return log_softmax((1 - alpha) * endpoint + alpha * local)


def best_fusion(log_p_endpoint: Floats, log_p_local: Floats, labels: Integers) -> float:
    """Return the alpha in 0, 0.05, ..., 1 of the least log-loss on these (validation) images; the
    smaller among equals.

    Not of the best accuracy: on a few hundred images that is a step function of a few images, and
    was tried: it cost up to 2.5 points on others.

    Args:
        log_p_endpoint: (n, C) float64 log-probabilities, n >= 1.
        log_p_local: (n, C) float64 log-probabilities.
        labels: (n,) int64 in [0, C).

    Raises:
        ShapeError: arrays that do not fit.
    """
    if not len(labels) or labels.shape != log_p_endpoint.shape[:1]:
        raise ShapeError(
            f"fusion: got labels {labels.shape} and scores {log_p_endpoint.shape}, "
            "expected (n,), (n, C)"
        )

    # Rounded, so that rounding errors do not decide between sides that say the same.
    return min(
        ALPHAS,
        key=lambda alpha: round(log_loss(fuse(log_p_endpoint, log_p_local, alpha), labels), 12),
    )


@dataclass(frozen=True)
class GatePoint:
    """What one threshold of the gate costs and gives.

    Attributes:
        query_below: the threshold, in [0, 1].
        sent: share of the images that are sent to the endpoint, in [0, 1].
        accuracy: Accuracy over all images, sent or not, in [0, 1].
    """

    query_below: float
    sent: float
    accuracy: float


def gate(log_p_served: Floats, log_p_local: Floats, query_below: float | None) -> Floats:
    """Return the local score of the images of which the local head is at least this sure, the
    served score of the rest.

    The comparison is the client's: an image whose greatest local probability is ``query_below`` or
    more is not sent.

    Args:
        log_p_served: (n, C) float64 log-probabilities of the served score (see `fuse`).
        log_p_local: (n, C) float64 log-probabilities of the local head.
        query_below: in [0, 1]; 0 sends nothing, None sends everything.

    Returns:
        (n, C) float64 log-probabilities.

    Raises:
        ConfigurationError: ``query_below`` outside [0, 1].
        ShapeError: arrays that do not fit.
    """
    _check_scores("gate", log_p_served, log_p_local)
    if query_below is None:
        return log_p_served.copy()
    return np.where(is_confident(log_p_local, query_below)[:, None], log_p_local, log_p_served)


def is_confident(log_p_local: Floats, query_below: float) -> Booleans:
    """Return, for (n, C) log-probabilities of the local head, the (n,) images that it answers
    alone.

    Raises:
        ConfigurationError: ``query_below`` outside [0, 1].
    """
    _check_threshold(query_below)
    return np.asarray(_confidence(log_p_local) >= query_below)


def gate_curve(
    log_p_served: Floats, log_p_local: Floats, labels: Integers, thresholds: Sequence[float]
) -> list[GatePoint]:
    """Return what each threshold of the gate sends, and how often the answers are right.

    Args:
        log_p_served: (n, C) float64 log-probabilities of the served score, n >= 1.
        log_p_local: (n, C) float64 log-probabilities of the local head.
        labels: (n,) int64 in [0, C).
        thresholds: each in [0, 1], in any order.

    Returns:
        One point for each threshold, in the order of ``thresholds``.

    Raises:
        ConfigurationError: a threshold outside [0, 1].
        ShapeError: arrays that do not fit.
    """
    confidence, hits = gate_hits(log_p_served, log_p_local, labels)
    points = []
    for threshold in thresholds:
        _check_threshold(threshold)
        sent = int(np.searchsorted(confidence, threshold))  # those strictly below it
        points.append(
            GatePoint(float(threshold), sent / len(labels), int(hits[sent]) / len(labels))
        )
    return points


def best_gate(log_p_served: Floats, log_p_local: Floats, labels: Integers) -> float | None:
    """Return the threshold that sends the fewest of these (validation) images without loss of
    log-loss.

    The candidates are the distinct confidences of the images, so images of one confidence go the
    same way. Among those whose log-loss is at most that of sending everything, the lowest wins. Not
    of the accuracy: that was tried on two sets, and cost 1.0 point on other images (up to 9),
    log-loss 0.2 (up to 1.5).

    Args:
        log_p_served: (n, C) float64 log-probabilities of the served score, n >= 1.
        log_p_local: (n, C) float64 log-probabilities of the local head.
        labels: (n,) int64 in [0, C).

    Returns:
        ``query_below`` in [0, 1]: 0.0 where the local head alone is as good, so that nothing is
        sent; None where only sending everything is good enough.

    Raises:
        ShapeError: arrays that do not fit.
    """
    _check_scores("gate", log_p_served, log_p_local)
    _check_labels("gate", labels, log_p_served)
    confidence = _confidence(log_p_local)
    order = np.argsort(confidence)
    confidence = confidence[order]
    served, local = (log_likelihood(x, labels)[order] for x in (log_p_served, log_p_local))
    gains = np.concatenate([[0.0], np.cumsum(served - local)])  # of sending the k least sure
    # Sending the k least sure is a threshold only where the next one is surer than they are.
    reachable = np.concatenate([[True], confidence[1:] > confidence[:-1], [True]])
    sent = int(np.argmax(reachable & (gains >= gains[-1] - 1e-9)))
    if sent == len(confidence):
        return None
    return float(confidence[sent]) if sent else 0.0


def gate_hits(
    log_p_served: Floats, log_p_local: Floats, labels: Integers
) -> tuple[Floats, Integers]:
    """Return the confidences (n,), ascending, and how many images are right if the k least sure are
    sent (n + 1,).
    """
    _check_scores("gate", log_p_served, log_p_local)
    _check_labels("gate", labels, log_p_served)
    confidence = _confidence(log_p_local)
    order = np.argsort(confidence)
    local = (log_p_local.argmax(axis=1) == labels)[order].astype(np.int64)
    served = (log_p_served.argmax(axis=1) == labels)[order].astype(np.int64)
    return confidence[order], local.sum() + np.concatenate([[0], np.cumsum(served - local)])


def _confidence(log_p: Floats) -> Floats:
    """Return the greatest probability of each image, (n,) in [0, 1]."""
    # math.exp as in the client: np.exp may differ in the last bit, and a threshold is itself a
    # confidence. A sum of rounded terms can put a probability a hair above 1, which is no
    # threshold; below 1 nothing changes.
    return np.array(
        [min(math.exp(value), 1.0) for value in log_p.max(axis=1).tolist()], dtype=np.float64
    )


def _check_scores(what: str, log_p: Floats, log_p_local: Floats) -> None:
    if log_p.ndim != 2 or log_p.shape != log_p_local.shape:
        raise ShapeError(
            f"{what}: got {log_p.shape} and {log_p_local.shape}, expected (n, C) twice"
        )


def _check_labels(what: str, labels: Integers, log_p: Floats) -> None:
    if not len(labels) or labels.shape != log_p.shape[:1]:
        raise ShapeError(
            f"{what}: got labels {labels.shape} and scores {log_p.shape}, expected (n,), (n, C)"
        )


def _check_threshold(query_below: float) -> None:
    if not 0 <= query_below <= 1:
        raise ConfigurationError(
            f"gate: got query_below={query_below}, expected a number in [0, 1]"
        )
