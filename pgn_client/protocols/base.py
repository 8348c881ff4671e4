"""What every wire format is made of: requests and responses without I/O, and lenient reading of errors."""

from __future__ import annotations

import html
import json
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgn_client.types import Answer

EXCERPT = 200


class MalformedAnswerError(ValueError):
    """A response that is not of the protocol's form; the caller adds the endpoint's name and attempts."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One encoded picture.

    Attributes:
        data: the file's bytes.
        media_type: for example ``image/png``.
    """

    data: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True, slots=True)
class WireRequest:
    """An HTTP request, before credentials; header names in lower case."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class WireResponse:
    """An HTTP response that was read completely, or up to the limit for errors; header names in lower case."""

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
            raise MalformedAnswerError(f"got {excerpt(self.body)}, expected JSON") from None


class Protocol(typing.Protocol):
    """One wire format, bound to a URL."""

    @property
    def name(self) -> str:
        """The name in the registry."""
        ...

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request that asks about these pictures."""
        ...

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per picture of a successful response.

        Raises:
            MalformedAnswerError: it is not of the protocol's form.
        """
        ...

    def explain(self, response: WireResponse) -> str:
        """Return what a failed response says, on one line of at most 200 characters."""
        ...

    def retryable(self, response: WireResponse) -> bool | None:
        """Return whether a failed request is worth sending again; None leaves it to the retry policy."""
        ...

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds that the body of a failed response asks to wait, if any."""
        ...

    def fallback(self, response: WireResponse) -> Protocol | None:
        """Return a plainer dialect to try after this refusal, if there is one."""
        ...


class Defaults:
    """The hooks as most wire formats need them."""

    def explain(self, response: WireResponse) -> str:
        """Return what a failed response says, on one line of at most 200 characters."""
        return explain(response)

    def retryable(self, response: WireResponse) -> bool | None:
        """Leave it to the retry policy."""
        return None

    def wait(self, response: WireResponse) -> float | None:
        """No wait is asked for in the body."""
        return None

    def fallback(self, response: WireResponse) -> Protocol | None:
        """There is no plainer dialect."""
        return None


def excerpt(text: bytes | str) -> str:
    """Return at most 200 printable characters of a body on one line, tags and repeated blanks removed."""
    if isinstance(text, bytes):
        text = text[:8192].decode("utf-8", "replace")
    if re.match(r"\s*<(!doctype|html|head|body)", text, re.IGNORECASE):
        text = re.sub(r"(?is)<(script|style).*?(</\1>|$)|<[^>]*>", " ", text)
        text = html.unescape(text)
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not line:
        return "an empty body"
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"


def explain(response: WireResponse) -> str:
    """Return a failed response's message from ``error`` or ``detail`` of its JSON, or an excerpt of its text."""
    try:
        found = _message(json.loads(response.body))
    except (ValueError, RecursionError):
        found = None
    return excerpt(found or response.body)


def _message(value: Any) -> str | None:
    """Find the message in ``"text"``, ``[...]`` or ``{"error" | "detail" | "message" | "msg": ...}``."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, (_message(item) for item in value[:8]))) or None
    if isinstance(value, dict):
        named = (value.get(key) for key in ("error", "detail", "message", "msg"))
        return next((text for text in (_message(item) for item in named) if text), None)
    return None


def checked_scores(labels: Sequence[Any], scores: Sequence[Any]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return labels and scores, best first (ties in the given order), after checking what an endpoint sent.

    Raises:
        MalformedAnswerError: no label, a label that is no text or occurs twice, a score that is no finite number.
    """
    if not labels or len(labels) != len(scores):
        raise MalformedAnswerError(f"got {len(labels)} labels and {len(scores)} scores, expected as many, at least one")
    for label in labels:
        if not isinstance(label, str):
            raise MalformedAnswerError(f"got the label {excerpt(repr(label))}, expected text")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not _finite(score):
            raise MalformedAnswerError(f"got the score {excerpt(repr(score))}, expected a finite number")
    if len(set(labels)) < len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise MalformedAnswerError(f"got the label {excerpt(twice)!r} more than once, expected distinct labels")
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    return tuple(labels[i] for i in order), tuple(float(scores[i]) for i in order)


def _finite(score: int | float) -> bool:
    try:
        return math.isfinite(float(score))
    except OverflowError:
        return False
