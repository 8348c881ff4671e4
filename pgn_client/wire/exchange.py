"""The logic of one call to an endpoint, with its retries, budget and errors, but without I/O.

It consists of generators that yield steps for the client to carry out; see ``steps``.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

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
from pgn_client.wire.accepted import Accepted
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.forms import smaller_forms
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
from pgn_client.wire.steps import Broken, Clocks, Outcome, Send, Sleep, Steps, Work

RATE = re.compile(r"(x-)?rate-?limit")
"""Pattern that the names of rate limit headers in a response begin with."""
MOST_RATES = 64
"""Largest number of rate limit headers that are kept; a server may invent new names for ever."""

_log = logging.getLogger("pgn_client")


@dataclass(slots=True)
class Exchange:
    """One call to one endpoint, with its attempts, its deadline and its errors.

    Attributes:
        endpoint: Endpoint to call.
        accepted: Requests that the endpoint accepts; this call may learn more of them.
        policy: Retry policy.
        account: Budget and usage, which count every image and request.
        pacer: Client-side rate limits.
        clocks: Clocks and the random factor of retry pauses.
        timeout: Time limit for the call in seconds, retries included.
        attempts: Number of requests sent so far.
        carried: Number of requests that may have taken an image off this machine.
        counted: Whether the image of this call is in the usage, which counts it once.
        gave_up: Reason for not retrying, ready to append to an error message; may be empty.
        retried: Number of retries so far, in all forms and dialects of the image.
        form: Form of the image that was sent last, which may be smaller than the image.
        lasting: Whether the endpoint asks to wait longer than the retry policy allows.
        request_id: Server's identifier of the last answered request, if it returned one.
        deadline: Deadline on the monotonic clock, in seconds.
        key: Idempotency key of the request body: the server can tell a retry from a new request.
    """

    endpoint: Endpoint
    accepted: Accepted
    policy: RetryPolicy
    account: Account
    pacer: Pacer
    clocks: Clocks
    timeout: float
    attempts: int = 0
    carried: int = 0
    counted: bool = False
    gave_up: str = ""
    lasting: bool = False
    retried: int = 0
    form: Payload | None = None
    request_id: str | None = None
    deadline: float = field(init=False)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.deadline = self.clocks.monotonic() + self.timeout

    def ask(self, protocol: Protocol, image: Payload) -> Steps[tuple[Answer, Protocol]]:
        """Send one image; return the answer and the dialect of the protocol that was used.

        The attribute ``form`` is then the form of the image that was answered. Where the endpoint
        refuses the dialect, a plainer one is tried. Where the request is too large, a smaller form
        of the image is (see ``forms``).

        Args:
            protocol: Protocol to use.
            image: Encoded image to send.

        Raises:
            ImageError: The image is larger than the endpoint accepts, in every form.
            EndpointError: The endpoint gave no usable answer within the deadline and the retries.
            BudgetExceededError: The budget is spent.
        """
        self.retried = 0
        try:
            response, protocol = yield from self._ask_plainer(protocol, image)
        finally:
            # Also after an error: an image that was sent counts, whether or not it was answered.
            if self.carried and not self.counted:
                self.account.asked()
                self.counted = True

        if not response.ok:
            raise self.refusal(response, protocol)
        return self._decode(response, protocol), protocol

    def _ask_plainer(
        self, protocol: Protocol, image: Payload
    ) -> Steps[tuple[WireResponse, Protocol]]:
        """Send one image, in plainer dialects while the endpoint refuses the dialect.

        Returns:
            The last response, which may be an error status, and the dialect that it answers.
        """
        while True:
            response = yield from self._ask_smaller(protocol, image)
            is_proven = response.ok or protocol.dialect in self.accepted.proven
            plainer = None if is_proven else protocol.fallback(response)
            if plainer is None:
                return response, protocol
            reason = self._shown(protocol.explain(response))
            _log.info(
                "%s refuses %s (%s); trying %s",
                self.endpoint.name,
                protocol.dialect,
                reason,
                plainer.dialect,
            )
            protocol = plainer

    def _ask_smaller(self, protocol: Protocol, image: Payload) -> Steps[WireResponse]:
        """Send one image, in smaller forms while the request is larger than the endpoint accepts.

        Raises:
            ImageError: The smallest form is still too large.
        """
        excess = ""
        response: WireResponse | None = None
        accepted = self.accepted
        forms = smaller_forms(image, protocol.name, accepted)
        form: Payload | None = next(forms)
        while form is not None:
            request = protocol.encode([form])
            too_large = self._excess(request, form)
            if too_large:
                # The first form is the whole image, which the message is about.
                excess = excess or too_large
                form = yield Work(partial(next, forms, None))
                continue
            if form.pixels < image.pixels and not accepted.scales:
                accepted.scales = True
                _log.warning(
                    "%s takes no image of %s pixels; sending scaled copies of such images",
                    self.endpoint.name,
                    f"{image.pixels:,}",
                )
            # An idempotency key identifies one body, and each form has another.
            self.key = uuid.uuid4().hex
            response = yield from self.fetch(protocol, request, carries_image=True)
            accepted.note_size(len(request.body), response.status)
            self.form = form
            if response.status != 413:
                return response
            # Encoding a large photo anew takes seconds, so it is no work for an event loop.
            form = yield Work(partial(next, forms, None))
        if response is not None:
            return response
        raise ImageError(f"the image is too large: {excess}; make it smaller")

    def _excess(self, request: WireRequest, image: Payload) -> str:
        """Return by what a request exceeds the endpoint's limits, as a text; empty if it fits."""
        for got, limit, unit in (
            (len(request.body), self.accepted.most_bytes, "bytes"),
            (image.pixels, self.accepted.limits.pixels, "pixels"),
        ):
            if limit is not None and got > limit:
                return f"got {got:,} {unit}, the endpoint takes {limit:,}"
        return ""

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
                    self.retried = 0
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

    def reach(self, protocol: Protocol) -> Steps[None]:
        """Send a request without an image to an endpoint that describes no model.

        Any answer shows that the endpoint can be reached; many take images by POST alone, and
        refuse this request.

        Raises:
            AuthenticationError: The endpoint refuses the key.
            EndpointError: The endpoint is out of reach.
        """
        response = yield from self.fetch(protocol, WireRequest("GET", self.endpoint.url, {}))
        if response.status in (401, 403):
            raise self.refusal(response, protocol)

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
            # Before the pause: an image that may not be sent need not wait for its turn.
            if carries_image and self.account.refusal is not None:
                raise self.account.refusal
            pause = self.pacer.wait(self.clocks.monotonic(), len(request.body))
            if pause:
                # The caller's own rate limit must not use up the endpoint's time.
                self.deadline += pause
                yield Sleep(pause)

            outcome = yield from self._send(protocol, request, carries_image=carries_image)
            if isinstance(outcome, WireResponse):
                self.request_id = self._request_id(outcome)
                self._note_rates(outcome)
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

    def _note_rates(self, response: WireResponse) -> None:
        """Keep the rate limit headers of a response."""
        rates = self.accepted.rates
        for name, value in response.headers.items():
            if RATE.match(name) and (name in rates or len(rates) < MOST_RATES):
                rates[name] = self._shown(value)

    def _send(
        self, protocol: Protocol, request: WireRequest, *, carries_image: bool
    ) -> Steps[Outcome]:
        """Send a request once, and return its outcome.

        An image is charged to the budget before it is sent. It is refunded only if no byte of the
        body was written, whatever the server sent.
        """
        # First, because it raises after the deadline, and then nothing may be charged.
        step = self._next(request)
        if carries_image:
            self.account.reserve()
            self.carried += 1
        self.account.sent(len(request.body), retry=self.attempts > 0)
        self.attempts += 1

        started = self.clocks.monotonic()
        progress = step.progress
        try:
            outcome: Outcome = yield step
        except GeneratorExit:
            # The call was cancelled.
            if carries_image and not progress.written:
                self._refund()
            raise
        if carries_image and isinstance(outcome, Broken) and not outcome.written:
            self._refund()
        if carries_image:
            for _ in range(progress.bodies - 1):
                # Digest authorization sends the image once to be refused, and once more.
                self.account.charge()
                self.account.refused()
        if carries_image and isinstance(outcome, WireResponse) and 400 <= outcome.status < 500:
            self.account.refused()
        self._log_request(protocol, request, outcome, self.clocks.monotonic() - started)
        return outcome

    def _refund(self) -> None:
        """Take back the charge for an image that never left this machine."""
        self.account.release()
        self.carried -= 1

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
            # Not httpx's own list: ``transport`` decompresses this encoding alone, under a limit.
            "accept-encoding": "gzip",
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
        if broken.error is not None:
            raise broken.error
        if broken.kind == "late":
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
        if isinstance(decision, Wait) and self.retried >= self.policy.max_retries:
            # The retries of another form or dialect of this call count too.
            decision = Stop(f"{self.policy.max_retries} retries used up")
        if isinstance(decision, Wait):
            self.retried += 1
            if not carries_image or self.account.refusal is None:
                return decision.seconds
            # Stopping here instead of at ``reserve`` keeps the server's error for the caller.
            decision = Stop("the budget is spent")
        self.gave_up = f"; gave up: {decision.reason}" if decision.reason else ""
        self.lasting = decision.lasting
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
        error = kind(
            f"{self.endpoint.name}: {text}",
            status=response.status,
            endpoint=self.endpoint.name,
            attempts=self.attempts,
            request_id=self.request_id,
        )
        error.lasting = self.lasting
        return error

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
