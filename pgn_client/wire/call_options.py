"""Options of one call, which ``with_options`` can change, and their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pgn_client.arrays import Floats
from pgn_client.checkpoint.card import ServedCard
from pgn_client.errors import ConfigurationError
from pgn_client.mapping.fusion import is_confident
from pgn_client.wire.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Weights:
    """How a client weighs the local head, the checkpoint's own small classifier.

    Attributes:
        fusion: Weight in [0, 1] of the local head against the endpoint; ``auto`` for the weight in
            the checkpoint, or None for 0.
        query_below: Confidence in [0, 1] from which the local head answers alone, or None.
    """

    fusion: float | Literal["auto"] | None = "auto"
    query_below: float | None = None

    def of(self, card: ServedCard, local: Floats | None) -> float:
        """Return the weight of the local head, in [0, 1].

        Args:
            card: Card of the checkpoint, its metadata.
            local: (C,) log-probabilities of the C task classes from the local head, or None without
                one.

        Raises:
            ConfigurationError: The caller's options need a local head, and there is none.
        """
        if local is None and self.query_below is not None:
            raise ConfigurationError(
                "query_below needs a checkpoint with a local head: got one without"
            )
        if self.fusion == "auto":
            return float(card.fusion) if card.fusion is not None and local is not None else 0.0

        alpha = float(self.fusion or 0.0)
        if local is None and alpha > 0:
            raise ConfigurationError("fusion needs a checkpoint with a local head: got one without")
        return alpha

    def answers_alone(self, card: ServedCard, local: Floats | None) -> bool:
        """Whether the local head answers an image alone, so that nothing is sent.

        The arguments and errors are those of ``of``.
        """
        # With weight 1 the endpoint's answer would not count, so it is not requested.
        if self.of(card, local) == 1.0:
            return True
        if self.query_below is None or local is None:
            return False
        return bool(is_confident(local[None], self.query_below)[0])

    def sends_all(self, card: ServedCard) -> bool:
        """Whether every image needs the endpoint's answer, whatever the local head says."""
        alpha = card.fusion if self.fusion == "auto" else self.fusion
        return self.query_below is None and alpha != 1


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Options of one call, checked.

    Attributes:
        timeout: Time limit for one call in seconds, including retries.
        max_retries: Largest number of retries of one call.
        weights: Weight of the local head.

    Raises:
        ConfigurationError: An option is invalid.
    """

    timeout: float = 30.0
    max_retries: int = 4
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        check_number("timeout", self.timeout, "seconds, above 0", above=0)
        check_whole("max_retries", self.max_retries, least=0)
        fusion = self.weights.fusion
        if fusion not in ("auto", None):
            check_share("fusion", fusion, '"auto", None, or a number in [0, 1]')
        if self.weights.query_below is not None:
            expected = "a probability in [0, 1], or None"
            check_share("query_below", self.weights.query_below, expected)

    @property
    def policy(self) -> RetryPolicy:
        """Retry policy with this number of retries."""
        return RetryPolicy(max_retries=int(self.max_retries))

    def check_checkpoint(self, has_checkpoint: bool) -> None:
        """Check that options which need a checkpoint have one.

        Raises:
            ConfigurationError: There is no checkpoint, and an option needs its local head.
        """
        weights = self.weights
        if not has_checkpoint and (
            weights.query_below is not None or weights.fusion not in ("auto", None, 0)
        ):
            raise ConfigurationError(
                "fusion and query_below need a checkpoint with a local head: got pgn_ckpt=None"
            )


def check_number(name: str, value: Any, expected: str, *, above: float) -> None:
    """Check that an option is a finite number above a bound."""
    if not (_is_number(value) and above < value < math.inf):
        raise ConfigurationError(f"{name}: got {value!r}, expected {expected}")


def check_share(name: str, value: Any, expected: str) -> None:
    """Check that an option is a number in [0, 1]."""
    if not (_is_number(value) and 0 <= value <= 1):
        raise ConfigurationError(f"{name}: got {value!r}, expected {expected}")


def check_whole(name: str, value: Any, *, least: int) -> None:
    """Check that an option is a whole number of at least ``least``."""
    # int() of infinity would raise OverflowError.
    is_whole = _is_number(value) and math.isfinite(value) and value == int(value)
    if not is_whole or value < least:
        raise ConfigurationError(f"{name}: got {value!r}, expected a whole number, {least} or more")


def _is_number(value: Any) -> bool:
    # Comparing another type would raise TypeError; a bool is an int in Python, but no number here.
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
