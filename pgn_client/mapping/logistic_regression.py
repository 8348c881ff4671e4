"""Multinomial logistic regression with an L2 penalty, chosen by cross-validation.

It fits the linear label mapping, on an endpoint's answers, and the linear probe, on a backbone's
features. Importing needs NumPy only; fitting needs SciPy, which the extra ``[train]`` installs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pgn_client.arrays import Floats, Integers
from pgn_client.errors import ConfigurationError, MissingDependencyError, ShapeError
from pgn_client.mapping.probability import log_loss, log_softmax

if TYPE_CHECKING:
    Start = tuple[Floats, Floats]
    Objective = Callable[[Floats], tuple[float, Floats]]  # value and gradient


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Weight (d, C) and bias (C,) float64, the chosen l2, and its cross-validated log-loss in nats
    per example.
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
    start: Start | None = None,
    offset: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Fit p(t|x) = softmax(x @ weight + bias) by L-BFGS, and return weight (d, C) and bias (C,),
    float64.

    Minimises mean cross-entropy + (l2/2)·‖weight - offset‖²; the bias is free. scikit-learn's ``C``
    is 1/(n·l2). A class without examples keeps ``offset`` as its weight, and a bias that gives it
    the mean probability 1/(n + C).

    Args:
        X: (n, d) float64, n >= 2; cost is that of min(n, d) features, whatever d is.
        y: (n,) int64 in [0, C).
        C: number of classes, at least 2.
        l2: > 0, nats per squared unit of weight.
        start: weight (d, C) and bias (C,) to start from.
        offset: (d, C) weight to which the penalty pulls; zero where ``None``.

    Raises:
        ConfigurationError: fewer than 2 classes or examples, values that are not finite, ``l2`` not
            positive.
        MissingDependencyError: scipy is not installed.
        ShapeError: arrays that do not fit.
    """
    check_examples(X, y, C)
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
    copies: int = 1,
    groups: Integers | None = None,
    offset: Floats | None = None,
) -> LinearFit:
    """Choose the penalty of :func:`logistic_regression` by stratified cross-validated log-loss,
    then fit on everything.

    Strengths are tried from strong to weak, each started from the one before, until the log-loss
    has risen twice.

    The strengths are 9 values of l2, from 1 to 1e-6 times the total variance of X, so that the
    scale of X does not matter. Of ``copies`` blocks of the same examples, no fold parts the copies
    of one; with ``groups``, (n,) numbers of at least two groups, no fold parts a group. The other
    arguments are as in :func:`logistic_regression`.

    Raises:
        ConfigurationError, MissingDependencyError, ShapeError: as :func:`logistic_regression`.
    """
    check_examples(X, y, C)
    scale = float(X.var(axis=0).sum()) or 1.0
    path = np.logspace(0, -6, 9) * scale
    split = stratified(y, folds, seed, copies) if groups is None else grouped(groups, folds, seed)
    parts = [(_Rotated(X[train], y[train], C, offset), held) for train, held in split]
    starts: list[Floats | None] = [None] * len(parts)
    losses: list[float] = []
    for l2 in path:
        total = 0.0
        for f, (problem, held) in enumerate(parts):
            starts[f] = params = problem.solve(l2, starts[f], tolerance=1e-4)
            weight, bias = problem.unrotated(params)
            total += len(held) * log_loss(log_softmax(X[held] @ weight + bias), y[held])
        losses.append(total / len(y))
        if len(losses) > 2 and losses[-3] < losses[-2] < losses[-1]:
            break
    best = int(np.argmin(losses))
    l2 = float(path[best])
    return LinearFit(*logistic_regression(X, y, C, l2, offset=offset), l2, losses[best])


class _Rotated:
    """One regression problem in the coordinates of its data: centred, and turned into the span of
    its rows by an SVD.

    The optimum lies in that span, and a rotation keeps the penalty, so r = rank <= min(n - 1, d)
    features do. Parameters are (r + 1, Cp) float64: the last row is the bias, and the Cp columns
    are the classes with examples.
    """

    def __init__(self, X: Floats, y: Integers, C: int, offset: Floats | None) -> None:
        self.C, shape = C, (X.shape[1], C)
        self.offset = np.zeros(shape) if offset is None else offset
        if self.offset.shape != shape:
            raise ShapeError(
                f"logistic regression: got offset {self.offset.shape}, expected {shape}"
            )
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
            log_p = log_softmax(design @ params + fixed)
            value = -float((self.one_hot * log_p).sum()) / n + 0.5 * float(
                (penalty * params**2).sum()
            )
            gradient = design.T @ ((np.exp(log_p) - self.one_hot) / n) + penalty * params
            return value, gradient.ravel()

        return value_and_gradient

    def solve(self, l2: float, start: Floats | None = None, *, tolerance: float = 1e-6) -> Floats:
        """Return (r + 1, Cp) optimal parameters; stops where the norm of the scaled gradient is
        below ``tolerance``.
        """
        Cp = len(self.present)
        # Preconditioner: roots of the Hessian's diagonal at uniform predictions. Without it the
        # singular values of log-probabilities, which span many decades, make the iteration count
        # explode at weak penalties.
        scale = np.sqrt(np.append(self.sigma**2 / (len(self.Z) * Cp) + l2, 1.0 / Cp))
        params = np.zeros((len(scale), Cp)) if start is None else start
        flat = _minimise(self.objective(l2, scale), (params * scale[:, None]).ravel(), tolerance)
        return np.asarray(flat.reshape(params.shape) / scale[:, None])

    def rotated(self, weight: Floats, bias: Floats) -> Floats:
        """Bring weight (d, C) and bias (C,) into (r + 1, Cp) parameters; what lies outside the span
        is dropped.
        """
        return np.vstack([self.basis.T @ (weight - self.offset), bias + self.mean @ weight])[
            :, self.present
        ]

    def unrotated(self, params: Floats) -> tuple[Floats, Floats]:
        """Bring (r + 1, Cp) parameters back to weight (d, C) and bias (C,); absent classes get
        their prior.
        """
        weight = self.offset.copy()
        weight[:, self.present] += self.basis @ params[:-1]
        logits = self.Z @ params[:-1] + params[-1] + self.offset_logits[:, self.present]
        level = float(np.mean(logits - log_softmax(logits)))  # mean log of the sum of exponentials
        # odds of a probability 1/(n + C), for absent classes
        bias = level - np.log(len(self.Z) + self.C - 1) - self.offset_logits.mean(axis=0)
        bias[self.present] = params[-1]
        return weight, bias - self.mean @ weight


def _minimise(function: Objective, start: Floats, tolerance: float) -> Floats:
    """Minimise a smooth convex function by L-BFGS until the norm of its gradient is below
    ``tolerance``.

    It also stops after 500 iterations, or where rounding errors hide any further decrease. That
    is no error: the parameters reached so far are returned.

    Args:
        function: Maps (m,) parameters to the value and its (m,) gradient.
        start: (m,) float64.
        tolerance: Bound on the Euclidean norm of the gradient.

    Returns:
        (m,) float64.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    # Not at the top of the module: the light client reads this module and has no SciPy.
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise MissingDependencyError("logistic regression", "train") from error

    def until_flat(params: Floats) -> tuple[float, Floats]:
        value, gradient = function(params)
        # L-BFGS-B's own test is on the largest entry of the gradient, which can be sqrt(m) times
        # smaller than its norm. gtol = tolerance / sqrt(m) is safe, but took 1.3 to 1.6 times as
        # many evaluations. A gradient of zeros stops it exactly where the norm is small enough.
        flat = np.linalg.norm(gradient) < tolerance
        return value, np.zeros_like(gradient) if flat else gradient

    # ftol = 0: a small decrease alone must not stop it, because weak penalties make slow progress.
    options = {"gtol": 0.0, "ftol": 0.0, "maxiter": 500}
    found = minimize(until_flat, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64)


def stratified(
    labels: Integers, folds: int, seed: int, copies: int = 1
) -> Iterator[tuple[Integers, Integers]]:
    """Yield (train, held-out) indices; every class is dealt out to the folds in turn, so sizes
    differ by at most 1.

    Of ``copies`` blocks of the same examples, all copies of one are held out together.
    """
    labels = labels[: len(labels) // copies]
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    folds = min(max(folds, 2), len(labels))
    fold[order] = np.arange(len(labels)) % folds
    fold = np.tile(fold, copies)
    for f in range(folds):
        yield np.flatnonzero(fold != f), np.flatnonzero(fold == f)


def grouped(groups: Integers, folds: int, seed: int) -> Iterator[tuple[Integers, Integers]]:
    """Yield (train, held-out) indices; the groups are dealt out to the folds in turn, each as a
    whole.

    Raises:
        ConfigurationError: fewer than 2 groups.
    """
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise ConfigurationError(
            f"cross-validation: got {len(names)} group, expected at least 2; add examples"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    fold = order[member] % min(max(folds, 2), len(names))
    for f in range(fold.max() + 1):
        yield np.flatnonzero(fold != f), np.flatnonzero(fold == f)


def check_examples(X: Floats, y: Integers, C: int) -> None:
    """Refuse what nothing can be fitted on.

    Raises:
        ConfigurationError: fewer than 2 classes or examples, values that are not finite, a label
            out of range.
        ShapeError: arrays that do not fit.
    """
    if X.ndim != 2 or X.shape[1] < 1 or y.shape != (len(X),):
        raise ShapeError(
            f"fitting: got features {X.shape} and labels {y.shape}, expected (n, d) and "
            "(n,), d >= 1"
        )
    if C < 2 or len(X) < 2:
        raise ConfigurationError(
            f"fitting: got {C} classes and {len(X)} examples, expected at least 2 of each; add some"
        )
    if not np.isfinite(X).all():
        raise ConfigurationError(
            "fitting: got features that are NaN or infinite, expected finite numbers"
        )
    if y.min() < 0 or y.max() >= C:
        raise ConfigurationError(
            f"fitting: got labels in [{y.min()}, {y.max()}], expected [0, {C})"
        )
