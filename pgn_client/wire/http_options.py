"""Options of the HTTP connection, by their names in httpx: TLS, proxy, headers, certificates."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from pgn_client.errors import ConfigurationError

NAMES = ("auth", "cert", "headers", "proxy", "verify")


class HttpOptions:
    """Checked arguments of ``httpx.Client``; their values appear in no message and no repr.

    Args:
        given: Arguments by name: ``verify`` (an ``ssl.SSLContext`` or a bool), ``cert``, ``proxy``,
            ``headers`` and ``auth``; all are optional.

    Attributes:
        headers: Headers to send with each request.

    Raises:
        ConfigurationError: A name is unknown, or ``headers`` does not map texts to texts.
    """

    __slots__ = ("_arguments", "headers")

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        given = given or {}
        unknown = sorted(set(given) - set(NAMES))
        if unknown:
            raise ConfigurationError(f"http: got {', '.join(unknown)}, expected {', '.join(NAMES)}")

        self._arguments = {name: value for name, value in given.items() if name != "headers"}
        headers = given.get("headers") or {}
        are_texts = isinstance(headers, Mapping) and all(
            isinstance(name, str) and isinstance(value, str) for name, value in headers.items()
        )
        if not are_texts:
            raise ConfigurationError(
                "http: headers: expected a mapping of names to values, all of them texts"
            )
        self.headers: dict[str, str] = dict(headers)

    def __repr__(self) -> str:
        return "<http options>"

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for ``httpx.Client``, without the headers.

        Headers may hold secrets. They belong to the endpoint's credential, and ``Exchange`` adds
        them to the requests to this endpoint only.
        """
        return dict(self._arguments)

    def secrets(self) -> Iterator[str]:
        """Yield the secrets that the option ``auth`` sends to the endpoint.

        Messages must not show them, and an unencrypted connection must not send them. If ``auth``
        is no pair of user and password, its secrets are unknown, and an empty text is yielded.
        """
        auth = self._arguments.get("auth")
        if (
            isinstance(auth, tuple)
            and len(auth) == 2
            and all(isinstance(part, str | bytes) for part in auth)
        ):
            user, password = (part.encode() if isinstance(part, str) else part for part in auth)
            # A response may echo the bytes in either encoding, or the header's value.
            yield password.decode("latin-1")
            yield password.decode("utf-8", "replace")
            yield base64.b64encode(user + b":" + password).decode()
        elif auth is not None:
            yield ""

    def passwords(self) -> Iterator[str]:
        """Yield the password in the proxy's URL, if any, so that messages can hide it.

        It is sent to the proxy only.
        """
        proxy = self._arguments.get("proxy")
        password = urlsplit(proxy).password if isinstance(proxy, str) else None
        if password:
            # Messages may show it as spelled in the URL, or decoded as it is sent to the proxy.
            yield password
            yield unquote(password)
