"""Steps of a call to an endpoint: what the shared logic asks a client to do.

The logic of a call is a generator. It yields a step, the client carries the step out, and the
generator receives the outcome. The synchronous and the asynchronous client drive the same
generators, as httpx does with ``auth_flow``; tests drive them with a list of outcomes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pgn_client.errors import PGNError
from pgn_client.wire.protocols import WireRequest, WireResponse

T = TypeVar("T")

BrokenKind = Literal["late", "unreached", "cut", "refused", "garbled"]


@dataclass(slots=True)
class Progress:
    """How far one request has got; the transport keeps it up to date.

    Attributes:
        begun: Whether the request was given to the HTTP library.
        traced: Whether the HTTP library reports what it does; a caller's own transport may not.
        bodies: Number of times that the body was begun to be written, if it is reported. Some ways
            to authorize, such as HTTP digest, send a request twice.
    """

    begun: bool = False
    traced: bool = False
    bodies: int = 0

    @property
    def written(self) -> bool:
        """Whether a part of the body may have left this machine."""
        return self.bodies > 0 if self.traced else self.begun


@dataclass(frozen=True, slots=True)
class Send:
    """Step of a call: the client sends this HTTP request.

    Attributes:
        request: Request with all its headers.
        seconds: Time limit for the whole response in seconds.
        progress: How far the request has got.
    """

    request: WireRequest
    seconds: float
    progress: Progress = field(default_factory=Progress, compare=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Step of a call: the client waits.

    Attributes:
        seconds: Length of the wait in seconds.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Turn:
    """Step of a call: the client waits until fewer than ``max_concurrency`` calls are under way.

    The call then counts as under way until it ends.
    """


@dataclass(frozen=True, slots=True)
class Work:
    """Step of a call: local work that may run torch, so it never runs in an event loop.

    Attributes:
        call: Function to call; its result is the outcome of the step.
    """

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """Outcome of an HTTP request that got no complete response.

    Attributes:
        kind: ``late`` (the deadline passed), ``unreached`` (no connection), ``cut`` (the connection
            broke), ``refused`` (can never work, for example a bad certificate) or ``garbled``
            (unreadable or too long).
        reason: Text for the error message; it may be long and may show secrets.
        written: Whether a part of the request's body may have left this machine.
        error: Error of our own that kept the request from being sent, to be raised as it is.
    """

    kind: BrokenKind
    reason: str
    written: bool = True
    error: PGNError | None = None


# None is the outcome of Sleep and Turn. One generator type serves all steps, so the code after a
# step has to handle the outcomes of the others, too.
Outcome = WireResponse | Broken | None
Steps = Generator[Send | Sleep | Turn | Work, Any, T]


@dataclass(slots=True)
class Clocks:
    """Clocks and the random factor of retry pauses, together so that tests can replace them.

    Attributes:
        monotonic: Monotonic clock in seconds, for deadlines.
        wall: Wall clock in seconds since the epoch, for HTTP dates.
        jitter: Function that draws the factor of a retry pause from [0.75, 1].
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.75, 1.0))
