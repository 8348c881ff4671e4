"""What httpx does for us, and its exceptions in our words: the only place beside the clients that
knows it.
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

MAX_ANSWER_BYTES = 64 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
# seconds; uvicorn closes idle connections after 5, and httpx would keep them just as long
KEEPALIVE_EXPIRY = 4.0


class Body:
    """Collects a response's body up to the limits of size and time."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock, self._deadline = clock, clock() + seconds
        self._chunks: list[bytes] = []
        self._size = 0
        self._broken: Broken | None = None

    def take(self, response: httpx.Response, chunk: bytes) -> bool:
        """Keep a chunk; returns whether to read on."""
        limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
        self._chunks.append(chunk[: limit - self._size])
        self._size += len(chunk)
        if self._size > limit and response.is_success:
            self._broken = Broken("garbled", f"more than {limit // 2**20} MiB")
        elif self._clock() >= self._deadline:
            self._broken = Broken("late", "deadline")
        return self._broken is None and self._size <= limit

    def outcome(self, response: httpx.Response) -> WireResponse | Broken:
        """Return the whole response, or why there is none."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        return self._broken or WireResponse(response.status_code, headers, b"".join(self._chunks))


# Every exception of httpx that a call may meet, most special first; in asyncio TLS's own pass
# through it.
FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError, ssl.SSLError)
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


def broken_by(error: Exception) -> Broken:
    """Translate httpx's exceptions; the only place that does."""
    kind = next(kind for foreign, kind in KINDS if isinstance(error, foreign))
    # theirs, or ours, is not trusted
    if any(sign in str(error) for sign in ("CERTIFICATE", "UNKNOWN_CA")):
        kind = "refused"
    return Broken(kind, str(error).strip() or type(error).__name__)


def connecting(
    make: Callable[..., T], http: HttpOptions, endpoint: Endpoint, connections: int
) -> T:
    """Make httpx's client; no proxy of the environment comes between this machine and itself.

    Raises:
        ConfigurationError: httpx cannot use what ``http`` holds.
    """
    limits = httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=KEEPALIVE_EXPIRY,
    )
    given = http.arguments()
    try:
        return make(limits=limits, trust_env=not endpoint.loopback, **given)
    except (AttributeError, ImportError, OSError, TypeError, ValueError, httpx.InvalidURL) as error:
        said = excerpt(str(error), endpoint.credential.redact)
    raise ConfigurationError(
        f"http: got {', '.join(sorted(given)) or 'nothing'}, which httpx cannot use ({said})"
    )
