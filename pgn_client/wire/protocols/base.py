"""Building blocks of every wire format: requests, responses, the ``Protocol`` interface.

There is no I/O here. Error bodies are parsed leniently, because servers differ most in those.
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

EXCERPT = 200
# JSON may escape a lone surrogate, which cannot be encoded as UTF-8 for a file or a terminal.
SURROGATE = re.compile("[\ud800-\udfff]")
# Keys of error messages: of most servers, FastAPI, TorchServe, AWS, the items of FastAPI's lists,
# and SageMaker's containers. The first one that holds a text is used.
MESSAGES = ("error", "detail", "message", "Message", "msg", "OriginalMessage")


class MalformedAnswerError(ValueError):
    """A response that does not follow the protocol.

    The caller adds the endpoint's name and the number of attempts.

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
        """Return the message; ``hide`` removes secrets from the received text."""
        return f"got {self.what}{excerpt(self.got, hide)}, expected {self.expected}"

    def __str__(self) -> str:
        return self.tell()


@dataclass(frozen=True, slots=True)
class Payload:
    """One encoded image.

    Attributes:
        data: Bytes of the encoded file.
        media_type: Media type of the file, for example ``image/png``.
        pixels: Number of pixels, width times height; 0 if unknown.
        image: The same image in RGB, for wire formats that send numbers instead of files.
        hosted: Reference of the uploaded checkpoint that processes the image on the server; empty
            where the hosted model processes it alone.
    """

    data: bytes = field(repr=False)
    media_type: str
    pixels: int = 0
    image: Image.Image | None = field(default=None, repr=False, compare=False)
    hosted: str = ""


@dataclass(frozen=True, slots=True)
class WireRequest:
    """An HTTP request before credentials are added; header names are in lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response, whose error body may be cut at a size limit.

    Header names are in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def ok(self) -> bool:
        """Whether the status is a success (2xx)."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Return the body, parsed as JSON.

        Raises:
            MalformedAnswerError: The body is not JSON.
        """
        try:
            return json.loads(self.body)
        # Deeply nested brackets raise RecursionError.
        except (ValueError, RecursionError):
            raise MalformedAnswerError(self.body, "JSON") from None


@dataclass(frozen=True, slots=True)
class Described:
    """An endpoint's description of itself.

    Attributes:
        protocol: Wire format, completed with the description (model name, tensor names, dialect).
        info: Description of the model; None if the endpoint returns none.
        limits: Largest request that the endpoint accepts.
    """

    protocol: Protocol
    info: ModelInfo | None = None
    limits: Limits = field(default_factory=Limits)


class Protocol(typing.Protocol):
    """One wire format, bound to an endpoint."""

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """Bind the wire format to an endpoint."""
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
        """Read the response to ``describe``.

        Returns:
            The description; or this wire format with another ``describe`` request to send; or None
            if the response belongs to another wire format.

        Raises:
            ConfigurationError: An option that the response makes necessary is missing.
            MalformedAnswerError: The response belongs to this wire format, but is unusable.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether images can be encoded without a description from ``described``."""
        ...

    @property
    def name(self) -> str:
        """Name in the registry ``PROTOCOLS``."""
        ...

    @property
    def dialect(self) -> str:
        """Name, and everything in the request that can change the answer.

        It is part of the cache key.
        """
        ...

    @property
    def proven(self) -> bool:
        """Whether this dialect has worked once; a later refusal is then due to the image."""
        ...

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request that sends these images."""
        ...

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per image from a successful response.

        Raises:
            MalformedAnswerError: The response does not follow the protocol.
        """
        ...

    def explain(self, response: WireResponse) -> str:
        """Return the complete message of a failed response; show it through ``excerpt``."""
        ...

    def retryable(self, response: WireResponse) -> bool | None:
        """Return whether a failed request should be retried; None leaves it to the retry policy."""
        ...

    def wait(self, response: WireResponse) -> float | None:
        """Return the wait in seconds that a failed response requests; None if it has none."""
        ...

    def plainer(self) -> Protocol | None:
        """Return a dialect with fewer features of the same wire format; None if there is none."""
        ...

    def fallback(self, response: WireResponse) -> Protocol | None:
        """Return a plainer dialect to try after this refusal; None if none can help."""
        ...


class Defaults:
    """Default implementations of the optional ``Protocol`` methods."""

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Return False: no path identifies this wire format."""
        return False

    def describe(self) -> WireRequest | None:
        """Return None: there is no description request."""
        return None

    def described(self, response: WireResponse) -> Described | Protocol | None:
        """Return None: there was no description request."""
        return None

    @property
    def complete(self) -> bool:
        """True: encoding needs no description."""
        return True

    @property
    def proven(self) -> bool:
        """False: with a single dialect there is no fallback to decide on."""
        return False

    def explain(self, response: WireResponse) -> str:
        """Return the complete message of a failed response; show it through ``excerpt``."""
        return explain(response)

    def retryable(self, response: WireResponse) -> bool | None:
        """Return None: the retry policy decides."""
        return None

    def wait(self, response: WireResponse) -> float | None:
        """Return None: the response requests no wait beyond the standard headers."""
        return None

    def plainer(self) -> Protocol | None:
        """Return None: there is no plainer dialect."""
        return None

    def fallback(self, response: WireResponse) -> Protocol | None:
        """Return None: there is no plainer dialect."""
        return None


def excerpt(text: bytes | str, hide: Callable[[str], str] = str) -> str:
    """Return at most 200 printable characters of a body on one line.

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
    """Return the error message in the JSON of a response: a string, a list of messages, or an
    object with one of the keys ``MESSAGES``; None if there is none.
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
    """Append a path to a URL; a trailing slash is dropped and a query is kept.

    Args:
        url: URL of the endpoint.
        path: Path to append, starting with a slash.
        ending: Regular expression for an ending of the URL that the path replaces.
    """
    address, mark, query = url.partition("?")
    return re.sub(f"(?:{ending})$", "", address.rstrip("/")).rstrip("/") + path + mark + query


def digest(*values: Any) -> str:
    """Return eight hexadecimal digits that identify the values, for the name of a dialect."""
    # Options that are given in Python may contain values that JSON has no form for.
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def checked_scores(labels: Sequence[Any], scores: Sequence[Any]) -> list[tuple[str, float]]:
    """Check labels and scores from an endpoint, and return them as pairs.

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
    """Return the D features of an image as an answer, in the given order.

    Raises:
        MalformedAnswerError: There are no numbers, or one is not finite.
    """
    pairs = checked_scores([f"dim {i}" for i in range(len(numbers))], numbers)
    return Answer(
        tuple(name for name, _ in pairs), tuple(number for _, number in pairs), "embedding"
    )


def best_first(pairs: Iterable[tuple[str, float]], kind: ScoreKind) -> Answer:
    """Return an answer with the best label first; equal scores keep the given order."""
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    return Answer(tuple(label for label, _ in ranked), tuple(score for _, score in ranked), kind)


def _finite(score: int | float) -> bool:
    try:
        return math.isfinite(float(score))
    # JSON may hold an integer beyond float's range.
    except OverflowError:
        return False
