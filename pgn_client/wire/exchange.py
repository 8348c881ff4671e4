"""The logic of one call to an endpoint, with its retries, budget and errors, but without I/O.

It consists of generators that yield a ``Send`` or ``Sleep`` and receive the outcome. The
synchronous and the asynchronous client drive the same generators, as httpx does with ``auth_flow``;
tests drive them with a list of outcomes.
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
"""Pattern that the names of rate limit headers in a response begin with."""

_log = logging.getLogger("pgn_client")

BrokenKind = Literal["late", "unsent", "unreached", "cut", "refused", "garbled"]


@dataclass(frozen=True, slots=True)
class Send:
    """Step of a call: the client sends this HTTP request.

    Attributes:
        request: Request with all its headers.
        seconds: Time limit for the whole response in seconds.
    """

    request: WireRequest
    seconds: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Step of a call: the client waits.

    Attributes:
        seconds: Length of the wait in seconds.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """Outcome of an HTTP request that got no complete response.

    Attributes:
        kind: ``late`` (the deadline passed), ``unsent`` (the deadline passed before the connection
            was made), ``unreached`` (no connection), ``cut`` (the connection broke), ``refused``
            (can never work, for example a bad certificate) or ``garbled`` (unreadable or too long).
        reason: Text for the error message; it may be long and may show secrets.
    """

    kind: BrokenKind
    reason: str


# None is the outcome of a Sleep. One generator type serves both steps, so the code after a Send has
# to handle None, too.
Outcome = WireResponse | Broken | None
Steps = Generator[Send | Sleep, Outcome, T]


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


@dataclass(slots=True)
class Exchange:
    """One call to one endpoint, with its attempts, its deadline and its errors.

    Attributes:
        endpoint: Endpoint to call.
        policy: Retry policy.
        account: Budget and usage, which count every image and request.
        pacer: Client-side rate limits.
        clocks: Clocks and the random factor of retry pauses.
        timeout: Time limit for the call in seconds, retries included.
        until: Deadline on the monotonic clock, if it began before this call; None starts a new one.
        attempts: Number of requests sent so far.
        carried: Number of requests that may have taken an image off this machine.
        counted: Whether the image of this call is in the usage, which counts it once.
        gave_up: Reason for not retrying, ready to append to an error message; may be empty.
        request_id: Server's identifier of the last answered request, if it returned one.
        deadline: Deadline on the monotonic clock, in seconds.
        key: Idempotency key of the request body: the server can tell a retry from a new request.
        rates: Latest rate limit headers of the responses, with secrets redacted.
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
        """Send one image; return the answer and the dialect of the protocol that was used.

        Args:
            protocol: Protocol to use. If the endpoint refuses it, its plainer dialect, with fewer
                features, may be tried.
            image: Encoded image to send.

        Raises:
            ImageError: The image is larger than the endpoint accepts.
            EndpointError: The endpoint gave no usable answer within the deadline and the retries.
            BudgetExceededError: The budget is spent.
        """
        request = self._encode(protocol, image)
        try:
            response = yield from self.fetch(protocol, request, carries_image=True)
            while not response.ok and (plainer := protocol.fallback(response)) is not None:
                protocol = plainer
                # An idempotency key identifies one body, and the plainer dialect has another.
                self.key = uuid.uuid4().hex
                response = yield from self.fetch(
                    protocol, self._encode(protocol, image), carries_image=True
                )
        finally:
            # Also after an error: an image that was sent counts, whether or not it was answered.
            if self.carried and not self.counted:
                self.account.asked()
                self.counted = True

        if not response.ok:
            raise self.refusal(response, protocol)
        return self._decode(response, protocol), protocol

    def discover(self, candidates: Sequence[Protocol], otherwise: Protocol) -> Steps[Described]:
        """Detect the endpoint's protocol by asking for the model's description; no image is sent.

        Args:
            candidates: Protocols that the endpoint may use, in the order to try.
            otherwise: Protocol to assume if no candidate is recognized.

        Returns:
            The protocol, and the description of the model if there is one.

        Raises:
            AuthenticationError: The first request got 401 or 403.
            EndpointError: The endpoint is out of reach, redirects, answers "try later", or returns
                an unreadable description.
        """
        # Several protocols share a description request; each request is sent once.
        responses: dict[tuple[str, str], WireResponse] = {}
        for candidate in candidates:
            # A protocol may need several requests; each answer returns the next step.
            protocol: Protocol | None = candidate
            while protocol is not None and (request := protocol.describe()) is not None:
                key = (request.method, request.url)
                if key not in responses:
                    # Each description request is a call of its own; only its retries are counted.
                    self.attempts = 0
                    responses[key] = yield from self.fetch(protocol, request)
                response = responses[key]

                # A rejected key or an outage already shows at the first request. The later ones go
                # to paths of other protocols, where such a status need not concern the endpoint.
                if protocol is candidates[0] and _ends_discovery(response.status):
                    raise self.refusal(response, protocol)
                # A configured protocol is the only candidate and also ``otherwise``. One that has a
                # further request to send has recognized the previous response.
                certain = candidate is otherwise or protocol is not candidate
                step = self._read_description(protocol, response, certain=certain)
                if isinstance(step, Described):
                    return step
                protocol = step
        return Described(otherwise)

    def _read_description(
        self, protocol: Protocol, response: WireResponse, *, certain: bool
    ) -> Described | Protocol | None:
        """Read the response to a request for the model's description.

        Args:
            protocol: Protocol whose description request was sent.
            response: Response to that request.
            certain: Whether the endpoint is known to use this protocol, so that an unreadable
                description is an error.

        Returns:
            The description; or the protocol with a further request to send; or None if the response
            does not follow this protocol.

        Raises:
            EndpointError: The description is unreadable, ``certain`` holds, and the protocol
                cannot send images without it.
        """
        try:
            step = protocol.described(response)
            problem = f"got {excerpt(response.body, self.endpoint.credential.redact)}"
        except MalformedAnswerError as error:
            step = None
            problem = error.tell(self.endpoint.credential.redact)

        if step is not None or not certain or protocol.complete:
            return step
        if not response.ok:
            raise self.refusal(response, protocol)
        text = (
            f"not a model description in the protocol {protocol.name!r}: {problem}; check the "
            "URL and protocol="
        )
        raise self._error(ProtocolMismatchError, text)

    def _encode(self, protocol: Protocol, image: Payload) -> WireRequest:
        """Return the HTTP request that sends one image.

        Raises:
            ImageError: The image is larger than the endpoint accepts.
        """
        request = protocol.encode([image])
        limits = self.endpoint.limits
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
        """Send a request, with retries, and return the last response, which may be an error status.

        Args:
            protocol: Protocol of the request.
            request: Request without credentials, which are added when it is sent.
            carries_image: Whether the request counts against the budget.

        Raises:
            EndpointError: There is no complete response within the deadline and the retries.
            BudgetExceededError: The budget is spent.
        """
        failures: list[int | None] = []
        while True:
            pause = self.pacer.wait(self.clocks.monotonic(), len(request.body))
            if pause:
                # The caller's own rate limit must not use up the endpoint's time.
                self.deadline += pause
                yield Sleep(pause)

            outcome = yield from self._send(protocol, request, carries_image=carries_image)
            if isinstance(outcome, WireResponse):
                self.request_id = self._request_id(outcome)
                self.rates |= {
                    name: self._shown(value)
                    for name, value in outcome.headers.items()
                    if RATE.match(name)
                }
                if outcome.ok:
                    return outcome
            elif outcome is not None:
                self._raise_if_final(outcome)

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
        """Send a request once, and return its outcome.

        An image is charged to the budget before it is sent, and refunded if it provably never left
        this machine.
        """
        # First, because it raises after the deadline, and then nothing may be charged.
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
        self._log_request(protocol, request, outcome, self.clocks.monotonic() - started)
        return outcome

    def check_deadline(self) -> float:
        """Return the seconds until the deadline of this call.

        Raises:
            TimedOutError: The deadline has passed.
        """
        remaining = self.deadline - self.clocks.monotonic()
        if remaining <= 0:
            raise self._late()
        return remaining

    def _next(self, request: WireRequest) -> Send:
        """Return the step that sends a request once, with all its headers and the credential."""
        remaining = self.check_deadline()
        # The later entry wins: the caller's headers may replace the user agent, but not those that
        # the protocol needs.
        headers = {
            "user-agent": f"pgn-client/{__version__}",
            **self.endpoint.authorization,
            **request.headers,
            "x-pgn-retry-count": str(self.attempts),
        }
        # GET and PUT are idempotent by definition and need no key.
        if request.method == "POST":
            headers["idempotency-key"] = self.key
        return Send(replace(request, headers=headers), remaining)

    def _log_request(
        self, protocol: Protocol, request: WireRequest, outcome: Outcome, seconds: float
    ) -> None:
        """Log one request as a text and as fields, without images and credentials."""
        status = None
        result = "no answer"
        if isinstance(outcome, WireResponse):
            status = outcome.status
            result = str(status)
        elif isinstance(outcome, Broken):
            result = outcome.kind

        fields = {
            "endpoint": self.endpoint.name,
            "protocol": protocol.name,
            "method": request.method,
            "status": status,
            "outcome": result,
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

    def _raise_if_final(self, broken: Broken) -> None:
        """Raise an error if a request failed in a way that no retry can improve."""
        if broken.kind in ("late", "unsent"):
            raise self._late()
        if broken.kind == "refused":
            raise self._broken(broken)
        if broken.kind == "garbled":
            raise self._error(
                ProtocolMismatchError, f"unreadable response: {self._shown(broken.reason)}"
            )

    def _wait(
        self,
        protocol: Protocol,
        failures: list[int | None],
        outcome: Outcome,
        *,
        carries_image: bool,
    ) -> float | None:
        """Return the seconds to wait before a retry, or None for no retry.

        With None, ``gave_up`` holds the reason for the error message.
        """
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
            # Stopping here instead of at ``reserve`` keeps the server's error for the caller.
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

        # Raised outside the except block, so that the original exception, which holds the whole
        # body, is not attached as context.
        text = (
            f"not an answer in the protocol {protocol.name!r}: {problem}; check the URL and "
            "protocol="
        )
        raise self._error(ProtocolMismatchError, text)

    def _late(self) -> EndpointError:
        text = (
            f"no complete response within {self.timeout:g} s ({_times(self.attempts)}); raise "
            "timeout= to wait longer"
        )
        return self._error(TimedOutError, text)

    def _broken(self, broken: Broken | None) -> EndpointError:
        reason = self._shown(broken.reason) if broken else "no answer"
        if broken and broken.kind == "cut":
            what = "the connection broke before the response was complete"
            remedy = "try again later"
        elif broken and broken.kind == "refused" and "certificate" in reason.lower():
            what = "no trusted connection"
            remedy = (
                "give the CA of the server's certificate, or your client certificate, in http= "
                "(--ca-file, --client-cert)"
            )
        else:
            what = "cannot connect"
            remedy = "check the URL, and that the server is running"
        return self._error(
            ConnectionFailedError,
            f"{what} ({reason}; {_times(self.attempts)}){self.gave_up}; {remedy}",
        )

    def refusal(self, response: WireResponse, protocol: Protocol) -> StatusError:
        """Return the error for a response whose status is not a success."""
        kind, what = _meaning(response)
        explanation = self._shown(protocol.explain(response))
        attempts = _times(self.attempts)
        text = f"{what}: got {response.status} ({explanation}), {attempts}{self.gave_up}"
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
        """Return a text as one short line for a message, with secrets redacted."""
        return excerpt(text, self.endpoint.credential.redact)

    def _request_id(self, response: WireResponse) -> str | None:
        names = (
            "x-request-id",
            "x-amzn-requestid",
            "request-id",
            "apim-request-id",
            "x-amzn-trace-id",
        )
        for name in names:
            value = response.headers.get(name)
            if value:
                return self._shown(value)
        return None


def _meaning(response: WireResponse) -> tuple[type[StatusError], str]:
    """Return the error type and the explanation for a response that is not a success."""
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
            "the endpoint redirects, and redirects are not followed; use its final URL"
        )
    if status == 404:
        return InvalidRequestError, "not found; check the URL's path and the protocol"
    if status == 413:
        return InvalidRequestError, "the image is larger than the endpoint accepts; make it smaller"
    return InvalidRequestError, "the endpoint rejects the request"


def _ends_discovery(status: int) -> bool:
    """Whether a status ends the protocol's detection: rejected key, redirect or "try later"."""
    # A server of another protocol may answer an unknown path with 409 or 500, so these statuses
    # do not end the discovery although they are retried.
    return status in (401, 403) or 300 <= status < 400 or status in RETRYABLE - {409, 500}


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'s' if attempts != 1 else ''}"
