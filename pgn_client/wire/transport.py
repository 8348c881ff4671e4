"""Creates httpx clients, reads response bodies, and translates httpx's exceptions.

Only this module and ``client`` import httpx.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TypeVar

import httpx

from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.exchange import Broken, BrokenKind
from pgn_client.wire.http_options import HttpOptions
from pgn_client.wire.protocols import WireResponse
from pgn_client.wire.protocols.base import excerpt

T = TypeVar("T")

# The limits keep a faulty or hostile server from filling this process's memory.
MAX_ANSWER_BYTES = 64 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
# In seconds. uvicorn closes idle connections after 5 s, which is also httpx's default; a request on
# a connection that the server is just closing would fail.
KEEPALIVE_EXPIRY = 4.0


class Body:
    """Collects the body of an HTTP response up to a size limit and a deadline.

    Args:
        clock: Monotonic clock in seconds.
        seconds: Time limit for the whole body in seconds.
    """

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._deadline = clock() + seconds
        self._chunks: list[bytes] = []
        self._size = 0
        self._broken: Broken | None = None

    def take(self, response: httpx.Response, chunk: bytes) -> bool:
        """Add a chunk of the response body; return whether to read further chunks."""
        limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
        self._chunks.append(chunk[: limit - self._size])
        self._size += len(chunk)

        # The start of an error body is enough for its message; a cut answer is useless.
        if self._size > limit and response.is_success:
            self._broken = Broken("garbled", f"more than {limit // 2**20} MiB")
        elif self._clock() >= self._deadline:
            self._broken = Broken("late", "deadline")
        return self._broken is None and self._size <= limit

    def outcome(self, response: httpx.Response) -> WireResponse | Broken:
        """Return the complete response, or the reason why there is none."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        return self._broken or WireResponse(response.status_code, headers, b"".join(self._chunks))


FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError, ssl.SSLError)
"""Exceptions that a request through httpx can raise.

With asyncio, ``ssl.SSLError`` is not turned into an exception of httpx.
"""

KINDS: tuple[tuple[type[Exception], BrokenKind], ...] = (
    (httpx.ConnectTimeout, "unsent"),
    (httpx.PoolTimeout, "unsent"),
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


def broken_by(error: Exception) -> Broken:
    """Return the outcome ``Broken``, the kind and reason of the failure, for an httpx exception."""
    kind = next(kind for foreign, kind in KINDS if isinstance(error, foreign))
    # A rejected certificate, the server's or the client's, arrives as a connection error, but no
    # retry can help.
    if any(sign in str(error) for sign in ("CERTIFICATE", "UNKNOWN_CA")):
        kind = "refused"
    return Broken(kind, str(error).strip() or type(error).__name__)


def connecting(
    make: Callable[..., T], http: HttpOptions, endpoint: Endpoint, connections: int
) -> T:
    """Create an httpx client for an endpoint.

    If the endpoint is on this machine, the client ignores proxies set by environment variables.

    Args:
        make: Constructor of the client, called with httpx's keyword arguments.
        http: Options of the caller.
        endpoint: Endpoint to connect to.
        connections: Largest number of simultaneous connections.

    Raises:
        ConfigurationError: The options in ``http`` do not work with httpx.
    """
    limits = httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=KEEPALIVE_EXPIRY,
    )
    arguments = http.arguments()
    try:
        # A proxy of the environment must not see a key that is meant for this machine.
        return make(limits=limits, trust_env=not endpoint.loopback, **arguments)
    # httpx hardly checks its arguments, so wrong ones fail in many ways: OSError for a missing
    # certificate file, ImportError for a SOCKS proxy without the package socksio.
    except (AttributeError, ImportError, OSError, TypeError, ValueError, httpx.InvalidURL) as error:
        reason = excerpt(str(error), endpoint.credential.redact)

    # Raised outside the except block, so that the original exception, which may show a secret, is
    # not attached as context.
    raise ConfigurationError(
        f"http: got {', '.join(sorted(arguments)) or 'nothing'}, which httpx cannot use ({reason})"
    )
