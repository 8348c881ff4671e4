"""One hosted model behind a URL, with credentials that are in no repr, log, exception or pickle."""

from __future__ import annotations

import hashlib
import html
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from pgn_client.errors import ConfigurationError
from pgn_client.types import ServerProfile

BEARER = "Authorization: Bearer {key}"


class Credential:
    """What authorises a request, which nothing prints, compares or pickles; a pickled copy is
    empty.

    Args:
        key: sent as a bearer token.
        headers: sent along; their values count as secrets too (those of up to 3 signs are shown).
        secrets: other texts that are sent along; an empty one stands for what is not known.
        hidden: texts that are not sent to the endpoint, and that no message may show either.

    Raises:
        ConfigurationError: a key or header that cannot be sent.
    """

    __slots__ = ("_authorises", "_headers", "_hidden", "_key")

    def __init__(
        self,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        secrets: Iterable[str] = (),
        hidden: Iterable[str] = (),
    ) -> None:
        if key is not None and not (_sendable(key) and " " not in key):
            raise ConfigurationError(
                "api_key: got an empty key or one with spaces, line breaks or non-ASCII signs, "
                "expected printable "
                "ASCII; check how it was copied"
            )
        for name, value in (headers or {}).items():
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not _sendable(value):
                raise ConfigurationError(
                    f"headers: got one named {name[:40]!r} that cannot be sent, expected a name "
                    "and printable ASCII"
                )
        self._key = key
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        words = (
            part for value in self._headers.values() for part in (value, value.rpartition(" ")[2])
        )
        sent = [*([key] if key else []), *secrets]
        self._authorises = bool(sent or self._headers)
        self._hidden = {text for text in (*sent, *hidden) if text} | {
            word for word in words if len(word) > 3
        }

    def __bool__(self) -> bool:
        return self._authorises

    def __repr__(self) -> str:
        return "<api key>" if self else "<no api key>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Credential, ()

    def __copy__(self) -> Credential:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Credential:
        return self

    def headers(self, form: str = BEARER) -> dict[str, str]:
        """Return the headers that authorise a request, names in lower case; ``form`` is as ``Name:
        {key}``.
        """
        name, _, value = form.partition(":")
        key = (
            {}
            if self._key is None
            else {name.strip().lower(): value.strip().replace("{key}", self._key)}
        )
        return self._headers | key

    def redact(self, text: str) -> str:
        """Return a text without any secret, also where JSON, HTML, a URL or ``repr`` would spell it
        in another way.
        """
        if not self._hidden:
            return text
        spellings = {spelling for secret in self._hidden for spelling in _spellings(secret)}
        longest_first = sorted(spellings, key=len, reverse=True)
        return re.sub(
            "|".join(map(re.escape, longest_first)), "<api key>", text, flags=re.IGNORECASE
        )


def _sendable(text: str) -> bool:
    return isinstance(text, str) and bool(text) and text.isascii() and text.isprintable()


def _spellings(secret: str) -> set[str]:
    spelt = {
        json.dumps(secret)[1:-1],
        secret.replace("/", r"\/"),
        html.escape(secret),
        quote(secret, safe=""),
    }
    return {secret, repr(secret)[1:-1], *spelt}


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest request that an endpoint takes; None is unknown.

    Attributes:
        body_bytes: of one request body.
        pixels: of one image.
    """

    body_bytes: int | None = None
    pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about the way an image takes at an endpoint; None is unknown.

    Attributes:
        profile: the server's resize and crop, as a profile string.
        codec: ``lossless``, or the server's own re-encoding, ``jpeg:Q:SUB``.
        output: ``probabilities``, ``logits``, ``label`` or ``embedding``.
        top_k: how many labels an answer holds at most; 0 is all.
        decimals: digits after the point of a score; -1 is all.
        input_size: side of the square image that the model sees, in pixels.
    """

    profile: str | None = None
    codec: str | None = None
    output: str | None = None
    top_k: int | None = None
    decimals: int | None = None
    input_size: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send images, and what is known about the model there.

    Attributes:
        url: http or https; without user, password and fragment.
        protocol: a name of ``pgn_client.wire.protocols``, or ``auto``.
        model: the model's name, where one URL serves several or answers are cached.
        limits: the largest request.
        credential: the API key.
        labels: the S source labels: names for answers that are bare numbers, and what is asked of a
            model that is sent the labels along.
        options: what only one wire format knows; see its class. ``key_header`` is for all of them:
            the header that holds the key where it is no bearer token, for example ``X-API-Key:
            {key}``.
        found: what a probe has measured.

    Raises:
        ConfigurationError: a URL that is none, holds a password, or would carry the key in the
            clear.
    """

    url: str
    protocol: str = "auto"
    model: str | None = None
    limits: Limits = Limits()
    credential: Credential = field(default=Credential(), repr=False, compare=False)
    labels: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    found: Found = Found()

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if self.credential and parts.scheme == "http" and not self.loopback:
            raise ConfigurationError(
                f"{self.name}: an API key would travel unencrypted over http; use https://, or "
                "remove the key "
                "(api_key, PGN_API_KEY, headers, auth)"
            )
        form = self.options.get("key_header", BEARER)
        if not isinstance(form, str) or not re.fullmatch(
            r"[A-Za-z0-9-]+: *[ "
            r"-~]*\{key\}[ -~]*",
            form,
        ):
            # a form without {key} may be the key itself: it is not repeated
            raise ConfigurationError(
                "options: key_header: got another text, expected a header's name and form such as "
                "'X-API-Key: {key}', "
                "with {key} as it stands; the key itself is given as api_key= or PGN_API_KEY"
            )

    @property
    def authorization(self) -> dict[str, str]:
        """The header that authorises a request, or none."""
        return self.credential.headers(self.options.get("key_header", BEARER))

    @property
    def name(self) -> str:
        """Host, port and path: what messages and logs show."""
        parts = urlsplit(self.url)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"

    @property
    def mark(self) -> str:
        """The URL as a file may hold it: two models may differ in the query alone, which may hold a
        token.
        """
        address, query, _ = self.url.partition("?")
        return address + (
            f"?sha256:{hashlib.sha256(self.url.encode()).hexdigest()[:16]}" if query else ""
        )

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine: then http is safe, and no proxy may come between."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    def __repr__(self) -> str:
        return f"Endpoint({self.name}, protocol={self.protocol}, model={self.model})"

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Endpoint:
        """Return the endpoint of a URL, or the one that a file (``.json``, ``.toml``, or any path
        object) describes.
        """
        name = os.fspath(url)
        described = not isinstance(url, str) or (
            name.endswith((".json", ".toml")) and "://" not in name
        )
        return cls.read(name) if described else cls(name)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Endpoint:
        """Read ``endpoint.json``, as ``pgn probe`` writes it, or the same by hand as TOML.

        Keys: ``url``, and as needed ``protocol``, ``model``, ``labels`` (a list), ``options``,
        ``limits`` and what is in ``Found``. ``findings`` is for people: it is not read. No key,
        password or token belongs into the file.

        Raises:
            ConfigurationError: unreadable, an unknown key, or a value of a wrong type.
        """
        name = os.fspath(path)
        try:
            with open(name, "rb") as file:
                content = tomllib.load(file) if name.endswith(".toml") else json.load(file)
        except OSError as error:
            raise ConfigurationError(
                f"endpoint file {name}: cannot be read ({error.strerror})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"endpoint file {name}: got no JSON or TOML ({error}); mend it"
            ) from error
        return cls(**_fields(name, content))

    def write(
        self, path: str | os.PathLike[str], findings: Mapping[str, Any] | None = None
    ) -> None:
        """Write ``endpoint.json``; the credential is not in it. The URL is, with its query, which
        may hold a token.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        known = {
            "url": self.url,
            "protocol": self.protocol,
            "model": self.model,
            "labels": list(self.labels) or None,
            "options": dict(self.options) or None,
            "limits": {k: v for k, v in asdict(self.limits).items() if v is not None} or None,
            **asdict(self.found),
            "findings": findings,
        }
        content = {key: value for key, value in known.items() if value is not None}
        try:
            Path(path).write_text(
                json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise ConfigurationError(
                f"endpoint file {path}: cannot be written ({error.strerror})"
            ) from error


CODEC = re.compile("lossless|lossy|jpeg:[0-9]{1,3}:(444|422|420)")
_TYPES: dict[str, type] = {
    "url": str,
    "protocol": str,
    "model": str,
    "labels": list,
    "options": dict,
    "limits": dict,
    "profile": str,
    "codec": str,
    "output": str,
    "top_k": int,
    "decimals": int,
    "input_size": int,
    "findings": dict,
}


def _fields(name: str, content: Any) -> dict[str, Any]:
    """Return the arguments of ``Endpoint`` that are in a file."""
    if not isinstance(content, dict) or "url" not in content:
        raise ConfigurationError(
            f"endpoint file {name}: got no url, expected at least url; write it, or pgn probe URL"
        )
    for key, value in content.items():
        if key not in _TYPES:
            raise ConfigurationError(
                f"endpoint file {name}: got the key {key!r}, expected {', '.join(_TYPES)}"
            )
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise ConfigurationError(
                f"endpoint file {name}: {key}: got {type(value).__name__}, expected "
                f"{_TYPES[key].__name__}"
            )
    if not all(isinstance(label, str) for label in content.get("labels", ())):
        raise ConfigurationError(f"endpoint file {name}: labels: expected a list of texts")
    own = {key: content[key] for key in ("url", "protocol", "model", "options") if key in content}
    limits = content.get("limits", {})
    if not limits.keys() <= set(Limits.__slots__) or not all(
        type(n) is int and n > 0 for n in limits.values()
    ):
        raise ConfigurationError(
            f"endpoint file {name}: limits: expected body_bytes and pixels, whole numbers above 0"
        )
    if "profile" in content:
        ServerProfile.parse(content["profile"])
    if not CODEC.fullmatch(content.get("codec", "lossless")):
        raise ConfigurationError(
            f"endpoint file {name}: codec: expected lossless, lossy or jpeg:QUALITY:SUBSAMPLING"
        )
    try:
        json.dumps(content.get("options"), allow_nan=False)
    except (TypeError, ValueError) as error:  # TOML knows dates
        raise ConfigurationError(
            f"endpoint file {name}: options: {error}; expected what JSON can say"
        ) from error
    found = Found(**{key: content[key] for key in Found.__slots__ if key in content})
    return own | {
        "labels": tuple(content.get("labels", ())),
        "limits": Limits(**limits),
        "found": found,
    }


def _split(url: str) -> SplitResult:
    """Check a URL without ever repeating more of it than host and path."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        valid = (
            parts is not None
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:  # a port that is no number, a broken IPv6 address
        parts, valid = None, False
    if parts is None or not valid or not url.isprintable() or " " in url:
        shown = (
            ""
            if isinstance(url, str) and ("@" in url or "?" in url)
            else f" got {str(url)[:100]!r},"
        )
        raise ConfigurationError(
            f"endpoint URL:{shown} expected http://HOST[:PORT][/PATH] or https://..."
        )
    if "@" in parts.netloc:
        raise ConfigurationError(
            "endpoint URL: got a user or password in it, expected none; use api_key= instead"
        )
    if parts.fragment:
        raise ConfigurationError(
            "endpoint URL: got a #fragment, which is never sent, expected none; remove it"
        )
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
