"""Images sent and counted, and how far two answers are apart, beside what the answers could show
at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np
from PIL import Image

from pgn_client.errors import BudgetExceededError, ConfigurationError
from pgn_client.types import Answer

Ask = Callable[[Sequence[Image.Image]], list[Answer]]

UNROUNDED = 9  # decimals and more: what is left of a float32 or float64 that nobody rounded
SMALLEST = 1e-9  # added to probabilities before their logarithm is taken
DAMPING = 10  # steps of the rounding, added likewise
# log-scores: a server adds images up in another order, on another day, in another batch
FLOOR = 1e-3
ANOTHER_LABEL = 1.0  # log-scores, or logits: what usually lies behind it
GONE = 0.1  # of the control's distance: a metamer
SENSITIVE = 10  # times the floor: what the control must reach before equal answers mean anything


class LimitReachedError(Exception):
    """The next images would exceed the limit; caught by :func:`pgn_client.probe.probe` alone."""


class Asker:
    """Sends images, never more than ``limit``, and keeps every answer.

    Attributes:
        limit: the most images that are sent; less once a budget has ended.
        answers: in the order of sending.
        decimals: the most digits after the point of any score so far.
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
            LimitReachedError: they would be too many, and none is sent; or the client's budget
                ended on the way.
        """
        if len(images) > self.left:
            raise LimitReachedError
        try:
            answers = self._ask(images)
        except BudgetExceededError:
            if not self.answers:
                raise
            self.limit = len(self.answers)
            raise LimitReachedError from None
        self.answers += answers
        self.decimals = max(
            [self.decimals, *(decimals(score) for answer in answers for score in answer.scores)]
        )
        return answers

    def twice(self, image: Image.Image) -> Answer:
        """Send one image two times, for the noise, and return the first answer."""
        first, second = self(image, image)
        self._pairs.append((first, second))
        return first

    def response(self, base: Answer, image: Image.Image) -> float:
        """Send an image and return how far its answer is from ``base``."""
        return self.distance(base, self(image)[0])

    @property
    def left(self) -> int:
        """How many images may still be sent."""
        return self.limit - len(self.answers)

    @property
    def scores(self) -> int:
        """The fewest scores of any answer."""
        return min(len(answer.scores) for answer in self.answers)

    @property
    def noise(self) -> float:
        """The largest distance between answers to one image."""
        return max((self.distance(*pair) for pair in self._pairs), default=0.0)

    @property
    def floor(self) -> float:
        """What a distance must exceed to mean anything: the noise, and what the rounding hides of
        the best score.
        """
        hidden = 0.0
        if self.decimals < UNROUNDED:
            step, best = (
                10.0**-self.decimals,
                float(np.median([max(answer.scores) for answer in self.answers])),
            )
            hidden = 2 * step if self._logits else 2 * step / (best + DAMPING * step)
        return max(FLOOR, hidden, 4 * self.noise)

    def distance(self, one: Answer, other: Answer) -> float:
        """Return the largest difference between two answers' log-scores (of logits: of the scores
        themselves).

        It is a lower bound: a rounded score lies anywhere within half a step, and a label that one
        answer does not name may have its smallest score, or its residual mass where that is less.
        Between answers of one label each, which differ, it is at least ``ANOTHER_LABEL``: the bound
        would be far too low.
        """
        if len(one.labels) == len(other.labels) == 1 and one.labels != other.labels:
            return max(ANOTHER_LABEL, self._apart(one.scores[0], other.scores[0]))
        labels = set(one.labels) | set(other.labels)
        first, second = _scores(one), _scores(other)
        return max(
            self._apart(first.get(name, first[""]), second.get(name, second[""])) for name in labels
        )

    def gone(self, response: float, *, beside: float) -> bool:
        """Whether a distance is nothing beside a control's, an image which differs as much and is
        surely seen.
        """
        return beside >= SENSITIVE * self.floor and response <= max(self.floor, GONE * beside)

    @property
    def _logits(self) -> bool:
        return self.answers[0].kind == "logits"

    def _apart(self, one: float, other: float) -> float:
        low, high = sorted((one, other))
        step = 10.0**-self.decimals if self.decimals < UNROUNDED else 0.0
        if self._logits:
            return max(0.0, high - low - step)
        # or one step of a score near 0 would outweigh all others
        offset = max(SMALLEST, DAMPING * step)
        return max(
            0.0,
            math.log((max(high, 0.0) - step / 2 + offset) / (max(low, 0.0) + step / 2 + offset)),
        )


def _scores(answer: Answer) -> dict[str, float]:
    """Label → score; the empty label stands for all that are not named."""
    least = min(answer.scores)
    rest = least if answer.kind == "logits" else max(0.0, min(least, 1 - sum(answer.scores)))
    return {"": rest} | dict(zip(answer.labels, answer.scores, strict=True))


def decimals(score: float) -> int:
    """Return the digits after the point of the shortest text that reads as ``score``."""
    exponent = Decimal(repr(score)).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
