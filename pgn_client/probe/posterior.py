"""Weigh hypotheses about a server by how far its answers move when an image changes.

A *question* is a change to an image, such as a wave laid over it. A *response* is the distance
between the answers with and without the change. Each hypothesis predicts the amplitude *a* with
which the change reaches the model: gray levels, root of the mean square over the model's input.

Such a change moves the scores by about ``expected(a)``, which saturates for strong changes. The
scale is the one on which the control, a strong change that surely reaches the model, moves them by
``CONTROL``. The spread around this value is wide. It is even wider for faint changes, because a
model may be insensitive to them, and for answers with few scores, which may stay the same by
coincidence. The tails are those of a Student distribution, so that no single answer
decides.

The constants were measured on random servers (``benchmarks/probe_servers.py``, seeds 1000 to 1015).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from pgn_client.arrays import Floats, Integers
from pgn_client.probe.queries import Prober

Which = Integers | slice  # indices of hypotheses
Q = TypeVar("Q", bound=Hashable)

CONTROL = 21.7  # gray levels: a grating with amplitude 50 that fades out at the edges
MOST = 24.0  # response at which models saturate
KNEE = 8.0  # gray levels: the scale on which they do
FADE = 0.7  # gray levels below which responses fade faster
BELOW = 4.0  # the expected response is at least the floor divided by this
FAINT = 1.0  # gray levels above which most models respond to a change
CLEAR = 5.0  # gray levels above which every model does
FAINTEST_SPREAD = 1.6  # spread of the response's logarithm below FAINT
FAINT_SPREAD = 1.2  # likewise, between FAINT and CLEAR
CLEAR_SPREAD = {1: 1.3, 2: 0.9, 3: 0.7, 4: 0.6}  # likewise, above CLEAR, by scores per answer
MANY_SPREAD = 0.5  # likewise, for answers with more scores
NOTHING = 0.02  # gray levels below which nothing reaches the model and answers are equal
NOTHING_SPREAD = 0.4  # spread below NOTHING
# Sensitivity of a model to changes of another kind than the control (waves along one edge, colors),
# and the prior probability of each sensitivity. It is the same for all changes of one kind, so it
# is part of a hypothesis.
HEARD = np.array([2.5, 1.0, 0.4, 0.1, 0.01])
EAR = np.array([0.2, 0.5, 0.2, 0.07, 0.03])
LEVELS = np.array([0.0, *np.geomspace(0.03, 60, 47)])  # grid of amplitudes for `information`
SEEN = np.geomspace(0.03, 90, 24)  # grid of responses for `information`
# Number of the likeliest hypotheses that the choice of a question considers. A square image has
# 190,000 hypotheses and hundreds of questions, and all of them would take too long.
CONSIDERED = 1000


class Belief(Generic[Q]):
    """Weights of H hypotheses about a server, and the responses that the weights are based on.

    Attributes:
        weights: Weight of each hypothesis, (H,), not normalized.
        responses: Question (a change to an image) -> response (how far the answer moved).
        control: Unit of all responses: the first response, or a larger later one that was learned
            as a control.
    """

    def __init__(
        self, asker: Prober, prior: Floats, amplitudes: Callable[[Q, Which], Floats]
    ) -> None:
        """Start with the prior weights of the hypotheses.

        Args:
            asker: Prober, which measures the smallest meaningful distance between two answers and
                counts the scores of an answer.
            prior: Prior weights, (H,).
            amplitudes: Function of a question and of the indices of H' hypotheses. It returns the
                gray levels of the question's change that reach the model under each of them, (H',);
                NaN where a hypothesis makes no prediction.
        """
        self._asker = asker
        self._prior = prior
        self._amplitudes = amplitudes
        self.weights = prior
        self.responses: dict[Q, float] = {}
        self.control = 0.0

    def learn(self, question: Q, response: float, *, control: bool = True) -> None:
        """Update the weights of the hypotheses with the response to a question.

        Args:
            question: Change to an image that was sent.
            response: Distance between the answers with and without the change.
            control: Whether this response becomes the control if it is the largest so far. The
                control is the response that all others are divided by, so all weights are then
                computed anew.
        """
        self.responses[question] = response
        # There is no unit before the first response, so that one always becomes the control.
        is_first = not self.control
        is_largest_control = control and response > self.control
        if is_first or is_largest_control:
            # Responses are divided by the control, which must not be 0.
            self.control = max(response, self._asker.floor)
            self.weights = self._prior
            for earlier in self.responses:
                self._weigh(earlier)
        else:
            self._weigh(question)

    def best(self, questions: Iterable[Q]) -> tuple[Q, float] | None:
        """Return the change to an image, not sent before, from whose effect on the answer most is
        expected to be learned about the server.

        Args:
            questions: Candidates: changes to an image.

        Returns:
            The question and its expected information in bits; ``None`` if no candidate is new.
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
        """Probability of each of the H hypotheses, (H,)."""
        return np.asarray(self.weights / self.weights.sum())

    @property
    def floor(self) -> float:
        """Smallest meaningful response, on the scale where the control's is ``CONTROL``."""
        return self._asker.floor / self.control * CONTROL

    def _weigh(self, question: Q) -> None:
        """Multiply each hypothesis's weight by the likelihood of the response to a question."""
        response = self.responses[question] / self.control * CONTROL
        likelihoods = likelihood(
            response, self._amplitudes(question, slice(None)), self.floor, self._asker.scores
        )

        # A hypothesis without a prediction gets the average likelihood, which keeps its share.
        predicted = np.isfinite(likelihoods)
        neutral = 1.0
        # np.average refuses weights that are all 0.
        if self.weights[predicted].any():
            average = np.average(likelihoods[predicted], weights=self.weights[predicted])
            neutral = float(average)
        self.weights = self.weights * np.where(predicted, likelihoods, neutral)
        # Only ratios matter. Without this, products of many likelihoods would underflow to 0.
        self.weights = self.weights / self.weights.max()


def expected(amplitude: ArrayLike) -> Floats:
    """Return how far a change to an image is expected to move the scores.

    Args:
        amplitude: Gray levels of the change that reach the model.

    Returns:
        Expected response, on the scale where that of the control change is ``CONTROL``.
    """
    amplitude = np.asarray(amplitude)
    return np.asarray(MOST * (1 - np.exp(-(amplitude**2) / (amplitude + FADE) / KNEE)))


def likelihood(response: ArrayLike, amplitude: ArrayLike, floor: float, scores: int) -> Floats:
    """Return how likely a change of a certain amplitude moves the scores by the response.

    The likelihood is the density of the response's logarithm. For a response below the floor, it is
    the probability of a response below the floor.

    Args:
        response: Responses, on the scale where that of the control change is ``CONTROL``.
        amplitude: Gray levels of the change that reach the model; broadcast with ``response``.
        floor: Smallest meaningful response, on the same scale.
        scores: Number of scores per answer.
    """
    amplitude = np.asarray(amplitude)
    clear = CLEAR_SPREAD.get(scores, MANY_SPREAD)
    # Answers with one score have a larger spread even for clear changes than FAINT_SPREAD.
    faint = np.where(amplitude < FAINT, FAINTEST_SPREAD, max(FAINT_SPREAD, clear))
    spread = np.where(
        amplitude < NOTHING, NOTHING_SPREAD, np.where(amplitude < CLEAR, faint, clear)
    )
    center = np.maximum(expected(amplitude), floor / BELOW)
    away = np.log(np.maximum(response, floor) / center) / spread
    return np.where(np.asarray(response) > floor, _density(away) / spread, _cumulated(away))


def _density(t: Floats) -> Floats:
    """Return the density of the Student distribution with 4 degrees of freedom."""
    return np.asarray(0.375 * (1 + t**2 / 4) ** -2.5)


def _cumulated(t: Floats) -> Floats:
    """Return the probability of a value below t in the Student distribution with 4 degrees."""
    # The closed form for 4 degrees of freedom; a probe must work without SciPy.
    share = t**2 / (1 + t**2 / 4)
    return np.asarray(0.5 + 0.375 * t / np.sqrt(1 + t**2 / 4) * (1 - share / 12))


def information(weights: Floats, amplitudes: Floats, floor: float, scores: int) -> Floats:
    """Return the bits that the answer to each of Q questions is expected to give, (Q,).

    Args:
        weights: Weights of the H hypotheses, (H,).
        amplitudes: Gray levels that reach the model, by question and hypothesis, (Q, H); NaN
            where a hypothesis makes no prediction.
        floor: Smallest meaningful response, on the scale where the control's is ``CONTROL``.
        scores: Number of scores per answer.
    """
    # Probability of each response, given each amplitude: (levels, responses).
    responses = np.array([floor, *SEEN[floor < SEEN]])
    # The first likelihood, below the floor, is a probability already. The others are densities of
    # the logarithm, so each is multiplied by the step of the logarithm.
    steps = np.array([1.0, *np.full(len(responses) - 1, np.log(SEEN[1] / SEEN[0]))])
    table = likelihood(responses[None], LEVELS[:, None], floor, scores) * steps
    table /= table.sum(axis=1, keepdims=True)

    # Weight of each amplitude, for each question: (Q, levels).
    # NaN counts as level 0, but with the weight 0.
    level = np.searchsorted(LEVELS[1:], np.nan_to_num(amplitudes))
    predicting = np.where(np.isfinite(amplitudes), weights, 0.0)
    share = np.stack(
        [np.bincount(*row, len(LEVELS)) for row in zip(level, predicting, strict=True)]
    )
    total = share.sum(axis=1)
    # The total is 0 where no hypothesis makes a prediction.
    share = share / np.maximum(total, 1e-300)[:, None]

    # The mutual information of amplitude and response, among hypotheses that make a prediction. The
    # others learn nothing, so the information is multiplied by the weight of the predicting ones.
    bits = _entropy(share @ table) - share @ _entropy(table)
    return np.asarray(bits * total / weights.sum())


def _entropy(shares: Floats) -> Floats:
    """Return the entropy of probabilities along the last axis, in bits."""
    # A share of 0 contributes 0; the smallest number only avoids the logarithm of 0.
    return np.asarray(-np.sum(shares * np.log2(np.maximum(shares, 1e-300)), axis=-1))
