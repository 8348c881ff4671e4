"""The endpoint, a hosted model behind a URL, and its credential.

A credential appears in no repr, log, exception or pickle.
"""

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
from typing import Any, Literal
from urllib.parse import SplitResult, quote, urlsplit

from pgn_client.errors import ConfigurationError, reading
from pgn_client.imaging.opening import open_regular
from pgn_client.types import ServerProfile

BEARER = "Authorization: Bearer {key}"
KEY_HEADER = re.compile(r"[A-Za-z0-9-]+: *[ -~]*\{key\}[ -~]*")
CODEC = re.compile("lossless|lossy|jpeg:[0-9]{1,3}:(444|422|420)")
READY = Path(__file__).parent / "ready"
"""Folder of the ready endpoint files for well-known services."""
READY_NAME = re.compile("[a-z-]{1,40}")
Meaning = Literal["probabilities", "logits", "sigmoid", "embedding"]
"""What an endpoint's numbers mean; ``sigmoid`` are probabilities that need not sum to 1."""
MEANINGS: Mapping[str, Meaning] = {
    "probs": "probabilities",
    "probabilities": "probabilities",
    "logits": "logits",
    "sigmoid": "sigmoid",
    "embedding": "embedding",
}
"""Names of the meanings in options and endpoint files."""


class Credential:
    """Secrets that authorize a request; they are never printed, and a pickled copy is empty.

    Args:
        key: API key, sent as a bearer token unless ``headers()`` gets another header for it.
        headers: Additional headers to send. Their values are secrets too, except values of at most
            three characters.
        secrets: Further texts that authorize a request; an empty text stands for a secret whose
            content is unknown.
        hidden: Further texts that messages must not show, but that are not sent to the endpoint.

    Raises:
        ConfigurationError: The key or a header cannot be sent.
    """

    __slots__ = ("__weakref__", "_authorizes", "_headers", "_hidden", "_key")

    def __init__(
        self,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        secrets: Iterable[str] = (),
        hidden: Iterable[str] = (),
    ) -> None:
        if key is not None and not (_sendable(key) and " " not in key):
            raise ConfigurationError(
                "api_key: got an empty key or one with spaces, line breaks or non-ASCII "
                "characters, expected printable ASCII; check how it was copied"
            )
        for number, (name, value) in enumerate((headers or {}).items(), 1):
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not _sendable(value):
                # Neither is shown: swapped by mistake, the name is the secret.
                raise ConfigurationError(
                    f"headers: got a header (number {number}) that cannot be sent, expected a name "
                    "without spaces and colons, and a value of printable ASCII"
                )

        self._key = key
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        sent = [*([key] if key else []), *secrets]
        self._authorizes = bool(sent or self._headers)

        self._hidden = {text for text in (*sent, *hidden) if text}
        for value in self._headers.values():
            # An endpoint may echo the token of "Bearer TOKEN" alone.
            for text in (value, value.rpartition(" ")[2]):
                # Values such as "1" or "on" are no secrets, and hiding them would garble messages.
                if len(text) > 3:
                    self._hidden.add(text)

    def __bool__(self) -> bool:
        return self._authorizes

    def __repr__(self) -> str:
        return "<api key>" if self else "<no api key>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Credential, ()

    # Copies within this process keep the secrets; without these two methods, copy would use
    # __reduce__ and return an empty credential.
    def __copy__(self) -> Credential:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Credential:
        return self

    def headers(self, form: str = BEARER) -> dict[str, str]:
        """Return the headers that authorize a request, with names in lower case.

        Args:
            form: Name and value of the header for the API key, in the form ``Name: {key}``.
        """
        if self._key is None:
            return dict(self._headers)
        name, _, value = form.partition(":")
        return self._headers | {name.strip().lower(): value.strip().replace("{key}", self._key)}

    def redact(self, text: str) -> str:
        """Return a text in which each secret of this credential is replaced by ``<api key>``.

        Secrets are also found as JSON, HTML, URLs and ``repr`` spell them.
        """
        if not self._hidden:
            return text
        spellings: set[str] = set()
        for secret in self._hidden:
            spellings |= _spellings(secret)
        # Longest first, because one secret may be a part of another.
        longest_first = sorted(spellings, key=len, reverse=True)
        pattern = "|".join(map(re.escape, longest_first))
        # Escapes such as %2F and \u002F occur in both cases.
        return re.sub(pattern, "<api key>", text, flags=re.IGNORECASE)


def _sendable(text: str) -> bool:
    """Whether a text can be sent as the value of an HTTP header."""
    return isinstance(text, str) and bool(text) and text.isascii() and text.isprintable()


def _spellings(secret: str) -> set[str]:
    """Return the spellings in which a response or an exception may show a secret."""
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        # PHP's JSON escapes slashes.
        secret.replace("/", r"\/"),
        html.escape(secret),
        quote(secret, safe=""),
    }


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest request that an endpoint accepts; None means unknown.

    Attributes:
        body_bytes: Largest request body in bytes.
        pixels: Largest number of pixels of an image.
    """

    body_bytes: int | None = None
    pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Properties of an endpoint that ``pgn probe`` measures or a user states; None means unknown.

    Attributes:
        profile: Server's resize and crop of an image, in the text form of ``ServerProfile``.
        codec: Server's re-encoding of the image: ``lossless``, ``lossy`` or ``jpeg:Q:SUB`` with
            quality and subsampling.
        output: Type of the scores: ``probabilities``, ``logits``, ``sigmoid`` (independent
            probabilities), ``label`` or ``embedding``.
        top_k: Largest number of labels in an answer; 0 means all.
        decimals: Number of decimals of a score; -1 means that scores are not rounded.
        input_size: Side of the square model input, in pixels.
    """

    profile: str | None = None
    codec: str | None = None
    output: str | None = None
    top_k: int | None = None
    decimals: int | None = None
    input_size: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A hosted model's address, with the settings and measured properties of its server.

    Attributes:
        url: URL of the endpoint, http or https, without user, password and fragment.
        protocol: Name of a wire format in ``pgn_client.wire.protocols.PROTOCOLS``, or ``auto``.
        model: Name of the model, for a URL that serves several; it is also part of the cache key.
        limits: Largest request that the endpoint accepts.
        credential: API key and other secrets that authorize a request.
        labels: The S source labels, the hosted model's own classes. They name scores that come
            without labels, and zero-shot and chat formats send them to the model as candidates.
        options: Options of the wire format, listed at the protocol's class. All wire formats have
            ``key_header``: the form of the header for an API key that is no bearer token, for
            example ``X-API-Key: {key}``.
        found: Properties that ``pgn probe`` measured or the endpoint file states.

    Raises:
        ConfigurationError: The URL is invalid, contains a password, or would send the key
            unencrypted; or ``key_header`` is invalid.
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
                f"{self.name}: got an API key that would be sent unencrypted over http, expected "
                "https; use https://, or remove the key (api_key, PGN_API_KEY, headers, auth)"
            )

        form = self.options.get("key_header", BEARER)
        if not isinstance(form, str) or not KEY_HEADER.fullmatch(form):
            # The message does not quote the text, because without {key} it may be the key itself.
            raise ConfigurationError(
                "options: key_header: got another text, expected a header's name and form such as "
                "'X-API-Key: {key}', with the five characters {key} in the place of the key; give "
                "the key itself as api_key= or PGN_API_KEY"
            )

    @property
    def authorization(self) -> dict[str, str]:
        """HTTP headers that authorize a request to the endpoint; empty without a credential."""
        return self.credential.headers(self.options.get("key_header", BEARER))

    @property
    def name(self) -> str:
        """Host, port and path of the endpoint's URL, for messages and logs."""
        parts = urlsplit(self.url)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"

    @property
    def mark(self) -> str:
        """The endpoint's URL in a form safe to store in files: a hash replaces the query.

        The query may hold a token. The hash still tells two models apart whose URLs differ only in
        the query.
        """
        address, mark, _ = self.url.partition("?")
        if not mark:
            return address
        return f"{address}?sha256:{hashlib.sha256(self.url.encode()).hexdigest()[:16]}"

    @property
    def loopback(self) -> bool:
        """Whether the endpoint is on this machine; http is then safe, and proxies are not used."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    def __repr__(self) -> str:
        return f"Endpoint({self.name}, protocol={self.protocol}, model={self.model})"

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> Endpoint:
        """Return the endpoint for a URL, or the endpoint that a file describes.

        Args:
            url: URL; path of a file: a text that ends in ``.json`` or ``.toml``, or a path object;
                or name of a ready file that ``pgn endpoints`` lists.

        Raises:
            ConfigurationError: The URL or the file is invalid.
        """
        name = os.fspath(url)
        has_file_ending = name.endswith((".json", ".toml")) and "://" not in name
        is_file = not isinstance(url, str) or has_file_ending
        if not is_file and READY_NAME.fullmatch(name) and (READY / f"{name}.toml").is_file():
            return cls.read(READY / f"{name}.toml")
        return cls.read(name) if is_file else cls(name)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Endpoint:
        """Read an endpoint file: JSON from ``pgn probe``, or JSON or TOML written by hand.

        The key ``url`` is required. Optional keys are ``protocol``, ``model``, ``labels`` (a list),
        ``options``, ``limits`` and the attributes of ``Found``. The key ``findings`` is for people
        and is ignored. The file must not contain an API key, a password or a token.

        Raises:
            ConfigurationError: The file cannot be read, or it has an unknown key or an invalid
                value.
        """
        name = os.fspath(path)
        with reading(f"endpoint file {name}", "expected JSON or TOML; correct it"):
            with open_regular(name) as file:
                content = tomllib.load(file) if name.endswith(".toml") else json.load(file)
            return cls(**_fields(name, content))

    def write(
        self, path: str | os.PathLike[str], findings: Mapping[str, Any] | None = None
    ) -> None:
        """Write the endpoint to a JSON file, without the credential.

        The file contains the URL with its query, which may hold a token.

        Args:
            path: Path to write.
            findings: What ``pgn probe`` found, in words, for people.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        limits = {key: value for key, value in asdict(self.limits).items() if value is not None}
        fields = {
            "url": self.url,
            "protocol": self.protocol,
            "model": self.model,
            "labels": list(self.labels) or None,
            "options": dict(self.options) or None,
            "limits": limits or None,
            **asdict(self.found),
            "findings": findings,
        }
        content = {key: value for key, value in fields.items() if value is not None}
        try:
            Path(path).write_text(
                json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        except OSError as error:
            raise ConfigurationError(
                f"endpoint file {path}: cannot be written ({error.strerror})"
            ) from error


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
    """Check the content of an endpoint file, and return it as arguments of ``Endpoint``."""
    if not isinstance(content, dict) or "url" not in content:
        raise ConfigurationError(
            f"endpoint file {name}: got no url, expected at least url; add it, or make the file "
            "with pgn probe URL"
        )

    for key, value in content.items():
        if key not in _TYPES:
            raise ConfigurationError(
                f"endpoint file {name}: got the key {key!r}, expected {', '.join(_TYPES)}"
            )
        # A bool is an int in Python, and no key takes one.
        if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
            raise ConfigurationError(
                f"endpoint file {name}: {key}: got {type(value).__name__}, expected "
                f"{_TYPES[key].__name__}"
            )
    if not all(isinstance(label, str) for label in content.get("labels", ())):
        raise ConfigurationError(f"endpoint file {name}: labels: expected a list of texts")

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

    # TOML has dates and JSON has NaN, but options are sent and hashed as strict JSON.
    try:
        json.dumps(content.get("options"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"endpoint file {name}: options: {error}; expected values that JSON supports"
        ) from error

    unchanged = ("url", "protocol", "model", "options")
    arguments = {key: content[key] for key in unchanged if key in content}
    found = Found(**{key: content[key] for key in Found.__slots__ if key in content})
    return arguments | {
        "labels": tuple(content.get("labels", ())),
        "limits": Limits(**limits),
        "found": found,
    }


def _split(url: str) -> SplitResult:
    """Check an endpoint's URL and return its parts.

    Raises:
        ConfigurationError: The URL is invalid; the message shows no user, password or query.
    """
    parts = _http_parts(url)
    if parts is None or not url.isprintable() or " " in url:
        may_hold_secret = isinstance(url, str) and ("@" in url or "?" in url)
        shown = "" if may_hold_secret else f" got {str(url)[:100]!r},"
        raise ConfigurationError(
            f"endpoint URL:{shown} expected http://HOST[:PORT][/PATH], https://..., the path of an "
            "endpoint file, or a name that pgn endpoints lists"
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


def _http_parts(url: str) -> SplitResult | None:
    """Return the parts of a URL; None unless it is http or https with a host."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The port is not a number, or an IPv6 address is invalid.
        return None
    is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    # Nothing can listen on port 0.
    return parts if is_http and port != 0 else None


def _is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
