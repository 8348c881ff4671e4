"""Logistic regression finds the optima that the hand-written L-BFGS of version 0.1 found.

``logistic_regression_parity.json`` holds what commit 1f3e7d6 found, before SciPy replaced that
minimiser. It was written by this module, and is written again only with the code of that commit::

    git clone . OLD && git -C OLD checkout 1f3e7d6
    OMP_NUM_THREADS=1 PYTHONPATH=OLD python tests/mapping/test_logistic_regression_parity.py

where OLD is an absolute path.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pgn_client.mapping.logistic_regression import logistic_regression, logistic_regression_cv
from pgn_client.mapping.probability import log_normalised

pytestmark = pytest.mark.slow

RECORD = Path(__file__).with_name("logistic_regression_parity.json")
PENALTIES = (1e-1, 1e-3, 1e-5)
"""l2 over the total variance of X: strong, medium and weak."""
SHOWN = 6
"""Number of rows, spread over the examples, and of classes whose log-probabilities are recorded."""


def latent(n, C, strength, seed):
    """Return 192 numbers per example, as of a hosted model, and labels (n,) in [0, C).

    RandomState, because its streams never change with NumPy's version.
    """
    rng = np.random.RandomState(seed)
    y = np.arange(n) % C
    z = rng.normal(size=(n, 192)) + strength * rng.normal(size=(C, 192))[y]
    return z / np.arange(1, 193), y, rng


def answers(n, C, strength, *, S=1000, seed=0):
    """Return log-probabilities (n, S) as an endpoint's answers give, and labels (n,).

    The floor that they are raised to makes them of full rank, and their singular values span
    three decades.
    """
    z, y, rng = latent(n, C, strength, seed)
    logits = 3 * z @ rng.normal(size=(192, S))
    return log_normalised(np.exp(logits - logits.max(axis=1, keepdims=True))), y


def features(n, C, strength, *, seed=0):
    """Return standardised features (n, 192) of a backbone, and labels (n,)."""
    z, y, rng = latent(n, C, strength, seed)
    x = z @ rng.normal(size=(192, 192))
    return (x - x.mean(axis=0)) / x.std(axis=0), y


def without_two(X, y):
    """Give the labels numbers in [0, C + 2) of which two never occur."""
    return X, np.where(y >= 3, y + 2, y)


# name: (features and labels, number of classes, offset)
PROBLEMS = {
    "5 classes": (lambda: answers(240, 5, 0.3), 5, None),
    "10 classes": (lambda: answers(480, 10, 0.3), 10, None),
    "101 classes": (lambda: answers(240, 101, 1.5), 101, None),
    "10 classes, 960 examples": (lambda: answers(960, 10, 0.3), 10, None),
    "101 classes, 960 examples": (lambda: answers(960, 101, 0.6), 101, None),
    "features": (lambda: features(480, 10, 0.3), 10, None),
    "offset": (lambda: answers(240, 10, 0.3, S=10), 10, np.eye(10)),
    "two absent classes": (lambda: without_two(*answers(240, 10, 0.4)), 12, None),
}
SLOW = ("101 classes, 960 examples",)
"""Their weak penalty is not tried, and nothing is cross-validated."""


@cache
def problem(name):
    """Return features, labels, number of classes, offset, and total variance of the features."""
    make, C, offset = PROBLEMS[name]
    X, y = make()
    return X, y, C, offset, float(X.var(axis=0).sum())


@cache
def recorded():
    return json.loads(RECORD.read_text())


def log_probabilities(X, weight, bias):
    logits = X @ weight + bias
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def objective(name, weight, bias, l2):
    """Mean cross-entropy plus penalty, over the classes with examples; from its definition."""
    X, y, _, offset, _ = problem(name)
    present = np.unique(y)
    log_p = log_probabilities(X, weight[:, present], bias[present])
    likelihood = log_p[np.arange(len(y)), np.searchsorted(present, y)].mean()
    distance = weight if offset is None else weight - offset
    return float(l2 / 2 * np.sum(distance**2) - likelihood)


@cache
def found(name, penalty):
    """Return the objective at the optimum that is found, and some log-probabilities there."""
    X, y, C, offset, variance = problem(name)
    l2 = penalty * variance
    weight, bias = logistic_regression(X, y, C, l2, offset=offset)
    rows = np.linspace(0, len(X) - 1, SHOWN).astype(int)
    log_p = log_probabilities(X[rows], weight, bias)[:, :SHOWN]
    return {"objective": objective(name, weight, bias, l2), "log_p": log_p.tolist()}


def cross_validated(name):
    """Return the penalty, over the total variance, and the log-loss that cross-validation chose."""
    X, y, C, offset, variance = problem(name)
    fit = logistic_regression_cv(X, y, C, offset=offset)
    return {"penalty": fit.l2 / variance, "log_loss": fit.log_loss}


def cases():
    return [(name, p) for name in PROBLEMS for p in PENALTIES[: 2 if name in SLOW else 3]]


@pytest.mark.parametrize(("name", "penalty"), cases())
def test_the_optimum_is_as_good_as_before(name, penalty):
    before = recorded()["fits"][name][str(penalty)]["objective"]
    assert found(name, penalty)["objective"] <= before + 1e-6


@pytest.mark.parametrize(("name", "penalty"), cases())
def test_predictions_are_those_from_before(name, penalty):
    before = recorded()["fits"][name][str(penalty)]["log_p"]
    np.testing.assert_allclose(found(name, penalty)["log_p"], before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in SLOW])
def test_cross_validation_chooses_as_before(name):
    before, now = recorded()["cross_validated"][name], cross_validated(name)
    assert now["penalty"] == pytest.approx(before["penalty"])
    assert now["log_loss"] == pytest.approx(before["log_loss"], abs=1e-4)


def record():
    fits = {name: {} for name in PROBLEMS}
    for name, penalty in cases():
        fit = found(name, penalty)
        fits[name][str(penalty)] = fit | {"log_p": np.round(fit["log_p"], 6).tolist()}
    chosen = {name: cross_validated(name) for name in PROBLEMS if name not in SLOW}
    lines = [f'  "{name}": {json.dumps(fit)}' for name, fit in fits.items()]
    text = '{\n "fits": {\n' + ",\n".join(lines) + "\n },\n"
    RECORD.write_text(text + f' "cross_validated": {json.dumps(chosen, indent=2)}\n}}\n')


if __name__ == "__main__":
    record()
