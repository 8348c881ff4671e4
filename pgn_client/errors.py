"""Every exception that this library raises.

::

    PGNError
    ├─ ConfigurationError (ValueError)       unknown name (lists the known ones), wrong option
    ├─ ShapeError (ValueError)               an array or image of the wrong shape
    ├─ ImageError                            cannot decode; too large; too small
    ├─ CheckpointError                       unreadable; other schema; made for another backbone
    ├─ MissingDependencyError (ImportError)  carries the exact pip command
    ├─ BudgetExceededError                   carries spent and limit
    └─ EndpointError                         endpoint, attempts, request id; never the credential
       ├─ ConnectionFailedError
       ├─ TimedOutError
       ├─ ProtocolMismatchError              carries an excerpt of the answer
       ├─ NotRecordedError                   replaying, and nothing is recorded
       └─ StatusError                        carries the status
          ├─ AuthenticationError             401, 403
          ├─ InvalidRequestError             other 4xx
          ├─ RateLimitedError                429
          └─ ServerError                     5xx

A message says *what failed: got X, expected Y; do Z.*
"""

from __future__ import annotations

from typing import Any


class PGNError(Exception):
    """Base of all errors of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep attributes when an error crosses a process boundary."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[PGNError], args: tuple[Any, ...], state: dict[str, Any]) -> PGNError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(PGNError, ValueError):
    """An unknown name or an option that does not fit; the message lists what does."""


class ShapeError(PGNError, ValueError):
    """An array or image whose shape does not fit."""


class ImageError(PGNError):
    """An image that cannot be decoded, is too large, or is too small."""


class CheckpointError(PGNError):
    """A checkpoint that cannot be read, or was made for another schema, backbone or
    preprocessing.
    """


class MissingDependencyError(PGNError, ImportError):
    """A package of an extra is not installed.

    Attributes:
        command: the exact command that installs it.
    """

    def __init__(self, what: str, extra: str) -> None:
        self.command = f"pip install 'pgn-client[{extra}]'"
        super().__init__(f"{what} needs packages that are not installed; run: {self.command}")


class BudgetExceededError(PGNError):
    """The next image would exceed the budget; nothing was sent for it.

    Attributes:
        spent: how often images were sent so far, retries included.
        limit: the budget, in images.
    """

    def __init__(self, spent: int, limit: int) -> None:
        self.spent, self.limit = spent, limit
        super().__init__(
            f"budget exhausted: {spent} of {limit} images are spent; raise budget= to send more"
        )


class EndpointError(PGNError):
    """The endpoint could not be reached, refused, or answered what cannot be understood.

    Attributes:
        endpoint: host and path, without any credential.
        attempts: requests sent for this call, retries included.
        request_id: the server's identifier of the last request, if it gave one.
    """

    def __init__(
        self, message: str, *, endpoint: str, attempts: int = 1, request_id: str | None = None
    ) -> None:
        self.endpoint, self.attempts, self.request_id = endpoint, attempts, request_id
        super().__init__(message)


class ConnectionFailedError(EndpointError):
    """No connection, or one that broke before the answer was complete."""


class TimedOutError(EndpointError):
    """The total deadline of the call passed."""


class ProtocolMismatchError(EndpointError):
    """An answer that is not of the protocol's form; the message carries at most 200 characters of
    it.
    """


class NotRecordedError(EndpointError):
    """Recorded answers are replayed, and this one is not among them; nothing was sent."""


class StatusError(EndpointError):
    """An HTTP status that is no success.

    Attributes:
        status: the HTTP status.
    """

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
    """401 or 403: the key is missing, wrong, or not allowed to do this."""


class InvalidRequestError(StatusError):
    """The endpoint refuses this request; sending it again would not help."""


class RateLimitedError(StatusError):
    """429 until the retries or the deadline ran out."""


class ServerError(StatusError):
    """The endpoint failed (5xx) until the retries or the deadline ran out."""
