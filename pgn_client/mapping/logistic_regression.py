"""Multinomial logistic regression with an L2 penalty whose strength cross-validation chooses.

It fits the linear label mapping on an endpoint's answers, and the linear probe on a backbone's
features. Importing this module needs NumPy only. Fitting needs SciPy, which the extra ``[train]``
installs.
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
    """A fitted logistic regression, and the penalty that cross-validation chose.

    Attributes:
        weight: Weights, (d, C) float64, for d features and C classes.
        bias: Biases, (C,) float64.
        l2: Chosen strength of the penalty.
        log_loss: Cross-validated log-loss of ``l2``, in nats per example.
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
    """Fit p(t|x) = softmax(x @ weight + bias), a multinomial logistic regression, by L-BFGS.

    The fit minimizes mean cross-entropy + (l2/2)·‖weight - offset‖²; the bias has no penalty.
    scikit-learn's ``C`` is 1/(n·l2). A class without examples keeps ``offset`` as its weight, and
    gets a bias that gives it the mean probability 1/(n + C).

    Args:
        X: Features, (n, d) float64, n >= 2. The cost is that of min(n, d) features.
        y: Class indices, (n,) int64 in [0, C).
        C: Number of classes, at least 2.
        l2: Strength of the penalty, positive, in nats per squared unit of weight.
        start: Weight (d, C) and bias (C,) to start from.
        offset: Weight to which the penalty pulls, (d, C) float64; ``None`` means zero.

    Returns:
        Weight, (d, C) float64, and bias, (C,) float64.

    Raises:
        ConfigurationError: There are fewer than 2 classes or examples, a value is not finite, a
            label is out of range, or ``l2`` is not positive.
        MissingDependencyError: SciPy is not installed.
        ShapeError: The shapes of the arrays do not match.
    """
    check_examples(X, y, C)
    # Not `l2 <= 0`, which is false for NaN.
    if not l2 > 0:
        raise ConfigurationError(f"logistic regression: got l2={l2}, expected a positive number")

    problem = _Rotated(X, y, C, offset)
    first = None if start is None else problem.rotated(*start)
    return problem.unrotated(problem.solve(l2, first))


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
    """Fit a logistic regression whose penalty is chosen by cross-validation.

    The candidates are 9 values of l2, from 1 to 1e-6 times the total variance of X, so that the
    scale of X does not matter. They are tried from strong to weak until the held-out log-loss
    has risen twice in a row; each fit starts from the solution of the one before. The chosen l2 is
    fitted again on all examples.

    Args:
        X: Features, (n, d) float64, n >= 2.
        y: Class indices, (n,) int64 in [0, C).
        C: Number of classes, at least 2.
        folds: Number of folds.
        seed: Seed of the assignment to folds.
        copies: Number of equally long blocks in X, each with another version of the same examples;
            all versions of an example are in the same fold.
        groups: Group number of each example, (n,) int64, at least two groups; a group is never
            divided between folds. ``None`` makes stratified folds.
        offset: Weight to which the penalty pulls, (d, C) float64; ``None`` means zero.

    Raises:
        ConfigurationError: There are fewer than 2 classes, examples or groups, a value is not
            finite, or a label is out of range.
        MissingDependencyError: SciPy is not installed.
        ShapeError: The shapes of the arrays do not match.
    """
    check_examples(X, y, C)

    # A variance of zero would make all penalties zero.
    scale = float(X.var(axis=0).sum()) or 1.0
    path = np.logspace(0, -6, 9) * scale
    split = stratified(y, folds, seed, copies) if groups is None else grouped(groups, folds, seed)
    parts = [(_Rotated(X[train], y[train], C, offset), held) for train, held in split]

    starts: list[Floats | None] = [None] * len(parts)
    losses: list[float] = []
    for l2 in path:
        total = 0.0
        for f, (problem, held) in enumerate(parts):
            # Less exact than the final fit, because the losses only have to rank the penalties.
            params = problem.solve(l2, starts[f], tolerance=1e-4)
            starts[f] = params
            weight, bias = problem.unrotated(params)
            total += len(held) * log_loss(log_softmax(X[held] @ weight + bias), y[held])
        losses.append(total / len(y))
        if len(losses) > 2 and losses[-3] < losses[-2] < losses[-1]:
            break

    best = int(np.argmin(losses))
    l2 = float(path[best])
    weight, bias = logistic_regression(X, y, C, l2, offset=offset)
    return LinearFit(weight, bias, l2, losses[best])


class _Rotated:
    """A logistic regression in fewer coordinates, which makes it cheaper to solve.

    The data are centered, and rotated into the span of their rows by an SVD. The optimum lies in
    that span, and a rotation does not change the penalty, so r = rank <= min(n - 1, d) features are
    enough. Parameters are (r + 1, Cp) float64: the last row is the bias, and the Cp columns are the
    classes that have examples.
    """

    def __init__(self, X: Floats, y: Integers, C: int, offset: Floats | None) -> None:
        self.C = C
        shape = (X.shape[1], C)
        self.offset = np.zeros(shape) if offset is None else offset
        if self.offset.shape != shape:
            raise ShapeError(
                f"logistic regression: got offset {self.offset.shape}, expected {shape}"
            )

        self.present, target = np.unique(y, return_inverse=True)
        self.one_hot = np.eye(len(self.present))[target]  # (n, Cp)

        self.mean = X.mean(axis=0)
        centered = X - self.mean
        U, sigma, Vt = np.linalg.svd(centered, full_matrices=False)
        # Singular values below this are rounding errors; 1e-300 gives rank 0 where all are zero.
        rank = int((sigma > 1e-10 * max(sigma[0], 1e-300)).sum())
        self.sigma = sigma[:rank]  # (r,)
        self.basis = Vt[:rank].T  # (d, r)
        self.Z = U[:, :rank] * self.sigma  # (n, r)
        self.offset_logits = centered @ self.offset  # (n, C)

    def objective(self, l2: float, scale: Floats) -> Objective:
        """Return the function to minimize: flat scaled parameters to loss and flat gradient."""
        n = len(self.Z)
        shape = (len(self.sigma) + 1, len(self.present))
        design = np.column_stack([self.Z, np.ones(n)]) / scale  # (n, r + 1)
        penalty = np.append(np.full(len(self.sigma), l2), 0.0)[:, None] / scale[:, None] ** 2
        fixed = self.offset_logits[:, self.present]

        def value_and_gradient(flat: Floats) -> tuple[float, Floats]:
            params = flat.reshape(shape)
            log_p = log_softmax(design @ params + fixed)
            cross_entropy = -float((self.one_hot * log_p).sum()) / n
            value = cross_entropy + 0.5 * float((penalty * params**2).sum())
            gradient = design.T @ ((np.exp(log_p) - self.one_hot) / n) + penalty * params
            return value, gradient.ravel()

        return value_and_gradient

    def solve(self, l2: float, start: Floats | None = None, *, tolerance: float = 1e-6) -> Floats:
        """Return the parameters that minimize the penalized loss, (r + 1, Cp); see the class.

        Args:
            l2: Strength of the penalty.
            start: Parameters to start from, (r + 1, Cp); ``None`` means zero.
            tolerance: Norm of the scaled gradient below which the search stops.
        """
        Cp = len(self.present)
        # Preconditioner: square roots of the Hessian's diagonal at uniform predictions. Without it,
        # weak penalties need very many iterations, because the singular values of log-probabilities
        # span many orders of magnitude.
        scale = np.sqrt(np.append(self.sigma**2 / (len(self.Z) * Cp) + l2, 1.0 / Cp))
        params = np.zeros((len(scale), Cp)) if start is None else start
        flat = _minimize(self.objective(l2, scale), (params * scale[:, None]).ravel(), tolerance)
        # NumPy types the quotient as Any; asarray changes nothing but the type.
        return np.asarray(flat.reshape(params.shape) / scale[:, None])

    def rotated(self, weight: Floats, bias: Floats) -> Floats:
        """Return a weight (d, C) and a bias (C,) as rotated parameters (r + 1, Cp); see the class.

        The part of the weight outside the span of the data is dropped.
        """
        rotated_weight = self.basis.T @ (weight - self.offset)
        params = np.vstack([rotated_weight, bias + self.mean @ weight])
        return params[:, self.present]

    def unrotated(self, params: Floats) -> tuple[Floats, Floats]:
        """Return rotated parameters (r + 1, Cp) as a weight (d, C) and a bias (C,); see the class.

        Classes without examples get a bias for the probability 1/(n + C).
        """
        weight = self.offset.copy()
        weight[:, self.present] += self.basis @ params[:-1]

        logits = self.Z @ params[:-1] + params[-1] + self.offset_logits[:, self.present]
        level = float(np.mean(logits - log_softmax(logits)))  # mean log of the sum of exponentials
        # The odds of a probability 1/(n + C) are 1 to n + C - 1.
        bias = level - np.log(len(self.Z) + self.C - 1) - self.offset_logits.mean(axis=0)
        bias[self.present] = params[-1]
        return weight, bias - self.mean @ weight


def _minimize(function: Objective, start: Floats, tolerance: float) -> Floats:
    """Return the parameters that minimize a smooth convex function, found by L-BFGS.

    The search stops when the norm of the gradient is below ``tolerance``, after 500 iterations, or
    where rounding errors hide any further decrease. The last two are no error: the parameters
    reached so far are returned.

    Args:
        function: Function from parameters (m,) to the value and its gradient (m,).
        start: Parameters to start from, (m,) float64.
        tolerance: Bound on the Euclidean norm of the gradient.

    Returns:
        Parameters, (m,) float64.

    Raises:
        MissingDependencyError: SciPy is not installed.
    """
    # Not at the top of the module: the light client imports this module and has no SciPy.
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
    result = minimize(until_flat, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(result.x, dtype=np.float64)


def stratified(
    labels: Integers, folds: int, seed: int, copies: int = 1
) -> Iterator[tuple[Integers, Integers]]:
    """Yield the training and held-out indices of each stratified cross-validation fold.

    The examples of every class are dealt out to the folds in turn, so the sizes of the folds differ
    by at most 1.

    Args:
        labels: Class indices, (n,) int64.
        folds: Number of folds; at least 2 and at most one per example are made.
        seed: Seed of the assignment to folds.
        copies: Number of equally long blocks in ``labels``, each with another version of the same
            examples; all versions of an example are held out together.
    """
    labels = labels[: len(labels) // copies]
    folds = min(max(folds, 2), len(labels))

    # Shuffled, then sorted by class: examples of a class follow one another in random order.
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]

    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    fold = np.tile(fold, copies)
    for f in range(folds):
        yield np.flatnonzero(fold != f), np.flatnonzero(fold == f)


def grouped(groups: Integers, folds: int, seed: int) -> Iterator[tuple[Integers, Integers]]:
    """Yield the training and held-out indices of each cross-validation fold, groups undivided.

    Args:
        groups: Group number of each example, (n,) int64.
        folds: Number of folds; at least 2 and at most one per group are made.
        seed: Seed of the assignment to folds.

    Raises:
        ConfigurationError: There are fewer than 2 groups.
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
    """Raise an error unless the examples are valid for fitting a classifier.

    Args:
        X: Features, (n, d) float64.
        y: Class indices, (n,) int64 in [0, C).
        C: Number of classes.

    Raises:
        ConfigurationError: There are fewer than 2 classes or examples, a value is not finite, or a
            label is out of range.
        ShapeError: The shapes of the arrays do not match.
    """
    if X.ndim != 2 or X.shape[1] < 1 or y.shape != (len(X),):
        raise ShapeError(
            f"fitting: got features {X.shape} and labels {y.shape}, expected (n, d) and (n,), "
            "d >= 1"
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
