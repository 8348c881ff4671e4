"""Send the images of a probe, count them, and measure the distance between two answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np
from PIL import Image

from pgn_client.errors import BudgetExceededError, ConfigurationError
from pgn_client.types import Answer

Ask = Callable[[Sequence[Image.Image]], list[Answer]]

UNROUNDED = 9  # a score with so many decimal places is an unrounded float32 or float64
SMALLEST = 1e-9  # added to probabilities before their logarithm is taken
DAMPING = 10  # rounding steps, added to probabilities likewise
# Smallest meaningful distance in log-scores: a server may sum floats in another order on another
# day or in another batch.
FLOOR = 1e-3
ANOTHER_LABEL = 1.0  # typical distance, in log-scores or logits, if the best label changes
GONE = 0.1  # share of the control's distance below which two answers count as equal
SENSITIVE = 10  # multiple of the floor that a control must reach before equal answers mean anything


class LimitReachedError(Exception):
    """The next images would exceed a probe's limit of images, or the budget is spent.

    :func:`pgn_client.probe.probe` catches it and keeps the findings so far.
    """


class Prober:
    """Sends the images of a probe, at most ``limit``, and keeps every answer.

    Attributes:
        limit: Largest number of images to send; lowered when the client's budget is spent.
        answers: Answers in the order of sending.
        decimals: Most decimal places of any score so far.
    """

    def __init__(self, ask: Ask, limit: int) -> None:
        if limit < 2:
            raise ConfigurationError(
                f"probe: got a limit of {limit} images, expected at least 2; 40 are enough"
            )
        self._ask = ask
        self.limit = limit
        self.answers: list[Answer] = []
        self.decimals = 0
        self._pairs: list[tuple[Answer, Answer]] = []

    def __call__(self, *images: Image.Image) -> list[Answer]:
        """Send images together and return their answers.

        Raises:
            LimitReachedError: The images would exceed the limit (then none is sent), or the
                client's budget was spent on the way.
            BudgetExceededError: The budget was spent before the first answer.
        """
        if len(images) > self.left:
            raise LimitReachedError
        try:
            answers = self._ask(images)
        except BudgetExceededError:
            if not self.answers:
                raise
            # A spent budget ends the probe like its limit: the findings so far are kept.
            self.limit = len(self.answers)
            raise LimitReachedError from None

        self.answers += answers
        for answer in answers:
            self.decimals = max([self.decimals, *map(decimals, answer.scores)])
        return answers

    def twice(self, image: Image.Image) -> Answer:
        """Send one image twice, to measure the noise, and return the first answer."""
        first, second = self(image, image)
        self._pairs.append((first, second))
        return first

    def response(self, base: Answer, image: Image.Image) -> float:
        """Send an image and return the distance of its answer from an earlier answer, ``base``."""
        return self.distance(base, self(image)[0])

    @property
    def left(self) -> int:
        """Number of images that may still be sent."""
        return self.limit - len(self.answers)

    @property
    def scores(self) -> int:
        """Smallest number of scores in any answer."""
        return min(len(answer.scores) for answer in self.answers)

    @property
    def noise(self) -> float:
        """Largest distance between two answers to the same image; 0 if none was sent twice."""
        return max((self.distance(*pair) for pair in self._pairs), default=0.0)

    @property
    def floor(self) -> float:
        """Smallest :meth:`distance` of two answers that shows a real difference.

        A smaller distance may be noise, or the rounding of the top score.
        """
        hidden = 0.0
        if self.decimals < UNROUNDED:
            step = 10.0**-self.decimals
            best = float(np.median([max(answer.scores) for answer in self.answers]))
            hidden = 2 * step if self._logits else 2 * step / (best + DAMPING * step)
        # The noise is known from one pair of answers, so other answers may differ by more.
        return max(FLOOR, hidden, 4 * self.noise)

    def distance(self, one: Answer, other: Answer) -> float:
        """Return the distance of two answers: the largest difference between their log-scores.

        For logits, it is the largest difference between the scores themselves.

        The distance is a lower bound, because a rounded score lies anywhere within half a rounding
        step. A label may be missing in one answer. It then counts with that answer's smallest
        score, or with the probability that the answer's scores leave over if that is less. If each
        answer has one label only, and the labels differ, this bound would be far too low; then the
        distance is at least ``ANOTHER_LABEL``.
        """
        if len(one.labels) == len(other.labels) == 1 and one.labels != other.labels:
            return max(ANOTHER_LABEL, self._apart(one.scores[0], other.scores[0]))

        labels = set(one.labels) | set(other.labels)
        first = _scores(one)
        second = _scores(other)
        return max(
            self._apart(first.get(name, first[""]), second.get(name, second[""])) for name in labels
        )

    def gone(self, response: float, *, beside: float) -> bool:
        """Whether the distance between two answers is negligible compared with a control's.

        Args:
            response: Distance between the answers to a pair of images.
            beside: Distance of the control: a pair that differs as much, and whose difference
                surely reaches the model.
        """
        return beside >= SENSITIVE * self.floor and response <= max(self.floor, GONE * beside)

    @property
    def _logits(self) -> bool:
        """Whether distances are those of logits; one answer that shows it decides for all."""
        return any(answer.kind == "logits" for answer in self.answers)

    def _apart(self, one: float, other: float) -> float:
        """Return the smallest difference of two scores, or of their logs, before rounding."""
        low, high = sorted((one, other))
        step = 10.0**-self.decimals if self.decimals < UNROUNDED else 0.0
        if self._logits:
            return max(0.0, high - low - step)

        # Without an offset, one rounding step of a score near 0 would outweigh all other scores.
        offset = max(SMALLEST, DAMPING * step)
        # An embedding may have negative numbers, which have no logarithm.
        high_at_least = max(high, 0.0) - step / 2 + offset
        low_at_most = max(low, 0.0) + step / 2 + offset
        return max(0.0, math.log(high_at_least / low_at_most))


def _scores(answer: Answer) -> dict[str, float]:
    """Return label -> score of an answer; the key ``""`` has the score of all missing labels."""
    least = min(answer.scores)
    rest = max(0.0, min(least, 1 - sum(answer.scores)))
    # Only the scores of a missing label that are probabilities are bounded by what is left over.
    if answer.kind in ("logits", "unknown"):
        rest = least
    return {"": rest} | dict(zip(answer.labels, answer.scores, strict=True))


def decimals(score: float) -> int:
    """Return the number of decimal places of the shortest text that parses as ``score``."""
    exponent = Decimal(repr(score)).normalize().as_tuple().exponent
    # Infinity and NaN have a letter instead of an exponent.
    return max(0, -exponent) if isinstance(exponent, int) else 0
