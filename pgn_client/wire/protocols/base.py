"""Building blocks of every wire format: requests, responses, the ``Protocol`` interface.

A wire format defines how a server expects requests and forms responses. There is no I/O here.
Error bodies are parsed leniently, because servers differ most in those.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pgn_client.types import Answer, ModelInfo, ScoreKind
from pgn_client.wire.endpoint import Endpoint, Limits

if TYPE_CHECKING:
    from PIL import Image

    from pgn_client.imaging.codecs import ImageSource

EXCERPT = 200
# Levels of objects and lists in a response's JSON; the deepest known response has eight.
MOST_NESTED = 64
# JSON may escape a lone surrogate, which cannot be encoded as UTF-8 for a file or a terminal.
SURROGATE = re.compile("[\ud800-\udfff]")
# Keys of error messages: of most servers, FastAPI, TorchServe, AWS, the items of FastAPI's lists,
# and SageMaker's containers. The first one that holds a text is used.
MESSAGES = ("error", "detail", "message", "Message", "msg", "OriginalMessage")


class MalformedAnswerError(ValueError):
    """A server's response does not follow its wire format.

    The code that catches it adds the endpoint's name and the number of attempts to the message.

    Attributes:
        got: Complete body or text that was received. It may be long and may echo a credential, so
            ``tell`` shortens it and removes secrets for a message.
        expected: Description of the expected form.
        what: Name of the wrong part, ending in a space; empty for the whole body.
    """

    def __init__(self, got: bytes | str, expected: str, what: str = "") -> None:
        self.got = got
        self.expected = expected
        self.what = what
        super().__init__(expected)

    # The default ``str`` returns a text unchanged.
    def tell(self, hide: Callable[[str], str] = str) -> str:
        """Return the error message; ``hide`` removes secrets from the received text in it."""
        return f"got {self.what}{excerpt(self.got, hide)}, expected {self.expected}"

    def __str__(self) -> str:
        return self.tell()


@dataclass(frozen=True, slots=True)
class Payload:
    """One encoded image to send to a hosted model.

    Attributes:
        data: Bytes of the encoded file.
        media_type: Media type of the file, for example ``image/png``.
        pixels: Number of pixels, width times height; 0 if unknown.
        image: The same image in RGB, for wire formats that send numbers instead of files; None for
            a large image, which is decoded from ``data`` where its pixels are needed.
        hosted: Reference of the uploaded checkpoint that processes the image on the server; empty
            if the hosted model processes the image alone.
        source: The user's image, if it is sent without a prompt; None otherwise.
        verbatim: Whether exactly these bytes must be sent, or none.
    """

    data: bytes = field(repr=False)
    media_type: str
    pixels: int = 0
    image: Image.Image | None = field(default=None, repr=False, compare=False)
    hosted: str = ""
    source: ImageSource | None = field(default=None, repr=False, compare=False)
    verbatim: bool = False


@dataclass(frozen=True, slots=True)
class WireRequest:
    """An HTTP request before credentials are added; header names are in lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response.

    Header names are in lower case. The body of an error may be cut at a size limit.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def ok(self) -> bool:
        """Whether the HTTP status reports a success (2xx)."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Return the response's body, parsed as JSON.

        Raises:
            MalformedAnswerError: The body is not JSON, or is nested too deeply.
        """
        try:
            document = json.loads(self.body)
        # Deeply nested brackets raise RecursionError.
        except (ValueError, RecursionError):
            raise MalformedAnswerError(self.body, "JSON") from None
        # What the parser takes may still be too deep for code that reads or quotes a part of it.
        if _is_deep(document):
            raise MalformedAnswerError(self.body, f"JSON of at most {MOST_NESTED} levels")
        return document


@dataclass(frozen=True, slots=True)
class Described:
    """What an endpoint reports about itself and its model.

    Attributes:
        protocol: Wire format, completed with what the endpoint reports: model name, tensor names.
        info: Description of the model; None if the endpoint returns none.
        limits: Largest request that the endpoint accepts.
    """

    protocol: Protocol
    info: ModelInfo | None = None
    limits: Limits = field(default_factory=Limits)


class Protocol(typing.Protocol):
    """Interface of a wire format that is bound to an endpoint: it encodes and decodes, without I/O.

    A wire format may have several dialects, variants of its request: not every server accepts all.
    """

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """Return this wire format, bound to an endpoint."""
        ...

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether only this wire format uses this URL path."""
        ...

    def describe(self) -> WireRequest | None:
        """Return a request for the server's or model's description; None if there is none.

        The request carries no image and costs nothing.
        """
        ...

    def described(self, response: WireResponse) -> Described | Protocol | None:
        """Read the server's response to the request from ``describe``.

        Returns:
            The description. Or a wire format, if its ``describe`` request must be sent next. Or
            None, if the response belongs to another wire format.

        Raises:
            ConfigurationError: The response shows that an option is needed, but it is missing.
            MalformedAnswerError: The response belongs to this wire format, but is unusable.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether images can be encoded before the server's description has been read."""
        ...

    @property
    def name(self) -> str:
        """Name of the wire format in the registry ``PROTOCOLS``, for example ``openai``."""
        ...

    @property
    def dialect(self) -> str:
        """Text that identifies the variant of the request; part of the cache key of an answer.

        It holds the wire format's name, and all settings of the request that can change the answer.
        """
        ...

    @property
    def proven(self) -> bool:
        """Whether this dialect, a variant of the request, has already worked once on this server.

        A later refusal is then due to the image.
        """
        ...

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends these images to the model."""
        ...

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, labels with their scores, per image from a successful response.

        Raises:
            MalformedAnswerError: The response does not follow the protocol.
        """
        ...

    def explain(self, response: WireResponse) -> str:
        """Return the complete error message of a failed response.

        It may be long and may echo a credential: show it through ``excerpt``.
        """
        ...

    def retryable(self, response: WireResponse) -> bool | None:
        """Return whether a failed request should be retried; None leaves it to the retry policy."""
        ...

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds to wait before a retry that a failed response gives in its own way.

        None if it gives them in the standard headers alone, or not at all.
        """
        ...

    def plainer(self) -> Protocol | None:
        """Return the same wire format with a simpler request; None if there is no simpler one."""
        ...

    def fallback(self, response: WireResponse) -> Protocol | None:
        """Return the wire format with a simpler request to try after this failed response.

        None if no simpler request can help.
        """
        ...


class Defaults:
    """Default implementations of the optional ``Protocol`` methods."""

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Return False: no URL path identifies this wire format."""
        return False

    def describe(self) -> WireRequest | None:
        """Return None: no request gets a description of the server or model."""
        return None

    def described(self, response: WireResponse) -> Described | Protocol | None:
        """Return None: no description was requested, so there is none to read."""
        return None

    @property
    def complete(self) -> bool:
        """True: images can be encoded without a description from the server."""
        return True

    @property
    def proven(self) -> bool:
        """False: the request has a single form, so a refusal never leads to a simpler one."""
        return False

    def explain(self, response: WireResponse) -> str:
        """Return the complete error message of a failed response.

        It may be long and may echo a credential: show it through ``excerpt``.
        """
        return explain(response)

    def retryable(self, response: WireResponse) -> bool | None:
        """Return None: the general retry policy decides whether to retry a failed request."""
        return None

    def wait(self, response: WireResponse) -> float | None:
        """Return None: the response requests no wait beyond the standard headers."""
        return None

    def plainer(self) -> Protocol | None:
        """Return None: this wire format has no simpler form of request."""
        return None

    def fallback(self, response: WireResponse) -> Protocol | None:
        """Return None: this wire format has no simpler form of request."""
        return None


def excerpt(text: bytes | str, hide: Callable[[str], str] = str) -> str:
    """Return at most 200 printable characters of a response body, on one line, for a message.

    HTML tags and repeated spaces are removed.

    Args:
        text: Body or text to shorten.
        hide: Function that removes secrets. It gets the whole text, because a cut in the middle of
            a secret would leave a part of it.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    # Only the excerpt is shown, so the steps below need not process a body of megabytes.
    text = hide(text)[:8192]
    if re.match(r"\s*<(!doctype|html|head|body)", text, re.IGNORECASE):
        # The cut above may have removed a closing tag, so the end of the text counts as one.
        text = re.sub(r"(?is)<(script|style).*?(</\1>|$)|<[^>]*>", " ", text)
        # Unescaping may bring back a secret that was hidden from the first pass by HTML entities.
        text = hide(html.unescape(text))

    printable = "".join(c if c.isprintable() else " " for c in text)
    line = " ".join(printable.split())
    if not line:
        return "an empty body"
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"


def explain(response: WireResponse) -> str:
    """Return the error message in a failed response's JSON, or else its complete text.

    The message may be long and may echo a credential: show it through ``excerpt``.
    """
    try:
        message = _message(json.loads(response.body))
    except (ValueError, RecursionError):
        message = None
    return message or response.body.decode("utf-8", "replace")


def _message(value: Any) -> str | None:
    """Return the error message in a response's JSON; None if there is none.

    The JSON is a string, a list of messages, or an object with one of the keys ``MESSAGES``.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        # FastAPI lists one error for each wrong element, which may be thousands.
        messages = [_message(item) for item in value[:8]]
        return "; ".join(filter(None, messages)) or None
    if isinstance(value, dict):
        for key in MESSAGES:
            text = _message(value.get(key))
            if text:
                return text
    return None


def join(url: str, path: str, ending: str = "") -> str:
    """Return a URL with a path appended.

    A trailing slash of the URL is dropped, and its query is kept after the path.

    Args:
        url: URL of the endpoint.
        path: Path to append, starting with a slash.
        ending: Regular expression for an ending of the URL that the path replaces.
    """
    address, mark, query = url.partition("?")
    return re.sub(f"(?:{ending})$", "", address.rstrip("/")).rstrip("/") + path + mark + query


def digest(*values: Any) -> str:
    """Return eight hexadecimal digits that identify these values, for use in a cache key."""
    # Options that are given in Python may contain values that JSON has no form for.
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def checked_scores(labels: Sequence[Any], scores: Sequence[Any]) -> list[tuple[str, float]]:
    """Check labels and scores from an endpoint, and return them as (label, score) pairs.

    Raises:
        MalformedAnswerError: There is no label, the numbers of labels and scores differ, a label is
            not text or contains a lone surrogate, or a score is not a finite number.
    """
    if not labels or len(labels) != len(scores):
        raise MalformedAnswerError(
            f"{len(labels)} labels and {len(scores)} scores",
            "one score per label, and at least one of them",
        )
    for label in labels:
        if not isinstance(label, str) or SURROGATE.search(label):
            raise MalformedAnswerError(repr(label), "text", "the label ")
    for score in scores:
        # A bool is an int in Python.
        if isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score):
            raise MalformedAnswerError(repr(score), "a finite number", "the score ")
    return [(label, float(score)) for label, score in zip(labels, scores, strict=True)]


def embedding(numbers: Sequence[Any]) -> Answer:
    """Return an ``Answer`` that holds the D features of an image, named ``dim 0``, ``dim 1``, ….

    The features keep their order.

    Raises:
        MalformedAnswerError: There are no numbers, or one is not finite.
    """
    pairs = checked_scores([f"dim {i}" for i in range(len(numbers))], numbers)
    return Answer(
        tuple(name for name, _ in pairs), tuple(number for _, number in pairs), "embedding"
    )


def best_first(pairs: Iterable[tuple[str, float]], kind: ScoreKind) -> Answer:
    """Return an ``Answer`` with the label of the highest score first.

    Labels with equal scores keep the given order.
    """
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    return Answer(tuple(label for label, _ in ranked), tuple(score for _, score in ranked), kind)


def _is_deep(document: Any) -> bool:
    """Whether JSON has more than ``MOST_NESTED`` levels of objects and lists."""
    level = [document]
    for _ in range(MOST_NESTED):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        if not inner:
            return False
        level = inner
    return any(isinstance(value, dict | list) for value in level)


def _finite(score: int | float) -> bool:
    try:
        return math.isfinite(float(score))
    # JSON may hold an integer beyond float's range.
    except OverflowError:
        return False
