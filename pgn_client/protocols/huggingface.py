"""Hugging Face image classification, as its Inference Endpoints and community servers speak it.

Both were observed on the wire. The Endpoints' server matches ``Content-Type`` and ``Accept`` as exact strings, answers
every error with 400, and returns the top 5 unless ``top_k`` says more; the community server refuses ``top_k``.
A label mapping lives on all the scores, so ``top_k`` is asked for first and left out after a refusal.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pgn_client.protocols.base import (
    Defaults,
    MalformedAnswerError,
    Payload,
    WireRequest,
    WireResponse,
    checked_scores,
    excerpt,
)
from pgn_client.types import Answer

ALL = 100_000  # more than any published label set; servers clip it to the number of their labels


@dataclass(frozen=True, slots=True)
class HuggingFace(Defaults):
    """``huggingface``: POST to the URL verbatim.

    Attributes:
        url: the endpoint's own URL.
        top_k: labels to ask for, as JSON with base64; None sends one picture's raw bytes without parameters.
    """

    url: str
    top_k: int | None = ALL
    name: Literal["huggingface"] = "huggingface"

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request; several pictures need the JSON form."""
        if self.top_k is None:
            (image,) = images
            headers = {"content-type": image.media_type, "accept": "application/json"}
            return WireRequest("POST", self.url, headers, image.data)
        texts = [base64.b64encode(image.data).decode("ascii") for image in images]
        document = {"inputs": texts[0] if len(texts) == 1 else texts, "parameters": {"top_k": self.top_k}}
        headers = {"content-type": "application/json", "accept": "application/json"}
        return WireRequest("POST", self.url, headers, json.dumps(document, separators=(",", ":")).encode())

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per picture of a successful response."""
        document = response.json()
        if not isinstance(document, list) or not document:
            raise MalformedAnswerError(f'got {excerpt(response.body)}, expected [{{"label", "score"}}, ...]')
        several = all(isinstance(item, list) for item in document)
        return [_answer(items) for items in (document if several else [document])]

    def wait(self, response: WireResponse) -> float | None:
        """Return ``estimated_time`` of a model that is still loading."""
        try:
            seconds = response.json().get("estimated_time")
        except (MalformedAnswerError, AttributeError):
            return None
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        return float(seconds) if number and 0 < seconds < 1e9 else None

    def fallback(self, response: WireResponse) -> HuggingFace | None:
        """Return the raw form when the JSON form or its parameter may be what was refused."""
        refused = response.status in (400, 415, 422)
        return HuggingFace(self.url, top_k=None) if refused and self.top_k is not None else None


def _answer(items: list[Any]) -> Answer:
    """Read ``[{"label", "score"}, ...]``.

    The format does not say what the scores are: they are probabilities unless one is negative or they sum to more
    than 1 + 1e-3 (float32 rounding of many classes), and logits otherwise.
    """
    if not all(isinstance(item, dict) and {"label", "score"} <= item.keys() for item in items):
        raise MalformedAnswerError(f'got {excerpt(json.dumps(items))}, expected [{{"label", "score"}}, ...]')
    labels, scores = checked_scores([item["label"] for item in items], [item["score"] for item in items])
    logits = min(scores) < 0 or sum(scores) > 1 + 1e-3
    return Answer(labels, scores, "logits" if logits else "probabilities")
