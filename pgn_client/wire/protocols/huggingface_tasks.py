"""Two further tasks of Hugging Face's servers: labels of your own (zero-shot), and an image's
features.

Zero-shot is a post with ``{"inputs": base64, "parameters": {"candidate_labels": [...]}}``, features
are one with ``{"inputs": base64, "parameters": {"pool": true}}``. Both forms are those of the
Python client; the Endpoints' server was observed to answer them.
"""

from __future__ import annotations

import base64
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
    digest,
    embedding,
)
from pgn_client.wire.protocols.huggingface import Learnt, answers, loading, post
from pgn_client.wire.protocols.options import need_labels, options
from pgn_client.wire.protocols.scores import Reader

FEATURES = "an embedding: [D], [[D]] or [[[D] x tokens]] of one image"


@dataclass(frozen=True, slots=True)
class ZeroShot(Defaults):
    """``huggingface-zero-shot``: an image and the labels to choose from, sent along with each
    request.

    The answer is in your own labels, so the label mapping ``identity`` applies.

    Attributes:
        url: the endpoint's own URL, used verbatim.
        labels: the candidates: ``Endpoint.labels``.
        template: option ``hypothesis_template``, for example ``"a photo of a {}"``; empty for the
            server's own.
        reader: decides with the first answer whether the scores sum to 1.
    """

    url: str
    labels: tuple[str, ...]
    template: str = ""
    name: Literal["huggingface-zero-shot"] = "huggingface-zero-shot"
    reader: Reader = field(default_factory=Reader, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> ZeroShot:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: no labels, or a wrong option.
        """
        given = options(endpoint, "huggingface-zero-shot", {"hypothesis_template": str})
        return cls(
            endpoint.url,
            need_labels(endpoint, "huggingface-zero-shot"),
            given.get("hypothesis_template", ""),
        )

    @property
    def dialect(self) -> str:
        """The name, and which labels are asked for in which words."""
        return f"{self.name} {digest(self.labels, self.template)}"

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        parameters: dict[str, Any] = {"candidate_labels": list(self.labels)}
        if self.template:
            parameters["hypothesis_template"] = self.template
        text = base64.b64encode(image.data).decode("ascii")
        return post(self.url, {"inputs": text, "parameters": parameters})

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per image; a server that does not know the task answers other
        labels.
        """
        found = answers(response, self.reader)
        for label in {label for answer in found for label in answer.labels} - set(self.labels):
            raise MalformedAnswerError(label, "one of those that were sent along", "the label ")
        return found

    def wait(self, response: WireResponse) -> float | None:
        """Return ``estimated_time`` of a model that is still loading."""
        return loading(response)


@dataclass(frozen=True, slots=True)
class Features(Defaults):
    """``huggingface-features``: the image's features, which a label mapping made by ``pgn map``
    reads.

    ``[D]`` and ``[[D]]`` are taken as they are. ``[[[D] x tokens]]``, which servers answer that do
    not pool, becomes the features of the first token: of a ViT the class token. An image's own
    list of tokens ``[[D] x tokens]`` too.

    Attributes:
        url: the endpoint's own URL, used verbatim.
        pool: ask for pooled features; False asks without parameters, for servers and models that
            refuse them.
        learnt: whether the pooled form was answered once.
    """

    url: str
    pool: bool = True
    name: Literal["huggingface-features"] = "huggingface-features"
    learnt: Learnt = field(default_factory=Learnt, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Features:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option.
        """
        options(endpoint, "huggingface-features", {})
        return cls(endpoint.url)

    @classmethod
    def recognises(cls, path: str) -> bool:
        """The serverless API's path of this task."""
        return path.rstrip("/").endswith(
            ("/pipeline/feature-extraction", "/pipeline/image-feature-extraction")
        )

    @property
    def dialect(self) -> str:
        """The name, and whether pooled features are asked for."""
        return f"{self.name} {'pooled' if self.pool else 'plain'}"

    @property
    def proven(self) -> bool:
        """Whether the pooled form was answered once."""
        return self.pool and self.learnt.json_works

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        inputs = {"inputs": base64.b64encode(image.data).decode("ascii")}
        return post(self.url, inputs | {"parameters": {"pool": True}} if self.pool else inputs)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return the features of the one image."""
        said = response.json()
        for _ in range(2):
            if isinstance(said, list) and said and isinstance(said[0], list):
                said = said[0]
        if not isinstance(said, list) or not said or isinstance(said[0], list | dict):
            raise MalformedAnswerError(response.body, FEATURES)
        answer = embedding(said)
        self.learnt.json_works |= self.pool
        return [answer]

    def wait(self, response: WireResponse) -> float | None:
        """Return ``estimated_time`` of a model that is still loading."""
        return loading(response)

    def plainer(self) -> Features | None:
        """Return the form without parameters."""
        return replace(self, pool=False) if self.pool else None

    def fallback(self, response: WireResponse) -> Features | None:
        """Return the form without parameters when they may be what was refused."""
        return self.plainer() if response.status in (400, 415, 422) and not self.proven else None
