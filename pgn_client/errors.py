"""Every exception that this library raises.

::

    PGNError
    ├─ ConfigurationError (ValueError)       unknown name (lists the valid ones), wrong option
    ├─ ShapeError (ValueError)               an array or image of the wrong shape
    ├─ ImageError                            cannot decode; too large; too small
    ├─ CheckpointError                       unreadable; other schema; made for another backbone
    ├─ MissingDependencyError (ImportError)  carries the exact pip command
    ├─ BudgetExceededError                   carries spent and limit
    └─ EndpointError                         endpoint, attempts, request id; never the credential
       ├─ ConnectionFailedError
       ├─ TimedOutError
       ├─ ProtocolMismatchError              carries an excerpt of the response
       ├─ NotRecordedError                   replay mode, and this answer is not recorded
       ├─ SurrogateMismatchError             the endpoint hosts another model than was claimed
       └─ StatusError                        carries the HTTP status
          ├─ AuthenticationError             401, 403
          ├─ InvalidRequestError             other 4xx
          ├─ RateLimitedError                429
          └─ ServerError                     5xx

The form of a message is *what failed: got X, expected Y; do Z.*
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unicodedata import category


class PGNError(Exception):
    """Base class of all errors that this library raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle needs to rebuild the error with all its attributes."""
        # By default, pickle calls the constructor with the message alone; some errors need more.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[PGNError], args: tuple[Any, ...], state: dict[str, Any]) -> PGNError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(PGNError, ValueError):
    """A name is unknown or an option value is invalid; the message says what is expected."""


class ShapeError(PGNError, ValueError):
    """An array or image has the wrong shape."""


class ImageError(PGNError):
    """An image cannot be decoded, is too large, or is too small."""


class CheckpointError(PGNError):
    """A checkpoint cannot be read, or was made for another schema, backbone or preprocessing."""


class MissingDependencyError(PGNError, ImportError):
    """An optional package is missing; one of pgn-client's pip extras installs it.

    Attributes:
        command: Exact pip command that installs the package.
    """

    def __init__(self, what: str, extra: str) -> None:
        self.command = f"pip install 'pgn-client[{extra}]'"
        super().__init__(f"{what} needs packages that are not installed; run: {self.command}")


CONCERN_ALL = (CheckpointError, ConfigurationError, MissingDependencyError)
"""Errors that would meet every other image of a run too."""


class BudgetExceededError(PGNError):
    """The next image would exceed the budget, the limit of images to send; it was not sent.

    Attributes:
        spent: Number of images sent so far, retries included.
        limit: Budget, in images.
    """

    def __init__(self, spent: int, limit: int) -> None:
        self.spent = spent
        self.limit = limit
        super().__init__(
            f"budget exhausted: {spent} of {limit} images are spent; raise budget= to send more"
        )


class EndpointError(PGNError):
    """The endpoint was unreachable, refused the request, or returned an unreadable response.

    Attributes:
        endpoint: Host and path, without any credential.
        attempts: Number of requests sent for this call, retries included.
        request_id: Server's identifier of the last request; ``None`` if it returned none.
    """

    def __init__(
        self, message: str, *, endpoint: str, attempts: int = 1, request_id: str | None = None
    ) -> None:
        self.endpoint = endpoint
        self.attempts = attempts
        self.request_id = request_id
        super().__init__(message)


class ConnectionFailedError(EndpointError):
    """The connection failed, or broke before the response was complete."""


class TimedOutError(EndpointError):
    """A call to the endpoint did not finish, retries included, before its deadline."""


class ProtocolMismatchError(EndpointError):
    """The response does not follow the protocol; the message quotes up to 200 characters."""


class NotRecordedError(EndpointError):
    """A client in replay mode, which sends nothing, found no recorded answer for an image."""


class SurrogateMismatchError(EndpointError):
    """The endpoint's labels differ from the surrogate's, although both should be one model."""


class StatusError(EndpointError):
    """The endpoint returned an HTTP error status.

    Attributes:
        status: HTTP status code.
        lasting: Whether the endpoint asked to wait longer than the retry policy allows, so that the
            next image will fare no better.
    """

    lasting = False

    def __init__(
        self,
        message: str,
        *,
        status: int,
        endpoint: str,
        attempts: int = 1,
        request_id: str | None = None,
    ) -> None:
        self.status = status
        super().__init__(message, endpoint=endpoint, attempts=attempts, request_id=request_id)


class AuthenticationError(StatusError):
    """HTTP status 401 or 403: the API key is missing, wrong, or lacks the permission."""


class InvalidRequestError(StatusError):
    """HTTP status 4xx except 401, 403 and 429: the request is refused; a retry would not help."""


class RateLimitedError(StatusError):
    """The endpoint returned HTTP status 429, too many requests, until retries or time ran out."""


class ServerError(StatusError):
    """The endpoint returned an HTTP status 5xx until the retries or the deadline ran out."""


@contextmanager
def reading(what: str, remedy: str, kind: type[PGNError] = ConfigurationError) -> Iterator[None]:
    """Context manager around the reading of a file of unknown origin: its one border.

    Whatever such a file makes Python raise becomes one error of this library, in one line.

    Args:
        what: Name of the file for the message, such as ``endpoint file a.json``.
        remedy: What the file should be, or what to do.
        kind: Type of the error.

    Raises:
        PGNError: The block failed; an error of this library passes through unchanged.
    """
    try:
        yield
    except PGNError:
        raise
    # Every type, because a crafted file finds every one: a number as large as 1e999, a hundred
    # thousand nested lists, a list in place of an object, an array that no memory can hold.
    except Exception as error:
        raise kind(f"{what}: cannot be read ({reason(error)}); {remedy}") from error


def reason(error: Exception) -> str:
    """Return why a file could not be read or written, as a short text in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError) and error.args:
        return printable(f"{error.args[0]!r} is missing")[:120]
    return printable(" ".join(str(error).split()))[:120] or type(error).__name__


def printable(text: str, keep: str = "") -> str:
    r"""Return a text in which no character acts on a terminal or breaks a line.

    Line breaks, escape sequences and characters that reverse the direction of writing become
    ``\uXXXX``, as in JSON.

    Args:
        text: Text that may hold names from other people's files.
        keep: Characters to leave as they are.
    """
    if text.isprintable():
        return text
    # Zs: spaces, such as the one that forbids a line break, which Python counts as not printable.
    # json.dumps writes an ASCII control character as \u001b too, and two escapes beyond \uffff.
    return "".join(
        c if c.isprintable() or c in keep or category(c) == "Zs" else json.dumps(c)[1:-1]
        for c in text
    )
