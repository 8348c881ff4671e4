"""The results under way of a run of many images, and when the run must end.

An endpoint that answers every image with "no such model", or with a sign-in page, would otherwise
be sent, and may bill, the whole folder.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from pgn_client.errors import (
    CONCERN_ALL,
    AuthenticationError,
    ConnectionFailedError,
    InvalidRequestError,
    PGNError,
    ProtocolMismatchError,
    StatusError,
    TimedOutError,
)
from pgn_client.types import ImageFailure

T = TypeVar("T")


class Done(NamedTuple, Generic[T]):
    """Result of one image of a run.

    Attributes:
        result: Prediction, answer or ``ImageFailure``.
        sent: Whether the endpoint was asked; a recorded or local answer says nothing about it.
    """

    result: T
    sent: bool


class Future(Protocol):
    """The part of a future that a window uses; both kinds of futures have it."""

    def done(self) -> bool:
        """Whether the result is there, or will never be."""
        ...

    def cancelled(self) -> bool:
        """Whether the result will never be there."""
        ...


F = TypeVar("F", bound=Future)

AT_ONCE = frozenset({401, 402, 403, 404})
"""Statuses about the key, the account or the URL, which are the same for every image."""
ABOUT_THE_IMAGE = frozenset({400, 413, 415, 422})
"""Statuses that one image may cause and the next one need not."""
IN_A_ROW = 3
"""Number of images that are refused alike, one after another, before a run ends."""


class Window(Generic[F]):
    """The open results of one run, in the order of its images.

    Until the endpoint has answered an image, the images are sent one at a time, so that an endpoint
    that refuses them all gets few.

    Args:
        most: Number of open results at which the oldest one is awaited.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: deque[F] = deque()
        self._answered = False
        self._fatal: PGNError | None = None
        self._last: tuple[type[PGNError], int | None] | None = None
        self._count = 0

    def add(self, future: F) -> None:
        """Add the result of an image that has just been sent."""
        self._open.append(future)

    def due(self, *, last: bool = False) -> F | None:
        """Remove and return the oldest result if it is done or must be waited for, else None.

        Args:
            last: Whether no further image follows, so that every result must be waited for.
        """
        goes_on = self._answered and self._fatal is None and not last
        limit = self._most if goes_on else 1
        while self._open and self._open[0].cancelled():
            self._open.popleft()
        if self._open and (self._open[0].done() or len(self._open) >= limit):
            return self._open.popleft()
        return None

    def rest(self) -> list[F]:
        """Return the results that are still open."""
        return list(self._open)

    @property
    def fatal(self) -> PGNError | None:
        """Error that ends the run; None while it goes on."""
        return self._fatal

    def note(self, done: Done[Any]) -> None:
        """Note the result of one image."""
        if not isinstance(done.result, ImageFailure):
            if done.sent:
                self._answered = True
                self._count = 0
            return

        error = done.result.error
        if isinstance(error, CONCERN_ALL):
            self._fatal = self._fatal or error
            return
        if not done.sent or not self._is_lasting(error):
            # A bad file, or an outage, says nothing about the next image.
            return
        status = error.status if isinstance(error, StatusError) else None
        alike = (type(error), status)
        self._count = self._count + 1 if alike == self._last else 1
        self._last = alike
        if self._count >= IN_A_ROW or status in AT_ONCE:
            self._fatal = self._fatal or _ended(error, self._count)

    def _is_lasting(self, error: PGNError) -> bool:
        """Whether the same refusal would probably meet the next image."""
        if isinstance(error, ProtocolMismatchError):
            return True
        if isinstance(error, ConnectionFailedError | TimedOutError):
            # Later, an outage may end; an endpoint that never answered may not exist.
            return not self._answered
        if isinstance(error, AuthenticationError):
            return True
        if isinstance(error, InvalidRequestError):
            if error.status in ABOUT_THE_IMAGE:
                return error.status != 413 and not self._answered
            return True
        return isinstance(error, StatusError) and (error.lasting or error.status in (501, 505))


def _ended(error: PGNError, count: int) -> PGNError:
    """Return a copy of the error with the reason why the run has ended."""
    images = "1 image" if count == 1 else f"{count} images in a row"
    # A copy, because the error of the image itself is in a result that is not yielded yet.
    ended = copy.copy(error)
    ended.args = (f"{error}; stopped, because {images} failed in this way",)
    return ended
