"""Label mapping: from what an endpoint answers (S source labels) to the task's C classes. NumPy only.

An answer becomes a row of S log-probabilities x (:func:`log_scores`); a :class:`LabelMapping` turns rows into C
log-probabilities; :func:`fit` chooses among three kinds by cross-validated log-loss. ``identity`` (every class is a
source label) and ``blm+`` (labelled answers) are additive, log normalise(exp(x) @ weight); ``linear`` is
log softmax(x @ weight + bias). Its logistic regression is public: it also serves a linear probe on backbone features.

Reference: Cai et al., "Bayesian-guided Label Mapping for Visual Reprogramming" (arXiv 2410.24018), for BLM+.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from pgn_client.errors import CheckpointError, ConfigurationError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pgn_client.types import Answer

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]
    Start = tuple[Floats, Floats]
    Objective = Callable[[Floats], tuple[float, Floats]]  # value and gradient

MappingKind = Literal["identity", "blm+", "linear"]

FLOOR = 1e-6  # least probability of a label before the last renormalisation, so that logarithms stay finite
SMOOTHING = 1.0  # λ of BLM+: mass of "no class" that every source label starts with


def vocabulary(answers: Sequence[Answer]) -> tuple[str, ...]:
    """Return the sorted union of all labels in the answers: the S source labels."""
    return tuple(sorted({label for answer in answers for label in answer.labels}))


def log_scores(answers: Sequence[Answer], source: tuple[str, ...], *, strict: bool = True) -> Floats:
    """Turn n answers into (n, S) float64 log-probabilities over the source labels.

    Logits go through a softmax over what was returned; a hard label is one-hot; labels that appear twice in an answer
    are summed. The residual mass r = max(0, 1 - sum of what was returned) is spread evenly over the labels that were
    not returned. Every row is then normalised, raised to ``FLOOR``, and normalised again; so a model gives the same
    row whether it sends probabilities or logits. Labels outside ``source`` are dropped together with their mass.

    Deviation: no missing label receives more than the smallest probability that was returned, because an answer lists
    the best labels; without this a small vocabulary would lift the missing labels above the best one.

    Args:
        answers: n answers of any kinds.
        source: the S source labels, without repetition.
        strict: whether an answer without a single known label is an error; otherwise its row is uniform.

    Raises:
        ConfigurationError: an answer shares no label with ``source``, or has a score that is no finite number.
    """
    index = {label: s for s, label in enumerate(source)}
    rows = np.zeros((len(answers), len(source)))
    for row, answer in zip(rows, answers, strict=True):
        known = [(index[label], i) for i, label in enumerate(answer.labels) if label in index]
        if strict and not known:
            raise ConfigurationError(
                f"label mapping: got an answer with labels such as {list(answer.labels[:3])}, expected some of the "
                f"{len(source)} source labels such as {list(source[:3])}; fit the mapping again for this endpoint"
            )
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


def _log_normalised(mass: Floats) -> Floats:
    """Return logs of (n, S) non-negative rows, normalised and floored; a row of zeros is uniform."""
    total = mass.sum(axis=1, keepdims=True)
    p = np.maximum(mass / np.where(total > 0, total, 1.0), FLOOR)
    return np.asarray(np.log(p / p.sum(axis=1, keepdims=True)))


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


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
        """Map answers to (n, C) float64 log-probabilities; raises as :func:`log_scores`."""
        return self.log_probs(log_scores(answers, self.source))

    def log_probs(self, features: Floats) -> Floats:
        """Map (n, S) float64 log-probabilities, as of :func:`log_scores`, to (n, C) float64 log-probabilities.

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
        """Rebuild a mapping from :meth:`card` and :meth:`arrays`; parts that do not fit raise ``CheckpointError``."""
        try:
            weight, bias = (np.asarray(arrays[name], dtype=np.float64) for name in ("weight", "bias"))
            return cls(card["kind"], tuple(card["source"]), tuple(card["classes"]), weight, bias)
        except (KeyError, TypeError, ValueError) as error:  # ShapeError and ConfigurationError are ValueErrors
            message = f"label mapping in the checkpoint: got {error!s}, expected parts that fit; save it again"
            raise CheckpointError(message) from error


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit` found.

    Attributes:
        mapping: the chosen mapping, fitted on all examples.
        log_loss: cross-validated, nats per example, of every kind tried; of ``linear``, that of the best l2.
        l2: strength of the penalty of ``linear`` (see :func:`logistic_regression`), where it was tried.
    """

    mapping: LabelMapping
    log_loss: dict[str, float]
    l2: float | None = None


def fit(
    features: Floats,
    labels: Integers,
    source: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    kinds: Sequence[str] = ("identity", "blm+", "linear"),
    folds: int = 5,
    seed: int = 0,
) -> Fitted:
    """Fit every kind of mapping and keep the one with the least cross-validated log-loss.

    Args:
        features: (n, S) float64 log-probabilities, as of :func:`log_scores`; n >= 2.
        labels: (n,) int64 in [0, C), C >= 2; a class may have one example, or none, and then keeps a small prior.
        source: the S source labels.
        classes: the C task classes; the identity is tried where every one of them is a source label.
        kinds: which kinds to try; among equals the first wins.
        folds: number of stratified folds, at most n.
        seed: of the assignment to folds.

    Raises:
        ConfigurationError: fewer than 2 classes or examples, a score that is not finite, a label out of range, an
            unknown kind, or no kind that is possible.
        ShapeError: features and labels do not fit.
    """
    _check_kinds(kinds)
    C = len(classes)
    _check_examples(features, labels, C)
    if features.shape[1] != len(source):
        raise ShapeError(f"label mapping: got features {features.shape}, expected {len(source)} columns")
    if set(kinds) == {"identity"} and not set(classes) <= set(source):
        absent = sorted(set(classes) - set(source))[:3]
        raise ConfigurationError(
            f"identity mapping: got classes {absent}, expected source labels; allow blm+ or linear"
        )
    found: dict[str, tuple[float, LabelMapping]] = {}
    names, l2 = _permutation(source, classes), None
    if "identity" in kinds and set(classes) <= set(source):
        mapping = LabelMapping("identity", source, classes, names, np.zeros(C))
        found["identity"] = _log_loss(mapping.log_probs(features), labels), mapping
    if "blm+" in kinds:
        mapping = LabelMapping("blm+", source, classes, blm_plus(np.exp(features), labels, C), np.zeros(C))
        found["blm+"] = _blm_plus_loss(features, labels, C, folds, seed), mapping
    if "linear" in kinds:
        # Residual form I + E where the labels are the classes: a strong penalty then means "as it is".
        offset = names if set(source) == set(classes) else None
        linear = logistic_regression_cv(features, labels, C, folds=folds, seed=seed, offset=offset)
        mapping, l2 = LabelMapping("linear", source, classes, linear.weight, linear.bias), linear.l2
        found["linear"] = linear.log_loss, mapping
    best = min((kind for kind in kinds if kind in found), key=lambda kind: found[kind][0])
    return Fitted(found[best][1], {kind: loss for kind, (loss, _) in found.items()}, l2)


def _blm_plus_loss(features: Floats, labels: Integers, C: int, folds: int, seed: int) -> float:
    p, loss = np.exp(features), 0.0
    for train, held in _stratified(labels, folds, seed):
        loss += len(held) * _log_loss(_log_normalised(p[held] @ blm_plus(p[train], labels[train], C)), labels[held])
    return loss / len(labels)


def blm_plus(p: Floats, labels: Integers, C: int) -> Floats:
    """Return ω of BLM+: how much each source label speaks for each class.

    N[s,t] = Σ over examples i of class t of p_s(x_i)·1[s in top-k of i], k = max(1, ⌊0.15·C⌋);
    P(t|s) = N[s,t] / (Σ_t' N[s,t'] + λ) with λ = ``SMOOTHING``; ω[s,t] = P(t|s) / Σ_s' P(t|s').

    Takes p (n, S) float64 probabilities and labels (n,) int64 in [0, C); returns (S, C) float64, non-negative, whose
    columns sum to 1 (for a class with examples).

    Reference: arXiv 2410.24018.
    Deviation: k is at least 1 and at most S; labels that tie across the k-th place are all left out (those that a top-m
    answer did not return share one value, so k is clamped to what was returned). A class without examples, where the
    released code divides by zero, gets a uniform column that sums to C·π_t with its smoothed prior π_t = 1/(n + C).
    """
    n, S = p.shape
    mass = (p * _top(p, min(S, max(1, 15 * C // 100)))).T @ np.eye(C)[labels]  # (S, C)
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
    return np.array([[float(label == name) for name in classes] for label in source])


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
    if X.ndim != 2 or X.shape[1] < 1 or y.shape != (len(X),):
        raise ShapeError(f"fitting: got features {X.shape} and labels {y.shape}, expected (n, d) and (n,), d >= 1")
    if C < 2 or len(X) < 2:
        raise ConfigurationError(
            f"fitting: got {C} classes and {len(X)} examples, expected at least 2 of each; add some"
        )
    if not np.isfinite(X).all():
        raise ConfigurationError("fitting: got features that are NaN or infinite, expected finite numbers")
    if y.min() < 0 or y.max() >= C:
        raise ConfigurationError(f"fitting: got labels in [{y.min()}, {y.max()}], expected [0, {C})")


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Weight (d, C) and bias (C,) float64, the chosen l2, and its cross-validated log-loss in nats per example."""

    weight: Floats
    bias: Floats
    l2: float
    log_loss: float


def logistic_regression(
    X: Floats, y: Integers, C: int, l2: float, *, start: Start | None = None, offset: Floats | None = None
) -> tuple[Floats, Floats]:
    """Fit p(t|x) = softmax(x @ weight + bias) by L-BFGS, and return weight (d, C) and bias (C,), float64.

    Minimises mean cross-entropy + (l2/2)·‖weight - offset‖²; the bias is free. scikit-learn's ``C`` is 1/(n·l2).
    A class without examples keeps ``offset`` as its weight, and a bias that gives it the mean probability 1/(n + C).

    Args:
        X: (n, d) float64, n >= 2; cost is that of min(n, d) features, whatever d is.
        y: (n,) int64 in [0, C).
        C: number of classes, at least 2.
        l2: > 0, nats per squared unit of weight.
        start: weight (d, C) and bias (C,) to start from.
        offset: (d, C) weight to which the penalty pulls; zero where ``None``.

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

    Strengths are tried from strong to weak, each started from the one before, until the log-loss has risen twice.

    ``strengths`` are values of l2; by default 9 from 1 to 1e-6 times the total variance of X, so that the scale of X
    does not matter. The other arguments are as in :func:`logistic_regression` and :func:`fit`.

    Raises:
        ConfigurationError, ShapeError: as :func:`logistic_regression`.
    """
    _check_examples(X, y, C)
    scale = float(X.var(axis=0).sum()) or 1.0
    path = sorted((float(s) for s in (np.logspace(0, -6, 9) * scale if strengths is None else strengths)), reverse=True)
    if not path or path[-1] <= 0:
        raise ConfigurationError(f"logistic regression: got strengths {path}, expected positive numbers")
    parts = [(_Rotated(X[train], y[train], C, offset), held) for train, held in _stratified(y, folds, seed)]
    starts: list[Floats | None] = [None] * len(parts)
    losses: list[float] = []
    for l2 in path:
        total = 0.0
        for f, (problem, held) in enumerate(parts):
            starts[f] = params = problem.solve(l2, starts[f], tolerance=1e-4)
            weight, bias = problem.unrotated(params)
            # The floor keeps one certain mistake from deciding the choice, and puts all kinds of mapping on one scale.
            p = np.exp(_log_softmax(X[held] @ weight + bias))
            total += len(held) * _log_loss(_log_normalised(p), y[held])
        losses.append(total / len(y))
        if len(losses) > 2 and losses[-3] < losses[-2] < losses[-1]:
            break
    best = int(np.argmin(losses))
    return LinearFit(*logistic_regression(X, y, C, path[best], offset=offset), path[best], losses[best])


class _Rotated:
    """One regression problem in the coordinates of its data: centred, and turned into the span of its rows by an SVD.

    The optimum lies in that span, and a rotation keeps the penalty, so r = rank <= min(n - 1, d) features do.
    Parameters are (r + 1, Cp) float64: the last row is the bias, and the Cp columns are the classes with examples.
    """

    def __init__(self, X: Floats, y: Integers, C: int, offset: Floats | None) -> None:
        self.C, shape = C, (X.shape[1], C)
        self.offset = np.zeros(shape) if offset is None else offset
        if self.offset.shape != shape:
            raise ShapeError(f"logistic regression: got offset {self.offset.shape}, expected {shape}")
        self.present, target = np.unique(y, return_inverse=True)
        self.one_hot = np.eye(len(self.present))[target]  # (n, Cp)
        self.mean = X.mean(axis=0)
        centred = X - self.mean
        U, sigma, Vt = np.linalg.svd(centred, full_matrices=False)
        rank = int((sigma > 1e-10 * max(sigma[0], 1e-300)).sum())
        self.sigma, self.basis = sigma[:rank], Vt[:rank].T  # (r,), (d, r)
        self.Z = U[:, :rank] * self.sigma  # (n, r)
        self.offset_logits = centred @ self.offset  # (n, C)

    def objective(self, l2: float, scale: Floats) -> Objective:
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
        scale = np.sqrt(np.append(self.sigma**2 / (len(self.Z) * Cp) + l2, 1.0 / Cp))
        params = np.zeros((len(scale), Cp)) if start is None else start
        flat = _minimise(self.objective(l2, scale), (params * scale[:, None]).ravel(), tolerance)
        return np.asarray(flat.reshape(params.shape) / scale[:, None])

    def rotated(self, weight: Floats, bias: Floats) -> Floats:
        """Bring weight (d, C) and bias (C,) into (r + 1, Cp) parameters; what lies outside the span is dropped."""
        return np.vstack([self.basis.T @ (weight - self.offset), bias + self.mean @ weight])[:, self.present]

    def unrotated(self, params: Floats) -> tuple[Floats, Floats]:
        """Bring (r + 1, Cp) parameters back to weight (d, C) and bias (C,); absent classes get their prior."""
        weight = self.offset.copy()
        weight[:, self.present] += self.basis @ params[:-1]
        logits = self.Z @ params[:-1] + params[-1] + self.offset_logits[:, self.present]
        level = float(np.mean(logits - _log_softmax(logits)))  # mean log of the sum of exponentials
        # odds of a probability 1/(n + C), for absent classes
        bias = level - np.log(len(self.Z) + self.C - 1) - self.offset_logits.mean(axis=0)
        bias[self.present] = params[-1]
        return weight, bias - self.mean @ weight


def _minimise(function: Objective, start: Floats, tolerance: float, iterations: int = 500, memory: int = 10) -> Floats:
    """Minimise a smooth convex function by L-BFGS until the norm of its gradient is below ``tolerance``.

    Reference: Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5; backtracking (Armijo) line search.
    """
    x, (value, gradient) = start, function(start)
    pairs: list[tuple[Floats, Floats]] = []
    for _ in range(iterations):
        if np.linalg.norm(gradient) < tolerance:
            break
        direction = -_two_loop(gradient, pairs)
        slope, step = float(direction @ gradient), 1.0
        while (new := function(x + step * direction))[0] > value + 1e-4 * step * slope and step > 1e-10:
            step /= 2
        new_value, new_gradient = new
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
    for s, change in pairs[-1:]:
        q *= float(s @ change) / float(change @ change)
    for (s, change), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - float(change @ q) / float(s @ change)) * s
    return q
