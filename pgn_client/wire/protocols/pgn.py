"""The wire format ``pgn`` of this project's own server: one image in, scores of all classes out.

``tests/contract/wire/README.md`` specifies ``POST {url}/v1/classify`` and ``GET {url}/v1/model``.
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
    """Wire format ``pgn`` of this project's server: each request sends the raw bytes of one image.

    Attributes:
        url: Address of the server; it may end in ``/v1/classify``.
    """

    url: str
    name: Literal["pgn"] = "pgn"
    dialect: Literal["pgn"] = "pgn"

    @classmethod
    def of(cls, endpoint: Endpoint) -> PGN:
        """Return this wire format, bound to an endpoint."""
        # Refuses all options: this wire format has none.
        options(endpoint, "pgn", {})
        return cls(endpoint.url)

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether a URL path ends in ``/v1/classify``."""
        return path.endswith("/v1/classify")

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        headers = {"content-type": image.media_type, "accept": "application/json"}
        url = join(self.url, "/v1/classify")
        if image.hosted:
            url += ("&" if "?" in url else "?") + f"adapter={image.hosted}"
        return WireRequest("POST", url, headers, image.data)

    def card_of(self, adapter: str) -> WireRequest:
        """Return the HTTP request for the metadata (card) of the uploaded checkpoint."""
        url = join(self.url, f"/v1/adapters/{adapter}")
        return WireRequest("GET", url, {"accept": "application/json"})

    def upload(self, adapter: str, data: bytes) -> WireRequest:
        """Return the HTTP request that uploads a checkpoint file under the name ``adapter``."""
        url = join(self.url, f"/v1/adapters/{adapter}")
        headers = {"content-type": "application/octet-stream", "accept": "application/json"}
        return WireRequest("PUT", url, headers, data)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, labels with their scores, per image from a successful response."""
        document = response.json()
        fields = document if isinstance(document, dict) else {}
        kind = _KINDS.get(str(fields.get("output")))
        predictions = fields.get("predictions")
        if kind is None or not isinstance(predictions, list) or not predictions:
            raise MalformedAnswerError(response.body, "output and predictions")
        return [_answer(item, kind) for item in predictions]

    def describe(self) -> WireRequest:
        """Return the HTTP request for the model's description, ``GET /v1/model``."""
        return WireRequest("GET", join(self.url, "/v1/model"), {"accept": "application/json"})

    def described(self, response: WireResponse) -> Described | None:
        """Return the description in a response to ``GET /v1/model``.

        None if the response belongs to another protocol.
        """
        decoded = decode_model(response)
        if decoded is None:
            return None
        info, limits = decoded
        return Described(self, info, Limits(**limits))


def _answer(item: Any, kind: ScoreKind) -> Answer:
    """Return the answer for one image, from its entry in the response's ``predictions``."""
    fields = item if isinstance(item, dict) else {}
    labels = fields.get("labels")
    scores = fields.get("scores")
    if not isinstance(labels, list) or not isinstance(scores, list):
        raise MalformedAnswerError(str(item), "labels and scores", "the prediction ")
    if kind == "embedding":
        return embedding(scores)

    pairs = checked_scores(labels, scores)
    for label, count in Counter(labels).items():
        if count > 1:
            raise MalformedAnswerError(label, "distinct labels", "more than once the label ")
    return best_first(pairs, kind)


def decode_model(response: WireResponse) -> tuple[ModelInfo, dict[str, int]] | None:
    """Return the model's description and limits in a response to ``GET /v1/model``.

    The result is None if the response belongs to another protocol. Such a response names no hash of
    a patch embedding, no classes, no input size and no preprocessing profile. The response is
    untrusted, so fields of a wrong type are left out.
    """
    try:
        document = response.json()
    except MalformedAnswerError:
        return None
    if not response.ok or not isinstance(document, dict):
        return None

    classes = document.get("classes")
    are_texts = isinstance(classes, list) and all(isinstance(label, str) for label in classes)
    info = ModelInfo(
        name=_text(document.get("name")) or "unnamed",
        input_size=_count(document.get("input_size")),
        profile=_text(document.get("profile")),
        classes=tuple(classes) if are_texts and classes else None,
        patch_embedding_sha256=_text(document.get("patch_embedding_sha256")),
        weights_sha256=_text(document.get("weights_sha256")),
    )
    if not (info.patch_embedding_sha256 or info.classes or info.input_size or info.profile):
        return None

    declared = document.get("limits")
    limits: dict[str, int] = {}
    for key in ("body_bytes", "pixels"):
        value = _count(declared.get(key)) if isinstance(declared, dict) else None
        if value is not None:
            limits[key] = value
    return info, limits


def join(url: str, path: str) -> str:
    """Return a URL with a path appended; it replaces ``/v1/classify`` at the URL's end.

    A trailing slash is dropped and a query is kept.
    """
    return base.join(url, path, "/v1/classify")


def _text(value: Any) -> str | None:
    """Return the value if it is a text that is not empty; None otherwise."""
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    """Return the value if it is a whole number above 0; None otherwise."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
