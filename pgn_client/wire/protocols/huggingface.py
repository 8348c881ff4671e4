"""Hugging Face image classification, for its Inference Endpoints and for community servers.

The behavior below was observed on both. The server of Inference Endpoints compares the headers
``Content-Type`` and ``Accept`` as exact strings. It returns 400 for every error, and the top 5
labels unless ``top_k`` requests more. The community server refuses ``top_k``.

A label mapping, from the model's labels to your classes, needs all scores. So the client sends
``top_k`` first. If the server refuses that request, and has never accepted one, the client leaves
``top_k`` out. Once the server has accepted ``top_k``, a 400 is due to the image.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pgn_client.types import Answer
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import (
    Defaults,
    MalformedAnswerError,
    Payload,
    WireRequest,
    WireResponse,
)
from pgn_client.wire.protocols.options import MEANING, options
from pgn_client.wire.protocols.scores import Reader

FORM = '[{"label", "score"}, ...]'
# More than any published label set has. Servers clip it to the number of their labels.
ALL = 100_000


@dataclass(slots=True)
class Learnt:
    """What a server's responses have shown, shared by all copies of a wire format.

    Attributes:
        json_works: Whether the request as JSON with parameters has worked once.
    """

    json_works: bool = False


@dataclass(frozen=True, slots=True)
class HuggingFace(Defaults):
    """Wire format ``huggingface``: images are posted to the endpoint's unchanged URL.

    Option:

    - ``scores`` (or ``output``): Meaning of the numbers: ``probs``, ``logits`` or ``sigmoid``; see
      ``Reader``.

    Attributes:
        url: URL of the endpoint.
        top_k: Number of labels to request, in JSON with the image in base64; None sends the raw
            bytes of one image without parameters.
        reader: Reader that turns the scores into an answer.
        learnt: What the server's responses have shown, shared by the JSON form and the raw form.
    """

    url: str
    top_k: int | None = ALL
    name: Literal["huggingface"] = "huggingface"
    reader: Reader = field(default_factory=Reader, repr=False)
    learnt: Learnt = field(default_factory=Learnt, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> HuggingFace:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid.
        """
        # A check alone: ``Reader.of`` reads the option.
        options(endpoint, "huggingface", MEANING)
        return cls(endpoint.url, reader=replace(Reader.of(endpoint), labels=()))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether this is a URL path of Hugging Face's serverless API.

        An Inference Endpoint may have any path, so it is not recognized.
        """
        return "/hf-inference/models/" in path

    @property
    def dialect(self) -> str:
        """Text for the cache key: name, requested number of labels, configured meaning."""
        form = "raw" if self.top_k is None else f"top_k={self.top_k}"
        return " ".join(filter(None, (self.name, form, self.reader.mark)))

    @property
    def proven(self) -> bool:
        """Whether this is the request as JSON with ``top_k``, and it has worked once."""
        return self.top_k is not None and self.learnt.json_works

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends the images to the model.

        JSON holds one or several images; without ``top_k``, the body is one raw image.
        """
        if self.top_k is None:
            (image,) = images
            headers = {"content-type": image.media_type, "accept": "application/json"}
            return WireRequest("POST", self.url, headers, image.data)

        texts = [base64.b64encode(image.data).decode("ascii") for image in images]
        # Only the Endpoints' server takes a list, so a single image is sent without one.
        inputs = texts[0] if len(texts) == 1 else texts
        return post(self.url, {"inputs": inputs, "parameters": {"top_k": self.top_k}})

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, labels with their scores, per image from a successful response."""
        decoded = answers(response, self.reader)
        if self.top_k is not None:
            self.learnt.json_works = True
        return decoded

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds to wait if the server is still loading the model; None otherwise."""
        return loading(response)

    def plainer(self) -> HuggingFace | None:
        """Return the wire format that sends one raw image, not JSON; None if this one does."""
        return replace(self, top_k=None) if self.top_k is not None else None

    def fallback(self, response: WireResponse) -> HuggingFace | None:
        """Return the wire format that sends one raw image, if the server may have refused the JSON.

        None if the failure has another cause, or if the raw image was what failed.
        """
        # 415 and 422 are other servers' refusals of JSON or of a parameter.
        refused = response.status in (400, 415, 422)
        return self.plainer() if refused and not self.proven else None


def loading(response: WireResponse) -> float | None:
    """Return the response's ``estimated_time``, the seconds until the model is loaded.

    None if it is absent or no usable number.
    """
    try:
        seconds = response.json().get("estimated_time")
    # Not JSON, or JSON that is no object and so has no ``get``.
    except (MalformedAnswerError, AttributeError):
        return None
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    # JSON may hold NaN, infinity, or an integer that float refuses.
    return float(seconds) if is_number and 0 < seconds < 1e9 else None


def post(url: str, document: Any) -> WireRequest:
    """Return a POST request with a JSON body.

    Its headers are exactly those that the server of Hugging Face's Inference Endpoints accepts.
    """
    headers = {"content-type": "application/json", "accept": "application/json"}
    body = json.dumps(document, separators=(",", ":")).encode()
    return WireRequest("POST", url, headers, body)


def answers(response: WireResponse, reader: Reader) -> list[Answer]:
    """Return one answer per image from ``[{"label", "score"}, ...]``, or a list of such lists.

    Raises:
        MalformedAnswerError: The response has another form.
    """
    document = response.json()
    if not isinstance(document, list) or not document:
        raise MalformedAnswerError(response.body, FORM)
    is_batch = all(isinstance(item, list) for item in document)
    per_image = document if is_batch else [document]
    return [_answer(items, reader) for items in per_image]


def _answer(items: list[Any], reader: Reader) -> Answer:
    if not all(isinstance(item, dict) and {"label", "score"} <= item.keys() for item in items):
        raise MalformedAnswerError(json.dumps(items), FORM)
    labels = [item["label"] for item in items]
    scores = [item["score"] for item in items]
    return reader.pairs(labels, scores)
