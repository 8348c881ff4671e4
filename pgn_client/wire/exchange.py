"""The decisions of one call, without I/O: a generator says Send or Sleep, and is sent what came of
it.

The synchronous and the asynchronous client drive the same generator (the idea of httpx's
``auth_flow``), and a test drives it with a list. At the end stands what makes a thread keep to such
a deadline while httpx has it.
"""

from __future__ import annotations

import logging
import random
import re
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Literal, TypeVar

from pgn_client.errors import (
    AuthenticationError,
    ConnectionFailedError,
    EndpointError,
    ImageError,
    InvalidRequestError,
    ProtocolMismatchError,
    RateLimitedError,
    ServerError,
    StatusError,
    TimedOutError,
)
from pgn_client.types import Answer
from pgn_client.version import __version__
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.ledger import Account
from pgn_client.wire.protocols import (
    Described,
    MalformedAnswerError,
    Payload,
    Protocol,
    WireRequest,
    WireResponse,
)
from pgn_client.wire.protocols.base import excerpt
from pgn_client.wire.rate_limit import Pacer
from pgn_client.wire.retry import RETRYABLE, RetryPolicy, Stop, Wait

T = TypeVar("T")
RATE = re.compile(r"(x-)?rate-?limit")

_log = logging.getLogger("pgn_client")

BrokenKind = Literal["late", "unsent", "unreached", "cut", "refused", "garbled"]


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request; the whole response must be there within so many seconds."""

    request: WireRequest
    seconds: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """What came instead of a response.

    Attributes:
        kind: ``late`` (the deadline passed), ``unsent`` (it passed before a connection stood),
            ``unreached`` (no connection), ``cut`` (broke after the connection stood), ``refused``
            (cannot work, for example a bad certificate) or ``garbled`` (unreadable, or endless).
        reason: for the message, whole and as it came.
    """

    kind: BrokenKind
    reason: str


Outcome = WireResponse | Broken | None
Steps = Generator[Send | Sleep, Outcome, T]


@dataclass(slots=True)
class Clocks:
    """Time and chance; replaced in tests.

    Attributes:
        monotonic: seconds, for deadlines.
        wall: seconds since the epoch, for HTTP dates.
        jitter: a draw in [0.75, 1].
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.75, 1.0))


@dataclass(slots=True)
class Exchange:
    """One call to one endpoint: attempts, deadline, and errors that say both.

    Attributes:
        timeout: seconds for everything, retries included.
        until: the deadline, where it began before this call.
        attempts: requests sent so far.
        carried: how many of them carried an image off this machine.
        counted: Whether this image is in the usage; retries count it once.
    """

    endpoint: Endpoint
    policy: RetryPolicy
    account: Account
    pacer: Pacer
    clocks: Clocks
    timeout: float
    until: InitVar[float | None] = None
    attempts: int = 0
    carried: int = 0
    counted: bool = False
    gave_up: str = ""
    request_id: str | None = None
    deadline: float = field(init=False)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    rates: dict[str, str] = field(default_factory=dict)

    def __post_init__(self, until: float | None) -> None:
        self.deadline = self.clocks.monotonic() + self.timeout if until is None else until

    def ask(self, protocol: Protocol, image: Payload) -> Steps[tuple[Answer, Protocol]]:
        """Ask about one image; returns the answer and the dialect in which it was given.

        Raises:
            EndpointError: no usable answer within the deadline and the retries.
            BudgetExceededError: the budget is spent.
        """
        request = self._encode(protocol, image)
        try:
            response = yield from self.fetch(protocol, request, carries_image=True)
            plainer = None if response.ok else protocol.fallback(response)
            if plainer is not None:
                protocol, self.key = plainer, uuid.uuid4().hex  # a key stands for one body
                response = yield from self.fetch(
                    protocol, self._encode(protocol, image), carries_image=True
                )
        finally:
            if self.carried and not self.counted:
                self.account.asked()
                self.counted = True
        if not response.ok:
            raise self.refusal(response, protocol)
        return self._decode(response, protocol), protocol

    def discover(self, candidates: Sequence[Protocol], otherwise: Protocol) -> Steps[Described]:
        """Ask what speaks at the URL, one candidate after the other, with requests that carry no
        image.

        Args:
            candidates: wire formats that may be spoken there.
            otherwise: what is spoken where none of them is recognised.

        Raises:
            AuthenticationError: 401 or 403 to the first question.
            EndpointError: nobody answers, or only "later", or a redirect.
        """
        # several wire formats have a question in common
        said: dict[tuple[str, str], WireResponse] = {}
        for candidate in candidates:
            asking: Protocol | None = candidate
            while asking is not None and (question := asking.describe()) is not None:
                key = (question.method, question.url)
                if key not in said:
                    self.attempts = 0
                    said[key] = yield from self.fetch(asking, question)
                response = said[key]
                if asking is candidates[0] and _decisive(response.status):
                    raise self.refusal(response, asking)
                found = self._understood(
                    asking, response, sure=candidate is otherwise or asking is not candidate
                )
                if isinstance(found, Described):
                    return found
                asking = found
        return Described(otherwise)

    def _understood(
        self, asked: Protocol, response: WireResponse, *, sure: bool
    ) -> Described | Protocol | None:
        """Read the answer to a question; ``sure``: the wire format is known to be this one."""
        try:
            found = asked.described(response)
            problem = f"got {excerpt(response.body, self.endpoint.credential.redact)}"
        except MalformedAnswerError as error:
            found, problem = None, error.tell(self.endpoint.credential.redact)
        if found is not None or not sure or asked.complete:
            return found
        if not response.ok:
            raise self.refusal(response, asked)
        text = (
            f"not a description of a model in the protocol {asked.name!r}: {problem}; "
            "check the "
            "URL and protocol="
        )
        raise self._error(ProtocolMismatchError, text)

    def _encode(self, protocol: Protocol, image: Payload) -> WireRequest:
        """Return the request, unless the endpoint would refuse its size."""
        request, limits = protocol.encode([image]), self.endpoint.limits
        for got, limit, unit in (
            (len(request.body), limits.body_bytes, "bytes"),
            (image.pixels, limits.pixels, "pixels"),
        ):
            if limit is not None and got > limit:
                raise ImageError(
                    f"the image is too large: got {got:,} {unit}, the endpoint takes {limit:,}"
                )
        return request

    def fetch(
        self, protocol: Protocol, request: WireRequest, *, carries_image: bool = False
    ) -> Steps[WireResponse]:
        """Send until there is a response that no retry would better."""
        failures: list[int | None] = []
        while True:
            pause = self.pacer.wait(self.clocks.monotonic(), len(request.body))
            if pause:
                self.deadline += pause  # the caller's own limit is not the endpoint's fault
                yield Sleep(pause)
            outcome = yield from self._send(protocol, request, carries_image=carries_image)
            if isinstance(outcome, WireResponse):
                self.request_id = self._request_id(outcome)
                self.rates |= {
                    k: self._shown(v) for k, v in outcome.headers.items() if RATE.match(k)
                }
                if outcome.ok:
                    return outcome
            elif outcome is not None:
                self._check(outcome)
            failures.append(outcome.status if isinstance(outcome, WireResponse) else None)
            wait = self._wait(protocol, failures, outcome, carries_image=carries_image)
            if wait is not None:
                yield Sleep(wait)
            elif isinstance(outcome, WireResponse):
                return outcome
            else:
                raise self._broken(outcome)

    def _send(
        self, protocol: Protocol, request: WireRequest, *, carries_image: bool
    ) -> Steps[Outcome]:
        """Send once; an image is written down as spent before that, and given back if it never
        left.
        """
        step = self._next(request)
        if carries_image:
            self.account.reserve()
            self.carried += 1
        self.account.sent(len(request.body), retry=self.attempts > 0)
        self.attempts += 1
        started = self.clocks.monotonic()
        outcome = yield step
        if (
            carries_image
            and isinstance(outcome, Broken)
            and outcome.kind in ("unsent", "unreached", "refused")
        ):
            self.account.release()
            self.carried -= 1
        self._tell(protocol, request, outcome, self.clocks.monotonic() - started)
        return outcome

    def check_deadline(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimedOutError: none is.
        """
        remaining = self.deadline - self.clocks.monotonic()
        if remaining <= 0:
            raise self._late()
        return remaining

    def _next(self, request: WireRequest) -> Send:
        remaining = self.check_deadline()
        headers = {
            "user-agent": f"pgn-client/{__version__}",
            **self.endpoint.authorization,
            **request.headers,
            "x-pgn-retry-count": str(self.attempts),
        }
        if request.method == "POST":
            headers["idempotency-key"] = self.key
        return Send(replace(request, headers=headers), remaining)

    def _tell(
        self, protocol: Protocol, request: WireRequest, outcome: Outcome, seconds: float
    ) -> None:
        """Log one request, in words and as fields; neither images nor credentials are in it."""
        status = outcome.status if isinstance(outcome, WireResponse) else None
        said = (
            status
            if status is not None
            else outcome.kind
            if isinstance(outcome, Broken)
            else "no answer"
        )
        fields = {
            "endpoint": self.endpoint.name,
            "protocol": protocol.name,
            "method": request.method,
            "status": status,
            "outcome": str(said),
            "attempt": self.attempts,
            "seconds": round(seconds, 6),
            "bytes": len(request.body),
            "request_id": self._request_id(outcome) if isinstance(outcome, WireResponse) else None,
        }
        _log.info(
            "%(method)s %(endpoint)s: %(outcome)s, attempt %(attempt)d, %(seconds).3f s",
            fields,
            extra=fields,
        )

    def _check(self, broken: Broken) -> None:
        """Raise at once what no retry can better."""
        if broken.kind in ("late", "unsent"):
            raise self._late()
        if broken.kind == "refused":
            raise self._broken(broken)
        if broken.kind == "garbled":
            raise self._error(
                ProtocolMismatchError, f"unreadable answer: {self._shown(broken.reason)}"
            )

    def _wait(
        self,
        protocol: Protocol,
        failures: list[int | None],
        outcome: Outcome,
        *,
        carries_image: bool,
    ) -> float | None:
        response = outcome if isinstance(outcome, WireResponse) else None
        decision = self.policy.decide(
            failures,
            response.headers if response else {},
            jitter=self.clocks.jitter(),
            now=self.clocks.wall(),
            remaining=self.deadline - self.clocks.monotonic(),
            hint=protocol.wait(response) if response else None,
            retryable=protocol.retryable(response) if response else None,
        )
        if isinstance(decision, Wait):
            if not carries_image or self.account.refusal is None:
                return decision.seconds
            decision = Stop("the budget is spent")
        self.gave_up = f"; gave up: {decision.reason}" if decision.reason else ""
        return None

    def _decode(self, response: WireResponse, protocol: Protocol) -> Answer:
        try:
            answers = protocol.decode(response)
            if len(answers) == 1:
                return answers[0]
            problem = f"got {len(answers)} answers, expected one"
        except MalformedAnswerError as error:
            problem = error.tell(self.endpoint.credential.redact)
        # raised out here, so that the error drags no context along that holds the whole body
        text = (
            f"not an answer of the protocol {protocol.name!r}: {problem}; check the URL and "
            "protocol="
        )
        raise self._error(ProtocolMismatchError, text)

    def _late(self) -> EndpointError:
        text = (
            f"no complete answer within {self.timeout:g} s ({_times(self.attempts)}); raise "
            "timeout= to wait longer"
        )
        return self._error(TimedOutError, text)

    def _broken(self, broken: Broken | None) -> EndpointError:
        reason = self._shown(broken.reason) if broken else "no answer"
        if broken and broken.kind == "cut":
            what, remedy = "the connection broke before the answer was complete", "try again later"
        elif broken and broken.kind == "refused" and "certificate" in reason.lower():
            what = "no trusted connection"
            remedy = (
                "name the authority of its certificate, or a certificate of yours, in http= "
                "(--ca-file, --client-cert)"
            )
        else:
            what, remedy = "cannot connect", "check the URL, and that the server is running"
        return self._error(
            ConnectionFailedError,
            f"{what} ({reason}; {_times(self.attempts)}){self.gave_up}; {remedy}",
        )

    def refusal(self, response: WireResponse, protocol: Protocol) -> StatusError:
        """Return the error that a response without success is."""
        kind, what = _meaning(response)
        said = self._shown(protocol.explain(response))
        text = f"{what}: got {response.status} ({said}), {_times(self.attempts)}{self.gave_up}"
        return kind(
            f"{self.endpoint.name}: {text}",
            status=response.status,
            endpoint=self.endpoint.name,
            attempts=self.attempts,
            request_id=self.request_id,
        )

    def _error(self, kind: type[EndpointError], text: str) -> EndpointError:
        name = self.endpoint.name
        return kind(
            f"{name}: {text}", endpoint=name, attempts=self.attempts, request_id=self.request_id
        )

    def _shown(self, text: str) -> str:
        """Return what a server or httpx said as it may be shown: short, on one line, without the
        key.
        """
        return excerpt(text, self.endpoint.credential.redact)

    def _request_id(self, response: WireResponse) -> str | None:
        names = (
            "x-request-id",
            "x-amzn-requestid",
            "request-id",
            "apim-request-id",
            "x-amzn-trace-id",
        )
        found = next((response.headers[name] for name in names if response.headers.get(name)), None)
        return found and self._shown(found)


def _meaning(response: WireResponse) -> tuple[type[StatusError], str]:
    """Return the error of a status that is no success, and what it means to the caller."""
    status = response.status
    if status in (401, 403):
        return AuthenticationError, (
            "the key is missing, wrong or not allowed to do this; check api_key or PGN_API_KEY"
        )
    if status == 429:
        return RateLimitedError, (
            "too many requests; set requests_per_second or a lower max_concurrency"
        )
    if status >= 500:
        return ServerError, "the endpoint failed"
    if 300 <= status < 400:
        return InvalidRequestError, (
            "the endpoint redirects, and images are not sent on; use its final URL"
        )
    if status == 404:
        return InvalidRequestError, "nothing there; check the URL's path and the protocol"
    if status == 413:
        return InvalidRequestError, "the image is larger than the endpoint takes; make it smaller"
    return InvalidRequestError, "the endpoint refuses the request"


def _decisive(status: int) -> bool:
    """Whether an answer to "who is there?" ends the search: a refused key, a redirect, or
    "later".
    """
    return status in (401, 403) or 300 <= status < 400 or status in RETRYABLE - {409, 500}


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'s' if attempts != 1 else ''}"
