"""Hugging Face image classification, as its Inference Endpoints and community servers speak it.

Both were observed on the wire. The Endpoints' server matches ``Content-Type`` and ``Accept`` as
exact strings, answers every error with 400, and returns the top 5 unless ``top_k`` says more; the
community server refuses ``top_k``. A label mapping lives on all the scores, so ``top_k`` is asked
for first, and left out when it is refused before it ever worked; later a 400 is about the image.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pgn_client.types import Answer, ScoreKind
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import (
    Defaults,
    MalformedAnswerError,
    Payload,
    WireRequest,
    WireResponse,
)
from pgn_client.wire.protocols.options import options
from pgn_client.wire.protocols.scores import Reader

FORM = '[{"label", "score"}, ...]'
ALL = 100_000  # more than any published label set; servers clip it to the number of their labels


@dataclass(slots=True)
class Learnt:
    """What a server's answers have shown.

    Attributes:
        json_works: whether the JSON form was answered once.
        kinds: ``{"kind": ...}`` once the first answer has decided it (a dict, because
            ``setdefault`` is atomic).
    """

    json_works: bool = False
    kinds: dict[str, ScoreKind] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HuggingFace(Defaults):
    """``huggingface``: POST to the URL verbatim.

    Attributes:
        url: the endpoint's own URL.
        top_k: labels to ask for, as JSON with base64; None sends one image's raw bytes without
            parameters.
        learnt: what the server's answers have shown, shared by both forms.
    """

    url: str
    top_k: int | None = ALL
    name: Literal["huggingface"] = "huggingface"
    learnt: Learnt = field(default_factory=Learnt, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> HuggingFace:
        """Bind the wire format to an endpoint."""
        options(endpoint, "huggingface", {})
        return cls(endpoint.url)

    @classmethod
    def recognises(cls, path: str) -> bool:
        """The serverless API's paths; an Inference Endpoint answers at any."""
        return "/hf-inference/models/" in path

    @property
    def dialect(self) -> str:
        """The name and what is asked for."""
        return f"{self.name} {'raw' if self.top_k is None else f'top_k={self.top_k}'}"

    @property
    def proven(self) -> bool:
        """Whether the JSON form was answered once."""
        return self.top_k is not None and self.learnt.json_works

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request; several images need the JSON form."""
        if self.top_k is None:
            (image,) = images
            headers = {"content-type": image.media_type, "accept": "application/json"}
            return WireRequest("POST", self.url, headers, image.data)
        texts = [base64.b64encode(image.data).decode("ascii") for image in images]
        inputs = texts[0] if len(texts) == 1 else texts
        return post(self.url, {"inputs": inputs, "parameters": {"top_k": self.top_k}})

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per image of a successful response."""
        found = answers(response, Reader(learnt=self.learnt.kinds))
        self.learnt.json_works |= self.top_k is not None
        return found

    def wait(self, response: WireResponse) -> float | None:
        """Return ``estimated_time`` of a model that is still loading."""
        return loading(response)

    def plainer(self) -> HuggingFace | None:
        """Return the raw form of the JSON form."""
        return replace(self, top_k=None) if self.top_k is not None else None

    def fallback(self, response: WireResponse) -> HuggingFace | None:
        """Return the raw form when the JSON form or its parameter may be what was refused."""
        return self.plainer() if response.status in (400, 415, 422) and not self.proven else None


def loading(response: WireResponse) -> float | None:
    """Return ``estimated_time``, the seconds until a model is loaded."""
    try:
        seconds = response.json().get("estimated_time")
    except (MalformedAnswerError, AttributeError):
        return None
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return float(seconds) if number and 0 < seconds < 1e9 else None


def post(url: str, document: Any) -> WireRequest:
    """Return a request with JSON, in exactly the headers that the Endpoints' server takes."""
    headers = {"content-type": "application/json", "accept": "application/json"}
    return WireRequest("POST", url, headers, json.dumps(document, separators=(",", ":")).encode())


def answers(response: WireResponse, reader: Reader) -> list[Answer]:
    """Return one answer per image of ``[{"label", "score"}, ...]``, or of a list of such lists.

    Raises:
        MalformedAnswerError: it is neither.
    """
    document = response.json()
    if not isinstance(document, list) or not document:
        raise MalformedAnswerError(response.body, FORM)
    several = all(isinstance(item, list) for item in document)
    return [_answer(items, reader) for items in (document if several else [document])]


def _answer(items: list[Any], reader: Reader) -> Answer:
    if not all(isinstance(item, dict) and {"label", "score"} <= item.keys() for item in items):
        raise MalformedAnswerError(json.dumps(items), FORM)
    return reader.pairs([item["label"] for item in items], [item["score"] for item in items])
