"""Label mappings by counting: how often a source label is answered where a class is true. NumPy;
scipy for one-to-one.

Every function takes p (n, S) float64 probabilities and labels (n,) int64 in [0, C), and returns (S,
C) float64, non-negative: how much each source label speaks for each class. A class without examples
is never lost: it keeps a small prior.
"""

from __future__ import annotations

import numpy as np

from pgn_client.arrays import Booleans, Floats, Integers
from pgn_client.errors import MissingDependencyError

SMOOTHING = 1.0  # λ of BLM and BLM+: mass of "no class" that every source label starts with
TIE_BREAK = 1e-3  # of one_to_one: what a class's mean probability counts beside whole examples


def one_to_one(p: Floats, labels: Integers, C: int) -> Floats:
    """Give each class a source label of its own: the assignment with the most examples whose
    likeliest label it is.

    Fitted once it is FLM ("frequent label mapping"), fitted anew as the prompt changes ILM
    ("iterative"). The released code assigns greedily; the Hungarian method finds the best
    assignment.

    Raises:
        MissingDependencyError: scipy is not installed.

    Reference: Chen et al., "Understanding and Improving Visual Prompting: A Label-Mapping
    Perspective", CVPR 2023, arXiv 2211.11635. Deviation: optimal instead of greedy. Where counts
    tie the mean probability decides. Classes that are left over, without examples or because there
    are more classes than source labels, have a small uniform column.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependencyError("a one-to-one label mapping", "train") from error
    is_class = np.eye(C)[labels]
    counts = np.eye(p.shape[1])[p.argmax(axis=1)].T @ is_class
    share = (p.T @ is_class) / np.maximum(is_class.sum(axis=0), 1)
    s, t = linear_sum_assignment(counts + TIE_BREAK * share, maximize=True)
    weight = np.zeros_like(counts)
    weight[s, t] = is_class.sum(axis=0)[t] > 0
    return np.asarray(np.where(weight.any(axis=0), weight, _prior(p, C)))


def blm(p: Floats, labels: Integers, C: int) -> Floats:
    """Bayesian-guided label mapping: from counts of the likeliest labels.

    N[s,t] = number of examples of class t whose likeliest label is s; the rest as in
    :func:`blm_plus`.

    Reference: Cai et al., "Bayesian-guided Label Mapping for Visual Reprogramming", NeurIPS 2024,
    arXiv 2410.24018.
    """
    return _posterior(np.eye(p.shape[1])[p.argmax(axis=1)], labels, C)


def blm_plus(p: Floats, labels: Integers, C: int) -> Floats:
    """BLM+: from the probabilities of the top labels.

    N[s,t] = Σ over examples i of class t of p_s(x_i)·1[s in top-k of i], k = max(1, ⌊0.15·C⌋);
    P(t|s) = N[s,t] / (Σ_t' N[s,t'] + λ) with λ = ``SMOOTHING``; ω[s,t] = P(t|s) / Σ_s' P(t|s').
    Columns of classes with examples sum to 1.

    Reference: as of :func:`blm`. Deviation: k is at least 1 and at most S; labels that tie across
    the k-th place are all left out (those that a top-m answer did not return share one value, so k
    is clamped to what was returned). A class without examples, where the released code divides by
    zero, gets a uniform column that sums to C·π_t with its smoothed prior π_t = 1/(n + C).
    """
    return _posterior(p * _top(p, min(p.shape[1], max(1, 15 * C // 100))), labels, C)


def _posterior(mass: Floats, labels: Integers, C: int) -> Floats:
    """(n, S) mass of each example → ω."""
    by_class = mass.T @ np.eye(C)[labels]  # (S, C)
    posterior = by_class / (by_class.sum(axis=1, keepdims=True) + SMOOTHING)
    total = posterior.sum(axis=0)
    return np.asarray(
        np.where(total > 0, posterior / np.where(total > 0, total, 1.0), _prior(mass, C))
    )


def _prior(examples: Floats, C: int) -> Floats:
    n, S = examples.shape
    return np.full((S, C), C / (n + C) / S)


def _top(p: Floats, k: int) -> Booleans:
    """Return (n, S) bool: the k largest of each row, without a tie that would not fit, but always
    the best.
    """
    S = p.shape[1]
    kth = np.partition(p, S - k, axis=1)[:, S - k, None]
    fits = (p >= kth).sum(axis=1, keepdims=True) == k
    return np.asarray((p > kth) | (fits & (p == kth)) | (p == p.max(axis=1, keepdims=True)))
