"""Sends one HTTP request through httpx and returns the response, or how it broke.

Only this module imports httpx. A response is read under a deadline and under limits
of its size, before and after decompression.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx

from pgn_client.errors import ConfigurationError, PGNError
from pgn_client.wire.deadline import Guard
from pgn_client.wire.endpoint import Credential, Endpoint
from pgn_client.wire.http_options import HttpOptions
from pgn_client.wire.protocols import WireResponse
from pgn_client.wire.protocols.base import excerpt
from pgn_client.wire.steps import Broken, BrokenKind, Clocks, Progress, Send

T = TypeVar("T")

# The limits keep a faulty or hostile server from filling this process's memory. Parsed JSON takes
# up to 25 times the memory of its text, so one answer takes at most about 0.9 GB.
MAX_ANSWER_BYTES = 32 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
# In seconds. uvicorn closes idle connections after 5 s, which is also httpx's default; a request on
# a connection that the server is just closing would fail.
KEEPALIVE_EXPIRY = 4.0


@dataclass(frozen=True, slots=True)
class Connect:
    """What connections are made with.

    Attributes:
        endpoint: Endpoint to connect to.
        http: Options of the caller for httpx.
        connections: Largest number of simultaneous connections.
    """

    endpoint: Endpoint
    http: HttpOptions
    connections: int


class Sender:
    """Sends requests over connections of httpx; safe to use from several threads.

    Args:
        connect: Arguments of ``connected``.
        transport: An httpx transport, for tests and special networks, or None.
        clocks: Clocks for the deadline of a response's body.

    Attributes:
        guard: Deadline and stop signal of each thread.

    Raises:
        ConfigurationError: See ``connected``.
    """

    def __init__(self, connect: Connect, transport: Any, clocks: Clocks) -> None:
        self._http = connected(partial(httpx.Client, transport=transport), connect)
        self._clocks = clocks
        self.guard = Guard()

    def send(self, step: Send) -> WireResponse | Broken:
        """Carry out the step, and return the complete response or the reason why there is none."""
        request = step.request
        until = self._clocks.monotonic() + step.seconds
        sending = Sending(step.progress)

        def trace(event: str, info: dict[str, Any]) -> None:
            sending.note(event, info)
            self.guard.take(event, info)

        self.guard.start(step.seconds)
        step.progress.begun = True
        try:
            with self._http.stream(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.body,
                # Limits making a connection; ``guard`` replaces the timeout of reads and writes.
                timeout=step.seconds,
                extensions={"trace": trace},
            ) as response:
                body = Body(response, self._clocks.monotonic, until)
                for chunk in response.iter_bytes() if body.is_read else response.iter_raw():
                    if not body.take(chunk):
                        break
                return body.outcome()
        except (*FOREIGN, PGNError) as error:
            return sending.broken_by(error)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class AsyncSender:
    """``Sender`` for asyncio, with the connections of one event loop."""

    def __init__(self, connect: Connect, transport: Any, clocks: Clocks) -> None:
        self._http = connected(partial(httpx.AsyncClient, transport=transport), connect)
        self._clocks = clocks

    async def send(self, step: Send) -> WireResponse | Broken:
        """Carry out the step, and return the complete response or the reason why there is none."""
        request = step.request
        until = self._clocks.monotonic() + step.seconds
        sending = Sending(step.progress)

        async def trace(event: str, info: dict[str, Any]) -> None:
            sending.note(event, info)

        step.progress.begun = True
        try:
            async with (
                asyncio.timeout(step.seconds),
                self._http.stream(
                    request.method,
                    request.url,
                    headers=dict(request.headers),
                    content=request.body,
                    # httpx would restart its own timeout at every read and write.
                    timeout=None,
                    extensions={"trace": trace},
                ) as response,
            ):
                body = Body(response, self._clocks.monotonic, until)
                raw = response.aiter_bytes() if body.is_read else response.aiter_raw()
                # A loop that is left by break does not close its generator; without aclosing the
                # event loop would close it later, in another task. httpx's annotation, which is an
                # AsyncIterator, has no aclose, hence the ignored type.
                async with contextlib.aclosing(raw) as chunks:  # type: ignore[type-var]
                    async for chunk in chunks:
                        if not body.take(chunk):
                            break
                return body.outcome()
        except (*FOREIGN, PGNError) as error:
            return sending.broken_by(error)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class Sending:
    """Follows one request by the events of httpx's ``trace`` extension.

    Args:
        progress: Receives how far the request has got.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Note one event, such as ``http11.send_request_body.started``."""
        self._progress.traced = True
        # A proxy's CONNECT request is a request of its own, and has no body.
        request = info.get("request")
        tunnels = request is not None and request.method == b"CONNECT"
        if event.endswith(".send_request_body.started") and not tunnels:
            self._progress.bodies += 1

    def broken_by(self, error: Exception) -> Broken:
        """Return the kind and reason of the failure behind an exception, and what was written."""
        if isinstance(error, PGNError):
            # From an ``auth`` of ours, such as ``aws.SigV4``, before anything was sent.
            written = self._progress.traced and self._progress.written
            return Broken("refused", str(error), written, error)
        kind = next(kind for foreign, kind in KINDS if isinstance(error, foreign))
        # A rejected certificate, the server's or the client's, arrives as a connection error, but
        # no retry can help.
        if _is_about_certificates(error):
            kind = "refused"
        # A caller's own transport may report no events; then the type of the exception decides.
        written = self._progress.written
        if not self._progress.traced and isinstance(error, NEVER_SENT):
            written = False
        return Broken(kind, str(error).strip() or type(error).__name__, written)


class Body:
    """Collects the body of an HTTP response up to a size limit and a deadline.

    Args:
        response: Response whose headers have arrived.
        clock: Monotonic clock in seconds.
        until: Deadline on that clock, in seconds.

    Attributes:
        is_read: Whether the body is read and decompressed already, as a mock transport's is.
    """

    def __init__(self, response: httpx.Response, clock: Callable[[], float], until: float) -> None:
        self.is_read = response.is_stream_consumed
        self._response = response
        self._clock = clock
        self._until = until
        self._limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
        self._chunks: list[bytes] = []
        self._size = 0
        self._broken: Broken | None = None

        encoding = response.headers.get("content-encoding", "").strip().lower()
        # Decompresses gzip and zlib; None for a body that needs none.
        self._decompressor: Any = None
        if encoding in ("", "identity") or self.is_read:
            pass
        elif encoding in ("gzip", "x-gzip", "deflate"):
            # 32 detects gzip and zlib by their headers; 15 is the largest window.
            self._decompressor = zlib.decompressobj(wbits=32 + 15)
        else:
            # Each further layer of a stacked encoding could multiply the size by a thousand.
            reason = f"the content-encoding {encoding!r}, which was not offered"
            self._broken = Broken("garbled", reason)

    def take(self, raw: bytes) -> bool:
        """Add a chunk of the response body as sent; return whether to read further chunks."""
        if self._broken is not None:
            return False
        left = self._limit - self._size
        chunk = raw
        if self._decompressor is not None:
            try:
                # One byte more than allowed shows that there is more.
                chunk = self._decompressor.decompress(raw, left + 1)
            except zlib.error as error:
                self._broken = Broken("garbled", f"a body that cannot be decompressed ({error})")
                return False
        self._chunks.append(chunk[:left])
        self._size += len(chunk)

        # The start of an error body is enough for its message; a cut answer is useless.
        if self._size > self._limit:
            self._broken = Broken("garbled", f"more than {self._limit // 2**20} MiB")
        elif self._clock() >= self._until:
            self._broken = Broken("late", "deadline")
        return self._broken is None

    def outcome(self) -> WireResponse | Broken:
        """Return the complete response, or the reason why there is none."""
        is_cut = self._decompressor is not None and not self._decompressor.eof
        if self._broken is None and is_cut:
            self._broken = Broken("garbled", "a body whose compression ends too early")
        # An error's status is worth more than the end of its body.
        is_usable = self._broken is None or (
            self._broken.kind == "garbled" and not self._response.is_success
        )
        if self._broken is not None and not is_usable:
            return self._broken
        headers = {name.lower(): value for name, value in self._response.headers.items()}
        return WireResponse(self._response.status_code, headers, b"".join(self._chunks))


FOREIGN = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.CookieConflict,
    httpx.StreamError,
    ssl.SSLError,
    TimeoutError,
    RuntimeError,
    UnicodeError,
)
"""Exceptions that a request through httpx can raise.

With asyncio, ``ssl.SSLError`` is not turned into an exception of httpx. ``TimeoutError`` is that of
the deadline, ``RuntimeError`` that of connections which another thread has closed, and
``UnicodeError`` that of a host name which the domain name system cannot hold.
"""

KINDS: tuple[tuple[type[Exception], BrokenKind], ...] = (
    (TimeoutError, "late"),
    (httpx.TimeoutException, "late"),
    (httpx.ConnectError, "unreached"),
    (httpx.ProxyError, "unreached"),
    (httpx.NetworkError, "cut"),
    (httpx.RemoteProtocolError, "cut"),
    (ssl.SSLError, "cut"),
    (httpx.DecodingError, "garbled"),
    (Exception, "refused"),  # a URL, scheme or header that can never work
)
"""Kind of failed request (see ``Broken``) for each exception type.

The first match counts, so subclasses come before their bases.
"""

NEVER_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.InvalidURL,
    httpx.LocalProtocolError,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    RuntimeError,
    UnicodeError,
)
"""Exceptions that httpx raises before it writes a body."""


def _is_about_certificates(error: BaseException) -> bool:
    """Whether TLS failed because of a certificate, by the types of an exception and its causes.

    Texts do not count: a server may write any text into its response.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "reason", None) or ""
            return "CERTIFICATE" in reason or "UNKNOWN_CA" in reason
        cause = cause.__cause__ or cause.__context__
    return False


def connected(make: Callable[..., T], connect: Connect) -> T:
    """Create an httpx client for an endpoint.

    If the endpoint is on this machine, the client ignores proxies set by environment variables. It
    keeps no cookies.

    Args:
        make: Constructor of the client, called with httpx's keyword arguments.
        connect: What connections are made with.

    Raises:
        ConfigurationError: The options in ``http``, or an environment variable, do not work.
    """
    endpoint = connect.endpoint
    http = connect.http
    limits = httpx.Limits(
        max_connections=connect.connections,
        max_keepalive_connections=connect.connections,
        keepalive_expiry=KEEPALIVE_EXPIRY,
    )
    # An empty list of domains: a cookie that one answer sets must not mark the next image.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    _redact.credentials.add(endpoint.credential)
    arguments = {"limits": limits, "cookies": no_cookies, **http.arguments()}
    try:
        # A proxy of the environment must not see a key that is meant for this machine.
        return make(trust_env=not endpoint.loopback, **arguments)
    except UNUSABLE as error:
        reason = excerpt(str(error), endpoint.credential.redact)

    # Raised outside the except block, so that the original exception, which may show a secret, is
    # not attached as context.
    variable = None if endpoint.loopback else _culprit(make, arguments)
    if variable is not None:
        raise ConfigurationError(
            f"environment variable {variable}: got {_shown_value(variable)!r}, which httpx cannot "
            f"use ({reason}); correct it or unset it"
        )
    given = ", ".join(sorted(http.arguments())) or "nothing"
    raise ConfigurationError(f"http: got {given}, which httpx cannot use ({reason})")


UNUSABLE = (AttributeError, ImportError, OSError, TypeError, ValueError, httpx.InvalidURL)
"""Exceptions of httpx's constructors for wrong arguments, which they hardly check.

For example OSError for a missing certificate file, ImportError for a SOCKS proxy without the
package socksio.
"""
VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
"""Environment variables that httpx reads; it also reads the proxies' in lower case."""


def _culprit(make: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """Return the environment variable without which httpx can be used; None if there is none."""
    present = [
        name
        for upper in VARIABLES
        for name in dict.fromkeys((upper, upper.lower()))
        if os.environ.get(name)
    ]
    for name in present:
        value = os.environ.pop(name)
        try:
            make(trust_env=True, **arguments)
        except UNUSABLE:
            continue
        finally:
            os.environ[name] = value
        return name
    return None


def _shown_value(variable: str) -> str:
    """Return an environment variable's value for a message, without a user and password in it."""
    scheme, mark, rest = os.environ[variable].rpartition("://")
    return excerpt(f"{scheme}{mark}{rest.rpartition('@')[2]}")


class _Redact(logging.Filter):
    """Hides the secrets of all endpoints in the log records of httpx, which show whole URLs."""

    def __init__(self) -> None:
        super().__init__()
        self.credentials: weakref.WeakSet[Credential] = weakref.WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the URLs among the record's arguments; every record is kept."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(self._redacted, record.args))
        return True

    def _redacted(self, value: object) -> object:
        if not isinstance(value, httpx.URL):
            return value
        text = str(value)
        for credential in list(self.credentials):
            text = credential.redact(text)
        return text


_redact = _Redact()
logging.getLogger("httpx").addFilter(_redact)
