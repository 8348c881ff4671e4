"""OpenAI's wire formats: a chat with an image that names one of your labels, and embeddings of
images.

Neither was made for classification. A closed set of labels is kept by ``response_format`` with an
enum, where the server knows it; probabilities come from the logarithms of token probabilities,
where the server gives them. OpenAI's own models resample every image, so that no prompt survives
pixel by pixel there.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer, ModelInfo
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import (
    Defaults,
    Described,
    MalformedAnswerError,
    Payload,
    WireRequest,
    WireResponse,
    digest,
    embedding,
    join,
)
from pgn_client.wire.protocols.huggingface import post
from pgn_client.wire.protocols.logprobs import probabilities, said_label
from pgn_client.wire.protocols.options import need_labels, only_model, options
from pgn_client.wire.protocols.template import fill

ENDING = r"/v1(?:/chat/completions|/embeddings|/models)?|/chat/completions|/embeddings"
PROMPT = (
    "Which of these labels names what the image shows? Answer with that label alone. "
    "Labels: {labels}"
)
MOST_ALTERNATIVES = 20


@dataclass(frozen=True, slots=True)
class Chat(Defaults):
    """``openai``: ``POST {url}/v1/chat/completions`` with the image as a data URL.

    The labels to choose from are ``Endpoint.labels``, so the label mapping ``identity`` applies.
    The answer is a label alone, or all labels that the server gives a token probability for.
    Options: ``prompt`` (with ``{labels}`` where the labels go), ``parameters`` (merged into the
    body, for example ``{"max_completion_tokens": 50}``; null removes).

    Attributes:
        endpoint: where to ask, for which labels.
        model: its name; empty until the server has told its only one.
        closed: whether the enum and token probabilities are asked for; False leaves out what some
            servers refuse.
        learnt: ``"closed"`` is in it once that form was answered.
    """

    endpoint: Endpoint
    model: str
    closed: bool = True
    name: Literal["openai"] = "openai"
    learnt: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Chat:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option, or no labels.
        """
        given = options(endpoint, "openai", {"prompt": str, "parameters": dict})
        if "{labels}" not in given.get("prompt", PROMPT):
            raise ConfigurationError(
                "options of openai: prompt: got none with {labels} in it, expected the place "
                "for them"
            )
        if endpoint.protocol == "openai":
            need_labels(endpoint, "openai")
        return cls(endpoint, endpoint.model or "")

    @classmethod
    def recognises(cls, path: str) -> bool:
        """The path of chats."""
        return path.rstrip("/").endswith("/chat/completions")

    @property
    def dialect(self) -> str:
        """The name, and what is asked about which labels."""
        asked = digest(self.endpoint.labels, dict(self.endpoint.options))
        return f"{self.name} {'closed' if self.closed else 'open'} {asked}"

    @property
    def complete(self) -> bool:
        """Whether the model's name is known."""
        return bool(self.model)

    @property
    def proven(self) -> bool:
        """Whether the closed form was answered once."""
        return self.closed and "closed" in self.learnt

    def describe(self) -> WireRequest:
        """Return the question which models there are."""
        return _models(self.endpoint)

    def described(self, response: WireResponse) -> Described | None:
        """Read the list of models. One that embeds images is infinity's: then it is no chat.

        Raises:
            ConfigurationError: there are several models, and none is named.
        """
        cards = _cards(response)
        if cards is None:
            return None
        model = self.model or only_model(self.endpoint, [card["id"] for card in cards])
        told = next((card.get("capabilities") for card in cards if card["id"] == model), None)
        if isinstance(told, list) and "image_embed" in told:
            return Described(Embeddings(self.endpoint, model), ModelInfo(model))
        return Described(replace(self, model=model), ModelInfo(model))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image.

        Raises:
            ConfigurationError: there are no labels to choose from.
        """
        (image,) = images
        labels = need_labels(self.endpoint, "openai")
        prompt = self.endpoint.options.get("prompt", PROMPT).replace("{labels}", "; ".join(labels))
        part = {"type": "image_url", "image_url": {"url": fill("{data_url}", image)}}
        document = {
            "model": self.model,
            "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}, part]}],
            "temperature": 0,
            # a token is a character or longer
            "max_tokens": 16 + max(len(json.dumps(label)) for label in labels),
        }
        if self.closed:
            document |= {
                "logprobs": True,
                "top_logprobs": MOST_ALTERNATIVES,
                "response_format": _closed_set(labels),
            }
        document |= self.endpoint.options.get("parameters", {})
        kept = {key: value for key, value in document.items() if value is not None}
        return post(
            join(self.endpoint.url, _path(self.endpoint.url, "/chat/completions"), ENDING), kept
        )

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return the answer about the one image.

        Raises:
            MalformedAnswerError: a refusal, or a label that was not asked for; the message says
                what was said.
        """
        document = response.json()
        choices = document.get("choices") if isinstance(document, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise MalformedAnswerError(response.body, "choices with a message")
        if isinstance(message.get("refusal"), str) and message["refusal"]:
            raise MalformedAnswerError(message["refusal"], "a label", "a refusal: ")
        label = said_label(message.get("content"), self.endpoint.labels)
        scores = probabilities(
            choice.get("logprobs"), message["content"], label, self.endpoint.labels
        )
        self.learnt.update({"closed"} if self.closed else ())
        return [scores or Answer((label,), (1.0,), "label")]

    def retryable(self, response: WireResponse) -> bool | None:
        """An account without money says 429 for ever."""
        return (
            False
            if response.status == 429 and b"insufficient_quota" in response.body[:2000]
            else None
        )

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds until requests are allowed again, as OpenAI's headers say it."""
        return _reset(response)

    def plainer(self) -> Chat | None:
        """Return the form without enum and token probabilities."""
        return replace(self, closed=False) if self.closed else None

    def fallback(self, response: WireResponse) -> Chat | None:
        """Return the form without enum and token probabilities when they may be what was
        refused.
        """
        return self.plainer() if response.status in (400, 422) and not self.proven else None


@dataclass(frozen=True, slots=True)
class Embeddings(Defaults):
    """``openai-embeddings``: ``POST {url}/v1/embeddings`` as infinity takes images: a data URL,
    ``modality: image``.

    A URL that ends in ``/embeddings`` is used verbatim: infinity's own has no ``/v1``. There is no
    standard for images: a server that does not know ``modality`` embeds the data URL as a text,
    and nothing in the answer tells. Other forms (vLLM, Jina) can be said with the protocol
    ``custom``.

    Attributes:
        endpoint: where to ask.
        model: its name; empty until the server has told its only one.
    """

    endpoint: Endpoint
    model: str
    name: Literal["openai-embeddings"] = "openai-embeddings"
    dialect: Literal["openai-embeddings"] = "openai-embeddings"

    @classmethod
    def of(cls, endpoint: Endpoint) -> Embeddings:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option.
        """
        options(endpoint, "openai-embeddings", {})
        return cls(endpoint, endpoint.model or "")

    @classmethod
    def recognises(cls, path: str) -> bool:
        """The path of embeddings."""
        return path.rstrip("/").endswith("/embeddings")

    @property
    def complete(self) -> bool:
        """Whether the model's name is known."""
        return bool(self.model)

    def describe(self) -> WireRequest:
        """Return the question which models there are."""
        return _models(self.endpoint)

    def described(self, response: WireResponse) -> Described | None:
        """Read the list of models.

        Raises:
            ConfigurationError: there are several models, and none is named.
        """
        cards = _cards(response)
        if cards is None:
            return None
        model = self.model or only_model(self.endpoint, [card["id"] for card in cards])
        return Described(replace(self, model=model), ModelInfo(model))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        document = {
            "model": self.model,
            "input": [fill("{data_url}", image)],
            "modality": "image",
            "encoding_format": "float",
        }
        return post(
            join(self.endpoint.url, _path(self.endpoint.url, "/embeddings"), ENDING), document
        )

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one embedding per image, from a list of numbers or from base64 of little-endian
        float32.
        """
        document = response.json()
        data = document.get("data") if isinstance(document, dict) else None
        if not isinstance(data, list) or not data:
            raise MalformedAnswerError(response.body, "data with an embedding")
        return [embedding(_vector(item)) for item in data]

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds until requests are allowed again, as OpenAI's headers say it."""
        return _reset(response)


def _path(url: str, path: str) -> str:
    """Return the path below the address: with ``/v1``, unless the URL is that very path without
    it.
    """
    bare = re.search(rf"(?<!/v1){path}$", url.partition("?")[0].rstrip("/"))
    return path if bare else f"/v1{path}"


def _closed_set(labels: Sequence[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(labels)}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "label", "strict": True, "schema": schema},
    }


def _models(endpoint: Endpoint) -> WireRequest:
    path = _path(endpoint.url, "/embeddings").replace("/embeddings", "/models")
    return WireRequest("GET", join(endpoint.url, path, ENDING), {"accept": "application/json"})


def _cards(response: WireResponse) -> list[dict[str, Any]] | None:
    """Return the models of ``{"object": "list", "data": [{"id"}, ...]}``; None where it is
    something else.
    """
    document = response.json() if response.ok else None
    data = (
        document.get("data")
        if isinstance(document, dict) and document.get("object") == "list"
        else None
    )
    if not isinstance(data, list) or not all(
        isinstance(card, dict) and isinstance(card.get("id"), str) for card in data
    ):
        return None
    return data


def _vector(item: Any) -> list[Any]:
    value = item.get("embedding") if isinstance(item, dict) else None
    if isinstance(value, str):
        try:
            return list(np.frombuffer(base64.b64decode(value, validate=True), "<f4").tolist())
        except ValueError:
            value = None
    if not isinstance(value, list):
        raise MalformedAnswerError(
            json.dumps(item), "a list of numbers, or base64 of float32", "the embedding "
        )
    return value


def _reset(response: WireResponse) -> float | None:
    """Read ``x-ratelimit-reset-requests``: ``1s``, ``6m0s``, ``20ms``; only a 429 asks to wait for
    it.
    """
    text = response.headers.get("x-ratelimit-reset-requests", "") if response.status == 429 else ""
    found = re.fullmatch(
        r"(?:(\d{1,3})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,5}(?:\.\d{1,9})?)s)?(?:(\d{1,6})ms)?", text
    )
    hours, minutes, seconds, thousandths = (
        (float(part or 0) for part in found.groups()) if found else (0.0,) * 4
    )
    return 3600 * hours + 60 * minutes + seconds + thousandths / 1000 or None
