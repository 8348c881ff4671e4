"""Hypotheses about a server, weighed by how far its answers moved: which question tells most, and
what an answer says.

An overlay that reaches the model with an amplitude of ``a`` grey levels (root of the mean square
over what the model sees) moves the scores by about ``expected(a)``, in units in which the control
moves them by ``CONTROL``; models saturate. The spread about that is wide, wider for faint overlays
(a model may be deaf to them) and for answers of few scores, one of which may stay where it is by
accident. Its tails are a Student's: no single answer decides.

The numbers were measured on random servers (``benchmarks/probe_servers.py``, seeds 1000 to 1015).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from pgn_client.arrays import Floats, Integers
from pgn_client.probe.queries import Asker

Which = Integers | slice
Q = TypeVar("Q", bound=Hashable)

CONTROL = 21.7  # grey levels: a grating of amplitude 50, faded out at the edges
MOST, KNEE = 24.0, 8.0  # where answers saturate, and how soon
FADE = 0.7  # grey levels below which they fade faster
BELOW = 4.0  # times below the floor: what is taken for the response to nothing
FAINT, CLEAR = 1.0, 5.0  # grey levels from which an overlay is seen by most models, and in any case
FAINTEST_SPREAD, FAINT_SPREAD = 1.6, 1.2  # of the logarithm, below the first and the second
CLEAR_SPREAD = {1: 1.3, 2: 0.9, 3: 0.7, 4: 0.6}  # by scores per answer
MANY_SPREAD = 0.5
NOTHING, NOTHING_SPREAD = 0.02, 0.4  # what is not there at all: answers are then equal
# How well a model hears an overlay of another kind than the control (waves along one edge,
# colours), and how often: the same for all of that kind, so it is part of a hypothesis.
HEARD, EAR = np.array([2.5, 1.0, 0.4, 0.1, 0.01]), np.array([0.2, 0.5, 0.2, 0.07, 0.03])
LEVELS = np.array([0.0, *np.geomspace(0.03, 60, 47)])  # amplitudes, and ...
SEEN = np.geomspace(0.03, 90, 24)  # ... responses, for `information`
CONSIDERED = 1000  # of the likeliest hypotheses, in the choice of a question


class Belief(Generic[Q]):
    """Weights of hypotheses, and the responses that they stand on.

    Attributes:
        weights: (H,), not normalised.
        responses: question → how far the answer moved.
        control: the largest response to a question that every hypothesis lets through, or to any
            like it.
    """

    def __init__(
        self, asker: Asker, prior: Floats, amplitudes: Callable[[Q, Which], Floats]
    ) -> None:
        """Begin with a prior.

        Args:
            asker: knows the floor of its distances, and how many scores an answer has.
            prior: (H,).
            amplitudes: a question and H' of the hypotheses → (H',) grey levels that reach the model
                under each; NaN where one says nothing.
        """
        self._asker = asker
        self._prior = prior
        self._amplitudes = amplitudes
        self.weights = prior
        self.responses: dict[Q, float] = {}
        self.control = 0.0

    def learn(self, question: Q, response: float, *, control: bool = True) -> None:
        """Weigh every hypothesis by what it predicted.

        Args:
            question: what was asked.
            response: how far the answer moved.
            control: whether a larger response than all before makes a new control; all weights are
                then found anew.
        """
        self.responses[question] = response
        if self.control and not (control and response > self.control):
            self._weigh(question)
            return
        self.control = max(response, self._asker.floor)
        self.weights = self._prior
        for earlier in self.responses:
            self._weigh(earlier)

    def best(self, questions: Iterable[Q]) -> tuple[Q, float] | None:
        """Return the new question that is expected to tell most, and how many bits; ``None`` if
        there is none.
        """
        new = [question for question in questions if question not in self.responses]
        if not new:
            return None
        likely = np.argsort(-self.weights)[:CONSIDERED]
        amplitudes = np.stack([self._amplitudes(question, likely) for question in new])
        bits = information(self.weights[likely], amplitudes, self.floor, self._asker.scores)
        return new[int(bits.argmax())], float(bits.max())

    @property
    def shares(self) -> Floats:
        """(H,) the weights, summing to 1."""
        return np.asarray(self.weights / self.weights.sum())

    @property
    def floor(self) -> float:
        """The least response that means anything, in units of the control."""
        return self._asker.floor / self.control * CONTROL

    def _weigh(self, question: Q) -> None:
        response = self.responses[question] / self.control * CONTROL
        likely = likelihood(
            response, self._amplitudes(question, slice(None)), self.floor, self._asker.scores
        )
        told = np.isfinite(likely)
        neutral = (
            np.average(likely[told], weights=self.weights[told])
            if self.weights[told].any()
            else 1.0
        )
        self.weights = self.weights * np.where(told, likely, neutral)
        self.weights = self.weights / self.weights.max()


def expected(amplitude: ArrayLike) -> Floats:
    """Return the response to an amplitude in grey levels, in units of the control."""
    amplitude = np.asarray(amplitude)
    return np.asarray(MOST * (1 - np.exp(-(amplitude**2) / (amplitude + FADE) / KNEE)))


def likelihood(response: ArrayLike, amplitude: ArrayLike, floor: float, scores: int) -> Floats:
    """Return the density of a response's logarithm or, where it is below the floor, the probability
    of that.

    Args:
        response: in units of the control.
        amplitude: grey levels at the model; broadcast with ``response``.
        floor: the least response that means anything.
        scores: per answer.
    """
    amplitude = np.asarray(amplitude)
    clear = CLEAR_SPREAD.get(scores, MANY_SPREAD)
    faint = np.where(amplitude < FAINT, FAINTEST_SPREAD, max(FAINT_SPREAD, clear))
    spread = np.where(
        amplitude < NOTHING, NOTHING_SPREAD, np.where(amplitude < CLEAR, faint, clear)
    )
    away = (
        np.log(np.maximum(response, floor) / np.maximum(expected(amplitude), floor / BELOW))
        / spread
    )
    return np.where(np.asarray(response) > floor, _density(away) / spread, _cumulated(away))


def _density(t: Floats) -> Floats:
    """Of Student's distribution with 4 degrees of freedom."""
    return np.asarray(0.375 * (1 + t**2 / 4) ** -2.5)


def _cumulated(t: Floats) -> Floats:
    """The integral of the density from minus infinity."""
    share = t**2 / (1 + t**2 / 4)
    return np.asarray(0.5 + 0.375 * t / np.sqrt(1 + t**2 / 4) * (1 - share / 12))


def information(weights: Floats, amplitudes: Floats, floor: float, scores: int) -> Floats:
    """Return how many bits each of Q questions is expected to tell.

    Args:
        weights: (H,) of the hypotheses.
        amplitudes: (Q, H) grey levels, what each hypothesis predicts; NaN where it says nothing.
        floor: as in ``likelihood``.
        scores: as in ``likelihood``.
    """
    seen = np.array([floor, *SEEN[floor < SEEN]])
    steps = np.array([1.0, *np.full(len(seen) - 1, np.log(SEEN[1] / SEEN[0]))])
    table = likelihood(seen[None], LEVELS[:, None], floor, scores) * steps  # (levels, responses)
    table /= table.sum(axis=1, keepdims=True)
    told = np.where(np.isfinite(amplitudes), weights, 0.0)
    level = np.searchsorted(LEVELS[1:], np.nan_to_num(amplitudes))
    share = np.stack([np.bincount(*row, len(LEVELS)) for row in zip(level, told, strict=True)])
    known = share.sum(axis=1)
    share = share / np.maximum(known, 1e-300)[:, None]
    return np.asarray((_entropy(share @ table) - share @ _entropy(table)) * known / weights.sum())


def _entropy(shares: Floats) -> Floats:
    return np.asarray(-np.sum(shares * np.log2(np.maximum(shares, 1e-300)), axis=-1))
