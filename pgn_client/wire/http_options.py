"""How connections are made: TLS, proxies, headers, client certificates, under the names that httpx
gives them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from pgn_client.errors import ConfigurationError

NAMES = ("auth", "cert", "headers", "proxy", "verify")


class HttpOptions:
    """Checked arguments of ``httpx.Client``; what they hold is shown nowhere.

    Args:
        given: any of ``verify`` (an ``ssl.SSLContext`` or a bool), ``cert``, ``proxy``, ``headers``
            and ``auth``.

    Raises:
        ConfigurationError: another name, or a value of a wrong type.
    """

    __slots__ = ("_arguments", "headers")

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        unknown = sorted(set(given or {}) - set(NAMES))
        if unknown:
            raise ConfigurationError(f"http: got {', '.join(unknown)}, expected {', '.join(NAMES)}")
        self._arguments = {
            name: value for name, value in (given or {}).items() if name != "headers"
        }
        headers = (given or {}).get("headers") or {}
        texts = isinstance(headers, Mapping) and all(
            isinstance(x, str) for pair in headers.items() for x in pair
        )
        if not texts:
            raise ConfigurationError(
                "http: headers: expected a mapping of names to values, all of them texts"
            )
        self.headers: dict[str, str] = dict(headers)

    def __repr__(self) -> str:
        return "<http options>"

    def arguments(self) -> dict[str, Any]:
        """Return what ``httpx.Client`` is made with; the headers are sent by the exchange."""
        return dict(self._arguments)

    def secrets(self) -> Iterator[str]:
        """Yield what ``auth`` would send to the endpoint: no message may show it, and no plain
        connection carry it.

        Of an ``auth`` that is no pair of texts nothing is known but that it authorises: an empty
        secret.
        """
        auth = self._arguments.get("auth")
        if (
            isinstance(auth, tuple)
            and len(auth) == 2
            and all(isinstance(part, str | bytes) for part in auth)
        ):
            user, password = (part.encode() if isinstance(part, str) else part for part in auth)
            yield from (password.decode("latin-1"), password.decode("utf-8", "replace"))
            yield base64.b64encode(user + b":" + password).decode()
        elif auth is not None:
            yield ""

    def passwords(self) -> Iterator[str]:
        """Yield the password of ``proxy``, which only the proxy gets and no message may show."""
        proxy = self._arguments.get("proxy")
        password = urlsplit(proxy).password if isinstance(proxy, str) else None
        if password:
            yield from (password, unquote(password))
