"""What every wire format is made of: requests and responses without I/O, and lenient reading of
errors.
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
# JSON may spell one alone, which no file and no terminal takes
SURROGATE = re.compile("[\ud800-\udfff]")
MESSAGES = ("error", "detail", "message", "Message", "msg", "OriginalMessage")


class MalformedAnswerError(ValueError):
    """A response that is not of the protocol's form; the caller adds the endpoint's name and
    attempts.

    Attributes:
        got: what came, whole. It may be long and may echo a credential: messages are made by
            ``tell``.
        expected: the protocol's form.
        what: which part of the response it is.
    """

    def __init__(self, got: bytes | str, expected: str, what: str = "") -> None:
        self.got, self.expected, self.what = got, expected, what
        super().__init__(expected)

    def tell(self, hide: Callable[[str], str] = str) -> str:
        """Return the message; ``hide`` takes secrets out of what came."""
        return f"got {self.what}{excerpt(self.got, hide)}, expected {self.expected}"

    def __str__(self) -> str:
        return self.tell()


@dataclass(frozen=True, slots=True)
class Payload:
    """One encoded image.

    Attributes:
        data: the file's bytes.
        media_type: for example ``image/png``.
        pixels: width times height; 0 is unknown.
        image: the same image, RGB, for wire formats that send numbers instead of files.
        hosted: reference of the adapter on the server that is to answer; empty for the model
            itself.
    """

    data: bytes = field(repr=False)
    media_type: str
    pixels: int = 0
    image: Image.Image | None = field(default=None, repr=False, compare=False)
    hosted: str = ""


@dataclass(frozen=True, slots=True)
class WireRequest:
    """An HTTP request, before credentials; header names in lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response that was read completely, or up to the limit for errors; header names in
    lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            MalformedAnswerError: it is not.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise MalformedAnswerError(self.body, "JSON") from None


@dataclass(frozen=True, slots=True)
class Described:
    """What an endpoint told of itself.

    Attributes:
        protocol: the wire format, with what it needs to know (names of inputs, the dialect).
        info: of the model, where it tells any of it.
        limits: the largest request.
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
        """Whether the path of a URL is one that only this wire format has."""
        ...

    def describe(self) -> WireRequest | None:
        """Return a request that costs nothing and tells about server or model, if the wire format
        has one.
        """
        ...

    def described(self, response: WireResponse) -> Described | Protocol | None:
        """Read the answer to ``describe``.

        Returns:
            What it told; the same wire format with a further question; or None where it is
            another's answer.

        Raises:
            ConfigurationError: the answer needs an option that is not given.
            MalformedAnswerError: it is this wire format's, and cannot be used.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether images can be encoded before ``described`` was called."""
        ...

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...

    @property
    def dialect(self) -> str:
        """The name, and the form of the request where there are several: other forms may give other
        answers.
        """
        ...

    @property
    def proven(self) -> bool:
        """Whether this dialect was answered once, so that a refusal is about the image."""
        ...

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request that asks about these images."""
        ...

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per image of a successful response.

        Raises:
            MalformedAnswerError: it is not of the protocol's form.
        """
        ...

    def explain(self, response: WireResponse) -> str:
        """Return what a failed response says, whole and as it came; see ``excerpt``."""
        ...

    def retryable(self, response: WireResponse) -> bool | None:
        """Return whether a failed request is worth sending again; None leaves it to the retry
        policy.
        """
        ...

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds that the body of a failed response asks to wait, if any."""
        ...

    def plainer(self) -> Protocol | None:
        """Return a plainer dialect of the same wire format, if there is one."""
        ...

    def fallback(self, response: WireResponse) -> Protocol | None:
        """Return a plainer dialect to try after this refusal, if there is one."""
        ...


class Defaults:
    """The hooks as most wire formats need them."""

    @classmethod
    def recognises(cls, path: str) -> bool:
        """No path is special."""
        return False

    def describe(self) -> WireRequest | None:
        """There is nothing to ask."""
        return None

    def described(self, response: WireResponse) -> Described | Protocol | None:
        """Nothing was asked."""
        return None

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return True

    @property
    def proven(self) -> bool:
        """With one dialect there is nothing to prove."""
        return False

    def explain(self, response: WireResponse) -> str:
        """Return what a failed response says, whole and as it came; see ``excerpt``."""
        return explain(response)

    def retryable(self, response: WireResponse) -> bool | None:
        """Leave it to the retry policy."""
        return None

    def wait(self, response: WireResponse) -> float | None:
        """No wait is asked for in the body."""
        return None

    def plainer(self) -> Protocol | None:
        """There is no plainer dialect."""
        return None

    def fallback(self, response: WireResponse) -> Protocol | None:
        """There is no plainer dialect."""
        return None


def excerpt(text: bytes | str, hide: Callable[[str], str] = str) -> str:
    """Return at most 200 printable characters of a body on one line, tags and repeated blanks
    removed.

    ``hide`` takes secrets out. It sees the whole text, because a cut in the middle of a secret
    would keep a part of it.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = hide(text)[:8192]
    if re.match(r"\s*<(!doctype|html|head|body)", text, re.IGNORECASE):
        text = re.sub(r"(?is)<(script|style).*?(</\1>|$)|<[^>]*>", " ", text)
        text = hide(html.unescape(text))
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not line:
        return "an empty body"
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"


def explain(response: WireResponse) -> str:
    """Return a failed response's message from ``error`` or ``detail`` of its JSON, or its text; see
    ``excerpt``.
    """
    try:
        found = _message(json.loads(response.body))
    except (ValueError, RecursionError):
        found = None
    return found or response.body.decode("utf-8", "replace")


def _message(value: Any) -> str | None:
    """Find the message in ``"text"``, ``[...]`` or an object that holds one under ``MESSAGES``."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, (_message(item) for item in value[:8]))) or None
    if isinstance(value, dict):
        named = (value.get(key) for key in MESSAGES)
        return next((text for text in (_message(item) for item in named) if text), None)
    return None


def join(url: str, path: str, ending: str = "") -> str:
    """Append a path to an address that may end in a slash, and may hold a query.

    Args:
        url: the address.
        path: what to append; from a slash on.
        ending: a regular expression of what the address may already end in, and which the path
            replaces.
    """
    address, mark, query = url.partition("?")
    return re.sub(f"(?:{ending})$", "", address.rstrip("/")).rstrip("/") + path + mark + query


def digest(*values: Any) -> str:
    """Return eight hexadecimal digits that tell values apart, for the name of a dialect."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def checked_scores(labels: Sequence[Any], scores: Sequence[Any]) -> list[tuple[str, float]]:
    """Return pairs of label and score after checking what an endpoint sent.

    Raises:
        MalformedAnswerError: no label, a label that is no text (half of a pair of surrogates
            neither), a score that is no finite number.
    """
    if not labels or len(labels) != len(scores):
        raise MalformedAnswerError(
            f"{len(labels)} labels and {len(scores)} scores", "as many, at least one"
        )
    for label in labels:
        if not isinstance(label, str) or SURROGATE.search(label):
            raise MalformedAnswerError(repr(label), "text", "the label ")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score):
            raise MalformedAnswerError(repr(score), "a finite number", "the score ")
    return [(label, float(score)) for label, score in zip(labels, scores, strict=True)]


def embedding(numbers: Sequence[Any]) -> Answer:
    """Return an image's D features as an answer, in their own order.

    Raises:
        MalformedAnswerError: no numbers, or one that is not finite.
    """
    pairs = checked_scores([f"dim {i}" for i in range(len(numbers))], numbers)
    return Answer(
        tuple(name for name, _ in pairs), tuple(number for _, number in pairs), "embedding"
    )


def best_first(pairs: Iterable[tuple[str, float]], kind: ScoreKind) -> Answer:
    """Return an answer, best label first; equal scores stay in the given order."""
    ranked = sorted(pairs, key=lambda pair: -pair[1])
    return Answer(tuple(label for label, _ in ranked), tuple(score for _, score in ranked), kind)


def _finite(score: int | float) -> bool:
    try:
        return math.isfinite(float(score))
    except OverflowError:
        return False
