"""OpenAI's wire formats: a chat that names one of your labels for an image, and image embeddings.

Neither was made for classification. If the server supports it, ``response_format`` with an enum
restricts the reply to the labels. Label probabilities come from the tokens' log-probabilities, if
the server returns them. OpenAI's own models resample every image, so an image prompt, which PGN
paints into the pixels, does not reach them unchanged.
"""

from __future__ import annotations

import base64
import json
import logging
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
    excerpt,
    explain,
    join,
)
from pgn_client.wire.protocols.chat_form import MOST_ALTERNATIVES, Form
from pgn_client.wire.protocols.huggingface import post
from pgn_client.wire.protocols.logprobs import probabilities, reply_text, said_label
from pgn_client.wire.protocols.options import need_labels, only_model, options
from pgn_client.wire.protocols.template import fill

ENDING = r"/v1(?:/chat/completions|/embeddings|/models)?|/chat/completions|/embeddings"
PROMPT = (
    "Which of these labels names what the image shows? Answer with that label alone. "
    "Labels: {labels}"
)

_log = logging.getLogger("pgn_client")


@dataclass(frozen=True, slots=True)
class Chat(Defaults):
    """Wire format ``openai``: ``POST {url}/v1/chat/completions`` with the image as a data URL.

    The model chooses one of ``Endpoint.labels``. If they are your classes, no label mapping needs
    to be learned: use ``identity``. The answer is one label, or all labels for which the server
    returns a token probability.

    Some servers refuse a part of the request: the enum, log-probabilities, many alternatives to a
    token, ``max_tokens`` or a temperature. It is then given up, one part at a time, and logged.

    Options:

    - ``prompt``: Question to the model, with ``{labels}`` in the place of the labels.
    - ``parameters``: Object that is merged into the request body, for example
      ``{"max_completion_tokens": 50}``. The value null removes a key.

    Attributes:
        endpoint: Endpoint to query, with the labels to choose from.
        model: Name of the model; empty until the server returns its only one.
        form: Parts of the request that the server has not refused.
        given_up: What the form gives up, each with the server's reason.
        learnt: Forms whose requests have worked once.
    """

    endpoint: Endpoint
    model: str
    form: Form = field(default_factory=Form)
    name: Literal["openai"] = "openai"
    given_up: tuple[str, ...] = field(default=(), repr=False, compare=False)
    learnt: set[Form] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Chat:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid, or there are no labels.
        """
        given = options(endpoint, "openai", {"prompt": str, "parameters": dict})
        if "{labels}" not in given.get("prompt", PROMPT):
            raise ConfigurationError(
                "options of openai: prompt: got a text without {labels}, expected {labels} in the "
                "place of the labels"
            )
        # With ``auto`` the server may turn out to use another protocol, which needs no labels.
        if endpoint.protocol == "openai":
            need_labels(endpoint, "openai")
        return cls(endpoint, endpoint.model or "")

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether a URL path ends in ``/chat/completions``."""
        return path.rstrip("/").endswith("/chat/completions")

    @property
    def dialect(self) -> str:
        """Text for the cache key: name, form, digest of labels and options."""
        request_digest = digest(self.endpoint.labels, dict(self.endpoint.options))
        return f"{self.name} {self.form.name} {request_digest}"

    @property
    def complete(self) -> bool:
        """Whether the model's name is known, so that images can be encoded."""
        return bool(self.model)

    @property
    def proven(self) -> bool:
        """Whether a request of this form has worked once."""
        return self.form in self.learnt

    def describe(self) -> WireRequest:
        """Return the HTTP request for the list of the server's models."""
        return _models(self.endpoint)

    def described(self, response: WireResponse) -> Described | None:
        """Return the description in the list of models; None if it is another protocol's response.

        A model with the capability ``image_embed``, which only the embedding server Infinity lists,
        has no chat: the wire format in the description is then ``Embeddings``.

        Raises:
            ConfigurationError: There is no model, or there are several and none is configured.
        """
        cards = _cards(response)
        if cards is None:
            return None

        model = self.model or only_model(self.endpoint, [card["id"] for card in cards])
        capabilities = next((c.get("capabilities") for c in cards if c["id"] == model), None)
        if isinstance(capabilities, list) and "image_embed" in capabilities:
            return Described(Embeddings(self.endpoint, model), ModelInfo(model))
        return Described(replace(self, model=model), ModelInfo(model))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model.

        Raises:
            ConfigurationError: There are no labels to choose from.
        """
        (image,) = images
        labels = need_labels(self.endpoint, "openai")
        # Semicolons, because labels may contain commas, as ImageNet's do.
        prompt = self.endpoint.options.get("prompt", PROMPT).replace("{labels}", "; ".join(labels))
        content = [
            {"type": "text", "text": prompt},
            {"type": "image_url", "image_url": {"url": fill("{data_url}", image)}},
        ]
        messages = [{"role": "user", "content": content}]
        document = {"model": self.model, "messages": messages} | self._settings(self.form)
        path = _path(self.endpoint.url, "/chat/completions")
        return post(join(self.endpoint.url, path, ENDING), document)

    def _settings(self, form: Form) -> dict[str, Any]:
        """Return the request body of a form, without model and messages."""
        labels = self.endpoint.labels
        document: dict[str, Any] = {
            "temperature": 0,
            # Enough for the longest label: a token is at least one character, and the other 16 are
            # for the JSON around the label.
            "max_tokens": 16 + max(len(json.dumps(label)) for label in labels),
            "logprobs": True,
            "top_logprobs": MOST_ALTERNATIVES,
            "response_format": _closed_set(labels),
        }
        document = form.applied(document | self.endpoint.options.get("parameters", {}))
        return {key: value for key, value in document.items() if value is not None}

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return a list with the one image's answer: its labels and scores.

        Raises:
            MalformedAnswerError: The model refuses, or its reply names none of the labels; the
                message quotes the reply.
        """
        document = response.json()
        choices = document.get("choices") if isinstance(document, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise MalformedAnswerError(response.body, "choices with a message")

        text = reply_text(message, choice.get("finish_reason"))
        labels = self.endpoint.labels
        label = said_label(text, labels, choice.get("finish_reason"))
        scores = probabilities(choice.get("logprobs"), text, label, labels)
        if self.given_up and self.form not in self.learnt:
            _log.warning("%s: given up: %s", self.endpoint.name, "; ".join(self.given_up))
        self.learnt.add(self.form)
        return [scores or Answer((label,), (1.0,), "label")]

    def explain(self, response: WireResponse) -> str:
        """Return the complete error message of a failed response, and those of richer forms."""
        reason = explain(response)
        shown = excerpt(reason, self.endpoint.credential.redact)
        others = [text for text in self.given_up if shown not in text]
        return "; before, without giving up ".join([reason, *others])

    def retryable(self, response: WireResponse) -> bool | None:
        """Return False, no retry, for an account without credit; None otherwise.

        Every request of such an account gets the status 429.
        """
        # Only the start is searched, because an error may echo the whole request.
        no_credit = response.status == 429 and b"insufficient_quota" in response.body[:2000]
        return False if no_credit else None

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds until the rate limit resets; None if the headers do not give them."""
        return _reset(response)

    def plainer(self) -> Chat | None:
        """Return this wire format with the next form in a fixed order; None after the last."""
        form = self.form.next()
        return replace(self, form=form) if form is not None else None

    def fallback(self, response: WireResponse) -> Chat | None:
        """Return the wire format without the part of the request that the server may have refused.

        None if the failed response has another cause, or if there is nothing to give up.
        """
        if self.proven:
            return None
        for form, what in self.form.simpler(response):
            # The option ``parameters`` may have taken the part away already.
            if self._settings(form) != self._settings(self.form):
                reason = excerpt(explain(response), self.endpoint.credential.redact)
                text = f"{what} ({response.status}: {reason})"
                return replace(self, form=form, given_up=(*self.given_up, text))
        return None


@dataclass(frozen=True, slots=True)
class Embeddings(Defaults):
    """Wire format ``openai-embeddings``: ``POST {url}/v1/embeddings`` with an image as a data URL.

    The request says ``modality: image``, as the server Infinity expects; there is no standard for
    images. A server that ignores ``modality`` embeds the data URL as text, and its response looks
    the same. For servers with other forms (vLLM, Jina), use the protocol ``custom``. A URL that
    ends in ``/embeddings`` is used unchanged, because Infinity's own path has no ``/v1``.

    Attributes:
        endpoint: Endpoint to query.
        model: Name of the model; empty until the server returns its only one.
    """

    endpoint: Endpoint
    model: str
    name: Literal["openai-embeddings"] = "openai-embeddings"
    dialect: Literal["openai-embeddings"] = "openai-embeddings"

    @classmethod
    def of(cls, endpoint: Endpoint) -> Embeddings:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid.
        """
        # Refuses all options: this wire format has none.
        options(endpoint, "openai-embeddings", {})
        return cls(endpoint, endpoint.model or "")

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether a URL path ends in ``/embeddings``."""
        return path.rstrip("/").endswith("/embeddings")

    @property
    def complete(self) -> bool:
        """Whether the model's name is known, so that images can be encoded."""
        return bool(self.model)

    def describe(self) -> WireRequest:
        """Return the HTTP request for the list of the server's models."""
        return _models(self.endpoint)

    def described(self, response: WireResponse) -> Described | None:
        """Return the description in the list of models; None if it is another protocol's response.

        Raises:
            ConfigurationError: There is no model, or there are several and none is configured.
        """
        cards = _cards(response)
        if cards is None:
            return None
        model = self.model or only_model(self.endpoint, [card["id"] for card in cards])
        return Described(replace(self, model=model), ModelInfo(model))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        document = {
            "model": self.model,
            "input": [fill("{data_url}", image)],
            "modality": "image",
            "encoding_format": "float",
        }
        path = _path(self.endpoint.url, "/embeddings")
        return post(join(self.endpoint.url, path, ENDING), document)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, the embedding, per image.

        In the response, an embedding is a list of numbers, or base64 of little-endian float32.
        """
        document = response.json()
        data = document.get("data") if isinstance(document, dict) else None
        if not isinstance(data, list) or not data:
            raise MalformedAnswerError(response.body, "data with an embedding")
        return [embedding(_vector(item)) for item in data]

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds until the rate limit resets; None if the headers do not give them."""
        return _reset(response)


def _path(url: str, path: str) -> str:
    """Return ``path`` after ``/v1``, or ``path`` alone if the URL ends in it without ``/v1``."""
    without_v1 = re.search(rf"(?<!/v1){path}$", url.partition("?")[0].rstrip("/"))
    return path if without_v1 else f"/v1{path}"


def _closed_set(labels: Sequence[str]) -> dict[str, Any]:
    """Return the ``response_format`` that restricts the reply to one of the labels."""
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
    """Return the HTTP request for the list of an endpoint's models."""
    # Infinity lists its models beside its own path, /embeddings, which may have no /v1.
    path = _path(endpoint.url, "/embeddings").replace("/embeddings", "/models")
    return WireRequest("GET", join(endpoint.url, path, ENDING), {"accept": "application/json"})


def _cards(response: WireResponse) -> list[dict[str, Any]] | None:
    """Return the models in ``{"object": "list", "data": [{"id"}, ...]}``; None for another form."""
    document = response.json() if response.ok else None
    if not isinstance(document, dict) or document.get("object") != "list":
        return None
    cards = document.get("data")
    if not isinstance(cards, list):
        return None
    for card in cards:
        if not isinstance(card, dict) or not isinstance(card.get("id"), str):
            return None
    return cards


def _vector(item: Any) -> list[Any]:
    """Return the numbers of the embedding in one entry of the response, decoded from base64."""
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
    """Return the seconds until the rate limit resets; None if the response does not give them.

    They are in the header ``x-ratelimit-reset-requests``, as ``1s``, ``6m0s`` or ``20ms``.
    Successful responses have the header too, so it counts for the status 429 only.
    """
    text = response.headers.get("x-ratelimit-reset-requests", "") if response.status == 429 else ""
    # (?!s) keeps the milliseconds in 20ms from being read as minutes.
    parts = re.fullmatch(
        r"(?:(\d{1,3})h)?(?:(\d{1,4})m(?!s))?(?:(\d{1,5}(?:\.\d{1,9})?)s)?(?:(\d{1,6})ms)?", text
    )
    if parts is None:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in parts.groups())
    total = 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
    # An absent header matches, too, and gives 0.
    return total or None
