"""Label mappings by counting how often the endpoint returns a source label for a class.

A source label is a class that the endpoint returns. Every public function takes probabilities p,
(n, S) float64, of the S source labels for n images, and labels, (n,) int64 in [0, C), of the C task
classes. It returns non-negative weights, (S, C) float64: the evidence of each source label for each
class. A class without examples keeps a small prior. Only :func:`one_to_one` needs SciPy.
"""

from __future__ import annotations

import numpy as np

from pgn_client.arrays import Booleans, Floats, Integers
from pgn_client.errors import MissingDependencyError

SMOOTHING = 1.0  # λ of BLM and BLM+: initial mass of each source label that belongs to no class
TIE_BREAK = 1e-3
"""Weight of a class's mean probability in :func:`one_to_one`, relative to one example.

With fewer than 1,000 classes, all mean probabilities together weigh less than one example, so they
decide between equal counts only.
"""


def one_to_one(p: Floats, labels: Integers, C: int) -> Floats:
    """Return weights, (S, C), that assign a different endpoint label (of S) to each of C classes.

    The assignment maximizes the number of examples whose most likely endpoint label is assigned to
    their class. Fitted once it is FLM ("frequent label mapping"); fitted again as the prompt
    changes it is ILM ("iterative label mapping").

    Raises:
        MissingDependencyError: SciPy is not installed.

    Reference: Chen et al., "Understanding and Improving Visual Prompting: A Label-Mapping
    Perspective", CVPR 2023, arXiv 2211.11635. Deviation: the released code assigns greedily; the
    Hungarian method finds the best assignment. Where counts tie, the mean probability decides. A
    class without examples or without an endpoint label of its own gets a small uniform column.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependencyError("a one-to-one label mapping", "train") from error

    is_class = np.eye(C)[labels]
    counts = np.eye(p.shape[1])[p.argmax(axis=1)].T @ is_class
    share = (p.T @ is_class) / np.maximum(is_class.sum(axis=0), 1)
    s, t = linear_sum_assignment(counts + TIE_BREAK * share, maximize=True)

    # The assignment gives a label also to a class without examples, where it would mean nothing.
    weight = np.zeros_like(counts)
    weight[s, t] = is_class.sum(axis=0)[t] > 0
    return np.where(weight.any(axis=0), weight, _prior(p, C))


def blm(p: Floats, labels: Integers, C: int) -> Floats:
    """Return the weights of BLM, Bayesian-guided label mapping: (S endpoint labels, C classes).

    N[s,t] = number of examples of class t whose most likely label is s; the rest is the same as in
    :func:`blm_plus`.

    Reference: Cai et al., "Bayesian-guided Label Mapping for Visual Reprogramming", NeurIPS 2024,
    arXiv 2410.24018.
    """
    return _posterior(np.eye(p.shape[1])[p.argmax(axis=1)], labels, C)


def blm_plus(p: Floats, labels: Integers, C: int) -> Floats:
    """Return the weights of BLM+, BLM with probabilities: (S endpoint labels, C classes).

    N[s,t] = Σ over examples i of class t of p_s(x_i)·1[s in top-k of i], k = max(1, ⌊0.15·C⌋);
    P(t|s) = N[s,t] / (Σ_t' N[s,t'] + λ) with λ = ``SMOOTHING``; ω[s,t] = P(t|s) / Σ_s' P(t|s').
    Columns of classes with examples sum to 1.

    Reference: Cai et al., NeurIPS 2024, arXiv 2410.24018. Deviations: k is at least 1 and at most
    S. Labels that tie across the k-th place are all left out: the labels that a top-m answer does
    not return share one value, so k is never larger than the number of returned labels. A class
    without examples, where the released code divides by zero, gets a uniform column that sums to
    C·π_t with its smoothed prior π_t = 1/(n + C).
    """
    # Whole numbers, because 0.15 is not exact in binary.
    k = min(p.shape[1], max(1, 15 * C // 100))
    return _posterior(p * _top(p, k), labels, C)


def _posterior(mass: Floats, labels: Integers, C: int) -> Floats:
    """Return the weights ω of :func:`blm_plus`, (S, C), for each example's label mass, (n, S)."""
    by_class = mass.T @ np.eye(C)[labels]  # (S, C)
    posterior = by_class / (by_class.sum(axis=1, keepdims=True) + SMOOTHING)
    total = posterior.sum(axis=0)
    normalized = posterior / np.where(total > 0, total, 1.0)
    return np.where(total > 0, normalized, _prior(mass, C))


def _prior(examples: Floats, C: int) -> Floats:
    """Return weights, (S, C), for classes without examples: one small constant everywhere."""
    n, S = examples.shape
    return np.full((S, C), C / (n + C) / S)


def _top(p: Floats, k: int) -> Booleans:
    """Return a mask (n, S) of the k largest values of each row.

    Values that tie across the k-th place are left out, but the largest value of a row is always in.
    """
    S = p.shape[1]
    kth = np.partition(p, S - k, axis=1)[:, S - k, None]
    fits = (p >= kth).sum(axis=1, keepdims=True) == k
    # NumPy types the expression as Any; asarray changes nothing but the type.
    return np.asarray((p > kth) | (fits & (p == kth)) | (p == p.max(axis=1, keepdims=True)))
