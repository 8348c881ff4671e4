"""The project's own wire format: one image as raw bytes, all classes back.

``POST {url}/v1/classify`` and ``GET {url}/v1/model``; both are specified in
``tests/contract/wire/README.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pgn_client.types import Answer, ModelInfo, ScoreKind
from pgn_client.wire.endpoint import Endpoint, Limits
from pgn_client.wire.protocols import base
from pgn_client.wire.protocols.base import (
    Defaults,
    Described,
    MalformedAnswerError,
    Payload,
    WireRequest,
    WireResponse,
    best_first,
    checked_scores,
    embedding,
)
from pgn_client.wire.protocols.options import options

_KINDS: dict[str, ScoreKind] = {
    "probs": "probabilities",
    "logits": "logits",
    "label": "label",
    "embedding": "embedding",
}


@dataclass(frozen=True, slots=True)
class PGN(Defaults):
    """``pgn``: raw bytes of one image per request.

    Attributes:
        url: the server's address; a trailing ``/v1/classify`` is tolerated.
    """

    url: str
    name: Literal["pgn"] = "pgn"
    dialect: Literal["pgn"] = "pgn"

    @classmethod
    def of(cls, endpoint: Endpoint) -> PGN:
        """Bind the wire format to an endpoint."""
        options(endpoint, "pgn", {})
        return cls(endpoint.url)

    @classmethod
    def recognises(cls, path: str) -> bool:
        """``/v1/classify`` is ours."""
        return path.endswith("/v1/classify")

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        headers = {"content-type": image.media_type, "accept": "application/json"}
        url = join(self.url, "/v1/classify")
        if image.hosted:
            url += ("&" if "?" in url else "?") + f"adapter={image.hosted}"
        return WireRequest("POST", url, headers, image.data)

    def card_of(self, adapter: str) -> WireRequest:
        """Return the request for what the server has under this name."""
        return WireRequest(
            "GET", join(self.url, f"/v1/adapters/{adapter}"), {"accept": "application/json"}
        )

    def upload(self, adapter: str, data: bytes) -> WireRequest:
        """Return the request that puts a file under this name."""
        headers = {"content-type": "application/octet-stream", "accept": "application/json"}
        return WireRequest("PUT", join(self.url, f"/v1/adapters/{adapter}"), headers, data)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per image of a successful response."""
        document = response.json()
        fields = document if isinstance(document, dict) else {}
        kind, predictions = _KINDS.get(str(fields.get("output"))), fields.get("predictions")
        if kind is None or not isinstance(predictions, list) or not predictions:
            raise MalformedAnswerError(response.body, "output and predictions")
        return [_answer(item, kind) for item in predictions]

    def describe(self) -> WireRequest:
        """Return the request for the model's description."""
        return WireRequest("GET", join(self.url, "/v1/model"), {"accept": "application/json"})

    def described(self, response: WireResponse) -> Described | None:
        """Read what ``GET /v1/model`` says; None when the server is not one of this protocol."""
        found = decode_model(response)
        return found and Described(self, found[0], Limits(**found[1]))


def _answer(item: Any, kind: ScoreKind) -> Answer:
    fields = (item.get("labels"), item.get("scores")) if isinstance(item, dict) else (None, None)
    if not all(isinstance(value, list) for value in fields):
        raise MalformedAnswerError(str(item), "labels and scores", "the prediction ")
    if kind == "embedding":
        return embedding(fields[1])  # type: ignore[arg-type]
    pairs = checked_scores(*fields)  # type: ignore[arg-type]
    twice = next(
        (label for label, count in Counter(label for label, _ in pairs).items() if count > 1), None
    )
    if twice is not None:
        raise MalformedAnswerError(twice, "distinct labels", "more than once the label ")
    return best_first(pairs, kind)


def decode_model(response: WireResponse) -> tuple[ModelInfo, dict[str, int]] | None:
    """Return what ``GET /v1/model`` says, and its limits; None when the server is not one of this
    protocol.

    It is one of them when it tells anything of its model: patch embedding, classes, input size or
    profile. Untrusted: fields of a wrong type are left out.
    """
    try:
        document = response.json()
    except MalformedAnswerError:
        return None
    if not response.ok or not isinstance(document, dict):
        return None
    classes = document.get("classes")
    known = isinstance(classes, list) and all(isinstance(label, str) for label in classes)
    info = ModelInfo(
        name=_text(document.get("name")) or "unnamed",
        input_size=_count(document.get("input_size")),
        profile=_text(document.get("profile")),
        classes=tuple(classes) if known and classes else None,
        patch_embedding_sha256=_text(document.get("patch_embedding_sha256")),
        weights_sha256=_text(document.get("weights_sha256")),
    )
    if not (info.patch_embedding_sha256 or info.classes or info.input_size or info.profile):
        return None
    limits = document.get("limits")
    found = (
        {key: _count(limits.get(key)) for key in ("body_bytes", "pixels")}
        if isinstance(limits, dict)
        else {}
    )
    return info, {key: value for key, value in found.items() if value is not None}


def join(url: str, path: str) -> str:
    """Append a path to an address that may end in a slash or already in ``/v1/classify``, and may
    hold a query.
    """
    return base.join(url, path, "/v1/classify")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
