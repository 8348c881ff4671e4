"""One hosted model behind a URL, with a credential that is in no repr, log, exception or pickle."""

from __future__ import annotations

import html
import ipaddress
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from pgn_client.errors import ConfigurationError


class Credential:
    """An API key that nothing prints, compares or pickles; a pickled copy is empty."""

    __slots__ = ("_key",)

    def __init__(self, key: str | None = None) -> None:
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(
                "api_key: got an empty key or one with spaces, line breaks or non-ASCII signs, expected printable "
                "ASCII; check how it was copied"
            )
        self._key = key

    def __bool__(self) -> bool:
        return self._key is not None

    def __repr__(self) -> str:
        return "<api key>" if self else "<no api key>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Credential, ()

    def __copy__(self) -> Credential:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Credential:
        return self

    def headers(self) -> dict[str, str]:
        """Return the header that authorises a request, or none."""
        return {} if self._key is None else {"authorization": f"Bearer {self._key}"}

    def redact(self, text: str) -> str:
        """Return a text without the key, also where JSON, HTML, a URL or ``repr`` would spell it in another way."""
        if self._key is None:
            return text
        key = self._key
        spellings = {key, json.dumps(key)[1:-1], key.replace("/", r"\/"), html.escape(key), quote(key, safe="")}
        longest_first = sorted({*spellings, repr(key)[1:-1]}, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), "<api key>", text, flags=re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest request that an endpoint takes; None is unknown.

    Attributes:
        body_bytes: of one request body.
        pixels: of one picture.
    """

    body_bytes: int | None = None
    pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send pictures, and what is known about the model there.

    Attributes:
        url: http or https; without user, password and fragment.
        protocol: a name of ``pgn_client.protocols``, or ``auto``.
        model: the model's name, where one URL serves several or answers are cached.
        limits: the largest request.
        credential: the API key.

    Raises:
        ConfigurationError: a URL that is none, holds a password, or would carry the key in the clear.
    """

    url: str
    protocol: str = "auto"
    model: str | None = None
    limits: Limits = Limits()
    credential: Credential = field(default=Credential(), repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if self.credential and parts.scheme == "http" and not self.loopback:
            raise ConfigurationError(
                f"{self.name}: an API key would travel unencrypted over http; use https://, or remove the key "
                "(api_key, PGN_API_KEY)"
            )

    @property
    def name(self) -> str:
        """Host, port and path: what messages and logs show."""
        parts = urlsplit(self.url)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine: then http is safe, and no proxy may come between."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    def __repr__(self) -> str:
        return f"Endpoint({self.name}, protocol={self.protocol}, model={self.model})"


def _split(url: str) -> SplitResult:
    """Check a URL without ever repeating more of it than host and path."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        valid = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        parts, valid = None, False
    if parts is None or not valid or not url.isprintable() or " " in url:
        shown = "" if isinstance(url, str) and ("@" in url or "?" in url) else f" got {str(url)[:100]!r},"
        raise ConfigurationError(f"endpoint URL:{shown} expected http://HOST[:PORT][/PATH] or https://...")
    if "@" in parts.netloc:
        raise ConfigurationError("endpoint URL: got a user or password in it, expected none; use api_key= instead")
    if parts.fragment:
        raise ConfigurationError("endpoint URL: got a #fragment, which is never sent, expected none; remove it")
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
