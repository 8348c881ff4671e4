"""Label mapping: from what an endpoint answers (S source labels) to the task's C classes. NumPy only.

An answer becomes a row of S log-probabilities (:func:`log_scores`); a :class:`LabelMapping` turns rows into C
log-probabilities; :func:`fit` chooses among three mappings by cross-validated log-loss:

========  ===========================================  =====================================================
kind      form                                         needs
========  ===========================================  =====================================================
identity  additive: log normalise(exp(x) @ weight)     every task class among the source labels
blm+      additive, weight = ω of Bayesian mapping     labelled answers
linear    log softmax(x @ weight + bias)               labelled answers; L2 chosen by cross-validation
========  ===========================================  =====================================================

The multinomial logistic regression behind ``linear`` is public: it also serves a linear probe on backbone features.

Reference: Cai et al., "Bayesian-guided Label Mapping for Visual Reprogramming" (arXiv 2410.24018), for BLM+.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from pgn_client.errors import CheckpointError, ConfigurationError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pgn_client.types import Answer

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

MappingKind = Literal["identity", "blm+", "linear"]

FLOOR = 1e-6
"""Least probability of a label before the last renormalisation, so that logarithms stay finite."""

SMOOTHING = 1.0
"""λ of BLM+: mass of "no class" that every source label starts with."""


# ---------------------------------------------------------------- answers to features


def vocabulary(answers: Sequence[Answer]) -> tuple[str, ...]:
    """Return the sorted union of all labels in the answers: the S source labels."""
    return tuple(sorted({label for answer in answers for label in answer.labels}))


def log_scores(answers: Sequence[Answer], source: tuple[str, ...], *, strict: bool = True) -> Floats:
    """Turn answers into log-probabilities over the source labels.

    Logits go through a softmax over what was returned; a hard label is one-hot. Labels that appear twice in an answer
    are summed. In an answer that is not complete, the residual mass r = max(0, 1 - sum of what was returned) is spread
    evenly over the labels that were not returned. Every row is then normalised, raised to at least ``FLOOR``,
    normalised again, and logged; so the same model gives the same row whether it sends probabilities or logits.

    Labels outside ``source`` are dropped together with their mass: the row is renormalised over what is left.

    Deviation: no missing label receives more than the smallest probability that was returned, because an answer lists
    the best labels; without this a small vocabulary would lift the missing labels above the best one.

    Args:
        answers: n answers of any kinds.
        source: the S source labels, without repetition.
        strict: whether an answer without a single known label is an error; otherwise its row is uniform.

    Returns:
        (n, S) float64 log-probabilities; each row of ``exp`` sums to 1.

    Raises:
        ConfigurationError: an answer shares no label with ``source``, or has a score that is no finite number.
    """
    index = {label: s for s, label in enumerate(source)}
    rows = np.zeros((len(answers), len(source)))
    for row, answer in zip(rows, answers, strict=True):
        known = [(index[label], i) for i, label in enumerate(answer.labels) if label in index]
        if strict and not known:
            raise _no_known_label(answer, source)
        _fill(row, known, _probabilities(answer))
    return _log_normalised(rows)


def _fill(row: Floats, known: list[tuple[int, int]], p: Floats) -> None:
    """Write one answer's probabilities into its row of S zeros, the residual mass into the labels not returned."""
    places = np.array([s for s, _ in known], dtype=np.int64)
    np.add.at(row, places, p[[i for _, i in known]])  # add: ImageNet has two classes called "crane"
    missing = np.ones(row.size, dtype=bool)
    missing[places] = False
    if missing.any() and p.size:
        row[missing] = min(max(0.0, 1.0 - float(p.sum())) / int(missing.sum()), float(p.min()))


def _probabilities(answer: Answer) -> Floats:
    scores = np.asarray(answer.scores, dtype=np.float64)
    if len(scores) != len(answer.labels) or not np.isfinite(scores).all():
        raise ConfigurationError(
            f"answer: got {len(scores)} scores {answer.scores[:3]} for {len(answer.labels)} labels, "
            "expected one finite number per label; check the endpoint's protocol"
        )
    if answer.kind == "logits":
        scores = np.exp(scores - scores.max(initial=-np.inf))
        return np.asarray(scores / scores.sum())
    return np.ones_like(scores) if answer.kind == "label" else np.maximum(scores, 0.0)


def _no_known_label(answer: Answer, source: tuple[str, ...]) -> ConfigurationError:
    return ConfigurationError(
        f"label mapping: got an answer with labels such as {list(answer.labels[:3])}, expected some of the mapping's "
        f"{len(source)} source labels such as {list(source[:3])}; fit the mapping again for this endpoint and model"
    )


def _log_normalised(mass: Floats) -> Floats:
    """Return (n, S) logs of non-negative rows, normalised and at least about ``FLOOR``; a row of zeros is uniform."""
    total = mass.sum(axis=1, keepdims=True)
    p = np.maximum(mass / np.where(total > 0, total, 1.0), FLOOR)
    return np.asarray(np.log(p / p.sum(axis=1, keepdims=True)))


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


# ---------------------------------------------------------------- the mapping


@dataclass(frozen=True, eq=False)
class LabelMapping:
    """A fitted mapping from source labels to task classes; implements ``types.ScoreMapping``.

    Attributes:
        kind: ``identity``, ``blm+`` or ``linear``.
        source: the S source labels, in the order of the features.
        classes: the C task classes.
        weight: (S, C) float64; non-negative for the additive kinds.
        bias: (C,) float64; zero for the additive kinds.
    """

    kind: MappingKind
    source: tuple[str, ...]
    classes: tuple[str, ...]
    weight: Floats = field(repr=False)
    bias: Floats = field(repr=False)

    def __post_init__(self) -> None:
        _check_kinds((self.kind,))
        S, C = len(self.source), len(self.classes)
        if self.weight.shape != (S, C) or self.bias.shape != (C,):
            raise ShapeError(
                f"label mapping: got weight {self.weight.shape} and bias {self.bias.shape}, expected {(S, C)} and "
                f"{(C,)} for {S} source labels and {C} classes"
            )

    @property
    def additive(self) -> bool:
        """Whether probabilities are added (identity, blm+); otherwise the mapping is linear in log-probabilities."""
        return self.kind != "linear"

    def __call__(self, answers: Sequence[Answer]) -> Floats:
        """Map answers to (n, C) float64 log-probabilities.

        Raises:
            ConfigurationError: an answer shares no label with ``source``.
        """
        return self.log_probs(log_scores(answers, self.source))

    def log_probs(self, features: Floats) -> Floats:
        """Map (n, S) float64 log-probabilities, as of :func:`log_scores`, to (n, C) float64 log-probabilities.

        Additive: log of normalise(exp(x) @ weight), at least about ``FLOOR``. Linear: log softmax(x @ weight + bias).

        Raises:
            ShapeError: not S columns.
        """
        if features.ndim != 2 or features.shape[1] != len(self.source):
            raise ShapeError(f"label mapping: got features {features.shape}, expected (n, {len(self.source)})")
        if self.additive:
            return _log_normalised(np.exp(features) @ self.weight)
        return _log_softmax(features @ self.weight + self.bias)

    def arrays(self) -> dict[str, Floats]:
        """Return the arrays for a checkpoint: ``weight`` (S, C) and ``bias`` (C,), float64, contiguous."""
        return {"weight": np.ascontiguousarray(self.weight), "bias": np.ascontiguousarray(self.bias)}

    def card(self) -> dict[str, Any]:
        """Return what is no array, ready for JSON: ``kind``, ``source`` and ``classes``."""
        return {"kind": self.kind, "source": list(self.source), "classes": list(self.classes)}

    @classmethod
    def from_parts(cls, card: Mapping[str, Any], arrays: Mapping[str, Any]) -> LabelMapping:
        """Rebuild a mapping from :meth:`card` and :meth:`arrays`.

        Raises:
            CheckpointError: a part is missing or does not fit the others.
        """
        try:
            weight, bias = (np.asarray(arrays[name], dtype=np.float64) for name in ("weight", "bias"))
            return cls(card["kind"], tuple(card["source"]), tuple(card["classes"]), weight, bias)
        except (KeyError, TypeError, ValueError) as error:  # ShapeError and ConfigurationError are ValueErrors
            raise CheckpointError(
                f"label mapping in the checkpoint: {error!s}; expected kind, source, classes, weight and bias that fit "
                "each other; save the checkpoint again"
            ) from error


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit` found.

    Attributes:
        mapping: the chosen mapping, fitted on all examples.
        log_loss: cross-validated log-loss in nats per example, of every kind that could be tried.
        l2: strength of the penalty of the linear kind (see :func:`logistic_regression`), where it was tried.
    """

    mapping: LabelMapping
    log_loss: dict[str, float]
    l2: float | None = None


# ---------------------------------------------------------------- fitting


def fit(
    features: Floats,
    labels: Integers,
    source: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    kinds: Sequence[str] = get_args(MappingKind),
    folds: int = 5,
    seed: int = 0,
) -> Fitted:
    """Fit every kind of mapping and keep the one with the least cross-validated log-loss.

    Folds are stratified. A class with one example, or none, is no error: where it is absent from the training part, it
    keeps a small prior probability. The identity needs no fitting, and is tried where every class is a source label.

    Args:
        features: (n, S) float64 log-probabilities, as of :func:`log_scores`; n >= 2.
        labels: (n,) int64 in [0, C).
        source: the S source labels.
        classes: the C >= 2 task classes.
        kinds: which kinds to try; among equals the first wins.
        folds: number of folds, at most n.
        seed: of the assignment to folds.

    Returns:
        The mapping and the log-losses by which it was chosen. Because the L2 strength is chosen by the same log-loss,
        that of ``linear`` is slightly optimistic.

    Raises:
        ConfigurationError: fewer than 2 classes or examples, a score that is not finite, a label out of range, an
            unknown kind, or no kind that is possible.
        ShapeError: features and labels do not fit.
    """
    _check_kinds(kinds)
    S, C = len(source), len(classes)
    _check_examples(features, labels, C)
    if features.shape[1] != S:
        raise ShapeError(f"label mapping: got features {features.shape}, expected {S} columns, one per source label")
    found: dict[str, tuple[float, LabelMapping]] = {}
    l2 = None
    if "identity" in kinds and set(classes) <= set(source):
        mapping = LabelMapping("identity", source, classes, _permutation(source, classes), np.zeros(C))
        found["identity"] = _log_loss(mapping.log_probs(features), labels), mapping
    if "blm+" in kinds:
        found["blm+"] = _fit_blm_plus(features, labels, source, classes, folds, seed)
    if "linear" in kinds:
        # Residual form I + E where the labels are the classes: a strong penalty then means "as it is".
        offset = _permutation(source, classes) if set(source) == set(classes) and S == C else None
        linear = logistic_regression_cv(features, labels, C, folds=folds, seed=seed, offset=offset)
        found["linear"] = linear.log_loss, LabelMapping("linear", source, classes, linear.weight, linear.bias)
        l2 = linear.l2
    if not found:
        absent = sorted(set(classes) - set(source))
        raise ConfigurationError(
            f"label mapping: got kinds {list(kinds)} but classes such as {absent[:3]} are no source labels, expected "
            "all classes among them for identity; allow blm+ or linear"
        )
    best = min((kind for kind in kinds if kind in found), key=lambda kind: found[kind][0])
    return Fitted(found[best][1], {kind: loss for kind, (loss, _) in found.items()}, l2)


def _fit_blm_plus(
    features: Floats, labels: Integers, source: tuple[str, ...], classes: tuple[str, ...], folds: int, seed: int
) -> tuple[float, LabelMapping]:
    C = len(classes)

    def mapping(rows: NDArray[Any]) -> LabelMapping:
        weight = blm_plus(np.exp(features[rows]), labels[rows], C)
        return LabelMapping("blm+", source, classes, weight, np.zeros(C))

    losses = np.empty(len(labels))
    for train, held in _stratified(labels, folds, seed):
        losses[held] = -mapping(train).log_probs(features[held])[np.arange(len(held)), labels[held]]
    return float(losses.mean()), mapping(np.arange(len(labels)))


def blm_plus(p: Floats, labels: Integers, C: int) -> Floats:
    """Return ω of BLM+: how much each source label speaks for each class.

    N[s,t] = Σ over examples i of class t of p_s(x_i)·1[s in top-k of i], k = max(1, ⌊0.15·C⌋);
    P(t|s) = N[s,t] / (Σ_t' N[s,t'] + λ) with λ = ``SMOOTHING``; ω[s,t] = P(t|s) / Σ_s' P(t|s').

    Args:
        p: (n, S) float64 probabilities.
        labels: (n,) int64 in [0, C).
        C: number of classes.

    Returns:
        (S, C) float64, non-negative; a column sums to 1.

    Reference: arXiv 2410.24018, section 4.
    Deviation: k is at least 1 and at most S; labels that tie across the k-th place are all left out (those that a top-m
    answer did not return share one value, so k is clamped to what was returned). A class without examples, where the
    released code divides by zero, gets a uniform column that sums to C·π_t with its smoothed prior π_t = 1/(n + C).
    """
    n, S = p.shape
    one_hot = np.eye(C)[labels]
    mass = (p * _top(p, min(S, max(1, int(0.15 * C))))).T @ one_hot  # (S, C)
    posterior = mass / (mass.sum(axis=1, keepdims=True) + SMOOTHING)
    total = posterior.sum(axis=0)
    prior = np.broadcast_to(C / (n + C) / S, (S, C))
    return np.asarray(np.where(total > 0, posterior / np.where(total > 0, total, 1.0), prior))


def _top(p: Floats, k: int) -> NDArray[np.bool_]:
    """Return (n, S) bool: the k largest of each row, without a tie that would not fit, but always the best."""
    S = p.shape[1]
    kth = np.partition(p, S - k, axis=1)[:, S - k, None]
    fits = (p >= kth).sum(axis=1, keepdims=True) == k
    return np.asarray((p > kth) | (fits & (p == kth)) | (p == p.max(axis=1, keepdims=True)))


def _permutation(source: tuple[str, ...], classes: tuple[str, ...]) -> Floats:
    """Return (S, C): 1 where the source label is the class."""
    return (np.array(source, dtype=object)[:, None] == np.array(classes, dtype=object)[None, :]).astype(np.float64)


def _log_loss(log_p: Floats, labels: Integers) -> float:
    return float(-log_p[np.arange(len(labels)), labels].mean())


def _stratified(labels: Integers, folds: int, seed: int) -> Iterator[tuple[Integers, Integers]]:
    """Yield (train, held-out) indices; every class is dealt out to the folds in turn, so sizes differ by at most 1."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    folds = min(max(folds, 2), len(labels))
    fold[order] = np.arange(len(labels)) % folds
    for f in range(folds):
        yield np.flatnonzero(fold != f), np.flatnonzero(fold == f)


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in get_args(MappingKind)]
    if unknown or not kinds:
        raise ConfigurationError(f"label mapping: got kind {unknown}, expected some of {list(get_args(MappingKind))}")


def _check_examples(X: Floats, y: Integers, C: int) -> None:
    if X.ndim != 2 or y.shape != (len(X),):
        raise ShapeError(f"fitting: got features {X.shape} and labels {y.shape}, expected (n, d) and (n,)")
    if C < 2 or len(X) < 2:
        raise ConfigurationError(
            f"fitting: got {C} classes and {len(X)} examples, expected at least 2 of each; add classes or pictures"
        )
    if not np.isfinite(X).all():
        raise ConfigurationError("fitting: got features that are NaN or infinite, expected finite numbers")
    if y.min() < 0 or y.max() >= C:
        raise ConfigurationError(f"fitting: got labels in [{y.min()}, {y.max()}], expected [0, {C})")


# ---------------------------------------------------------------- multinomial logistic regression


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A logistic regression whose penalty was chosen by cross-validation.

    Attributes:
        weight: (d, C) float64.
        bias: (C,) float64.
        l2: the chosen strength, in the units of :func:`logistic_regression`.
        log_loss: its cross-validated log-loss, nats per example.
    """

    weight: Floats
    bias: Floats
    l2: float
    log_loss: float


def logistic_regression(
    X: Floats,
    y: Integers,
    C: int,
    l2: float,
    *,
    start: tuple[Floats, Floats] | None = None,
    offset: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Fit p(t|x) = softmax(x @ weight + bias) by L-BFGS.

    Minimises mean cross-entropy + (l2/2)·‖weight - offset‖²; the bias is free. scikit-learn's ``C`` is 1/(n·l2).
    A class without examples keeps ``offset`` as its weight, and a bias that gives it the mean probability 1/(n + C).

    Args:
        X: (n, d) float64, n >= 2; cost is that of min(n, d) features, whatever d is.
        y: (n,) int64 in [0, C).
        C: number of classes, at least 2.
        l2: > 0, nats per squared unit of weight.
        start: weight (d, C) and bias (C,) to start from.
        offset: (d, C) weight to which the penalty pulls; zero where ``None``.

    Returns:
        weight (d, C) and bias (C,), float64.

    Raises:
        ConfigurationError: fewer than 2 classes or examples, values that are not finite, ``l2`` not positive.
        ShapeError: arrays that do not fit.
    """
    _check_examples(X, y, C)
    if not l2 > 0:
        raise ConfigurationError(f"logistic regression: got l2={l2}, expected a positive number")
    problem = _Rotated(X, y, C, offset)
    return problem.unrotated(problem.solve(l2, None if start is None else problem.rotated(*start)))


def logistic_regression_cv(
    X: Floats,
    y: Integers,
    C: int,
    *,
    folds: int = 5,
    seed: int = 0,
    strengths: Sequence[float] | None = None,
    offset: Floats | None = None,
) -> LinearFit:
    """Choose the penalty of :func:`logistic_regression` by stratified cross-validated log-loss, then fit on everything.

    Strengths are tried from strong to weak, each started from the one before; after two rises of the log-loss the
    weaker ones are not tried.

    Args:
        X: (n, d) float64, n >= 2.
        y: (n,) int64 in [0, C).
        C: number of classes, at least 2.
        folds: number of folds, at most n.
        seed: of the assignment to folds.
        strengths: values of l2; by default 9 from 1 to 1e-6 times the total variance of X, so that the scale of the
            features does not matter.
        offset: as in :func:`logistic_regression`.

    Raises:
        ConfigurationError: as :func:`logistic_regression`.
        ShapeError: arrays that do not fit.
    """
    _check_examples(X, y, C)
    scale = float(X.var(axis=0).sum()) or 1.0
    path = sorted((float(s) for s in (np.logspace(0, -6, 9) * scale if strengths is None else strengths)), reverse=True)
    if not path or path[-1] <= 0:
        raise ConfigurationError(f"logistic regression: got strengths {path}, expected positive numbers")
    parts = list(_stratified(y, folds, seed))
    problems = [_Rotated(X[train], y[train], C, offset) for train, _ in parts]
    starts: list[Floats | None] = [None] * len(parts)
    losses: list[float] = []
    for l2 in path:
        held_losses = 0.0
        for f, (problem, (_, held)) in enumerate(zip(problems, parts, strict=True)):
            starts[f] = params = problem.solve(l2, starts[f], tolerance=1e-4)
            weight, bias = problem.unrotated(params)
            # The floor keeps one certain mistake from deciding the choice, and puts all kinds of mapping on one scale.
            held_losses += len(held) * _log_loss(
                _log_normalised(np.exp(_log_softmax(X[held] @ weight + bias))), y[held]
            )
        losses.append(held_losses / len(y))
        if len(losses) > 2 and all(before < after for before, after in pairwise(losses[-3:])):
            break
    best = int(np.argmin(losses))
    weight, bias = logistic_regression(X, y, C, path[best], offset=offset)
    return LinearFit(weight, bias, path[best], losses[best])


class _Rotated:
    """One regression problem in the coordinates of its data: centred, and turned into the span of its rows by an SVD.

    The penalised optimum lies in the span of the centred rows (representer theorem), and a rotation keeps the penalty,
    so r = rank <= min(n - 1, d) features do. Parameters are (r + 1, Cp) float64: the last row is the bias, and the
    Cp columns are the classes that have examples.
    """

    def __init__(self, X: Floats, y: Integers, C: int, offset: Floats | None) -> None:
        d = X.shape[1]
        self.C = C
        self.offset = np.zeros((d, C)) if offset is None else offset
        if self.offset.shape != (d, C):
            raise ShapeError(f"logistic regression: got offset {self.offset.shape}, expected {(d, C)}")
        self.present, target = np.unique(y, return_inverse=True)
        self.one_hot = np.eye(len(self.present))[target]  # (n, Cp)
        self.mean = X.mean(axis=0)
        centred = X - self.mean
        U, sigma, Vt = np.linalg.svd(centred, full_matrices=False)
        rank = int((sigma > 1e-10 * max(sigma.max(initial=0.0), 1e-300)).sum())
        self.sigma, self.basis = sigma[:rank], Vt[:rank].T  # (r,), (d, r)
        self.Z = U[:, :rank] * self.sigma  # (n, r)
        self.offset_logits = centred @ self.offset  # (n, C)

    def objective(self, l2: float, scale: Floats) -> Callable[[Floats], tuple[float, Floats]]:
        """Return the function from scaled parameters, flat, to (loss, flat gradient)."""
        n, shape = len(self.Z), (len(self.sigma) + 1, len(self.present))
        design = np.column_stack([self.Z, np.ones(n)]) / scale  # (n, r + 1)
        penalty = np.append(np.full(len(self.sigma), l2), 0.0)[:, None] / scale[:, None] ** 2
        fixed = self.offset_logits[:, self.present]

        def value_and_gradient(flat: Floats) -> tuple[float, Floats]:
            params = flat.reshape(shape)
            log_p = _log_softmax(design @ params + fixed)
            value = -float((self.one_hot * log_p).sum()) / n + 0.5 * float((penalty * params**2).sum())
            gradient = design.T @ ((np.exp(log_p) - self.one_hot) / n) + penalty * params
            return value, gradient.ravel()

        return value_and_gradient

    def solve(self, l2: float, start: Floats | None = None, *, tolerance: float = 1e-6) -> Floats:
        """Return (r + 1, Cp) optimal parameters; stops where the norm of the scaled gradient is below ``tolerance``."""
        Cp = len(self.present)
        # Preconditioner: roots of the Hessian's diagonal at uniform predictions. Without it the singular values of
        # log-probabilities, which span many decades, make the iteration count explode at weak penalties.
        curvature = self.sigma**2 / (len(self.Z) * Cp) + l2
        scale = np.sqrt(np.append(curvature, 1.0 / Cp))
        params = np.zeros((len(scale), Cp)) if start is None else start
        flat = minimise(self.objective(l2, scale), (params * scale[:, None]).ravel(), tolerance=tolerance)
        return np.asarray(flat.reshape(params.shape) / scale[:, None])

    def rotated(self, weight: Floats, bias: Floats) -> Floats:
        """Bring weight (d, C) and bias (C,) into (r + 1, Cp) parameters; what lies outside the span is dropped."""
        inner = self.basis.T @ (weight - self.offset)
        return np.vstack([inner, bias + self.mean @ weight])[:, self.present]

    def unrotated(self, params: Floats) -> tuple[Floats, Floats]:
        """Bring (r + 1, Cp) parameters back to weight (d, C) and bias (C,); absent classes get their prior."""
        weight, bias = self.offset.copy(), np.empty(self.C)
        weight[:, self.present] += self.basis @ params[:-1]
        logits = self.Z @ params[:-1] + params[-1] + self.offset_logits[:, self.present]
        level = float(np.mean(logits - _log_softmax(logits)))  # mean log of the sum of exponentials
        bias[:] = level - np.log(len(self.Z) + self.C - 1)  # odds of a probability 1/(n + C)
        bias -= self.offset_logits.mean(axis=0)
        bias[self.present] = params[-1]
        return weight, bias - self.mean @ weight


def minimise(
    function: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    *,
    tolerance: float = 1e-6,
    iterations: int = 500,
    memory: int = 10,
) -> Floats:
    """Minimise a smooth convex function by L-BFGS with a backtracking (Armijo) line search.

    Args:
        function: flat float64 vector -> (value, gradient).
        start: flat float64 vector.
        tolerance: stop where the Euclidean norm of the gradient is below.
        iterations: at most so many steps.
        memory: number of curvature pairs kept.

    Reference: Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5.
    """
    x, (value, gradient) = start, function(start)
    pairs: list[tuple[Floats, Floats]] = []
    for _ in range(iterations):
        if np.linalg.norm(gradient) < tolerance:
            break
        direction = -_two_loop(gradient, pairs)
        slope, step = float(direction @ gradient), 1.0
        new_value, new_gradient = function(x + direction)
        while not new_value <= value + 1e-4 * step * slope and step > 1e-10:
            step /= 2
            new_value, new_gradient = function(x + step * direction)
        if not new_value < value:
            break  # nothing to gain at this precision
        s, change = step * direction, new_gradient - gradient
        if s @ change > 1e-12 * np.linalg.norm(s) * np.linalg.norm(change):
            pairs = [*pairs[1 - memory :], (s, change)]
        x, value, gradient = x + s, new_value, new_gradient
    return x


def _two_loop(gradient: Floats, pairs: list[tuple[Floats, Floats]]) -> Floats:
    """Return the approximate inverse Hessian times the gradient."""
    q, alphas = gradient.copy(), []
    for s, change in reversed(pairs):
        alphas.append(float(s @ q) / float(s @ change))
        q -= alphas[-1] * change
    if pairs:
        s, change = pairs[-1]
        q *= float(s @ change) / float(change @ change)
    for (s, change), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - float(change @ q) / float(s @ change)) * s
    return q
