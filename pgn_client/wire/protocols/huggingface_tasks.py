"""Two more tasks of Hugging Face's servers: zero-shot classification and image features.

A zero-shot request posts ``{"inputs": base64, "parameters": {"candidate_labels": [...]}}``. A
request for features posts ``{"inputs": base64, "parameters": {"pool": true}}``. Hugging Face's
Python client sends both requests, and the server of its Inference Endpoints was observed to accept
them.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pgn_client.types import Answer, normal
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
from pgn_client.wire.protocols.options import MEANING, need_labels, options
from pgn_client.wire.protocols.scores import Reader

FEATURES = "an embedding: [D], [[D]] or [[[D] x tokens]] of one image"


@dataclass(frozen=True, slots=True)
class ZeroShot(Defaults):
    """Wire format ``huggingface-zero-shot``: each request sends an image and the candidate labels.

    The server returns scores of these labels. If they are your classes, no label mapping needs to
    be learned: use ``identity``.

    Options:

    - ``hypothesis_template``: Sentence to put each label into, for example ``"a photo of a {}"``.
    - ``scores`` (or ``output``): Meaning of the numbers: ``probs``, ``logits`` or ``sigmoid``; see
      ``Reader``.

    Attributes:
        url: URL of the endpoint, used unchanged.
        labels: Candidate labels, from ``Endpoint.labels``.
        template: Option ``hypothesis_template``; empty for the server's default.
        reader: Reader that turns the scores into an answer.
    """

    url: str
    labels: tuple[str, ...]
    template: str = ""
    name: Literal["huggingface-zero-shot"] = "huggingface-zero-shot"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> ZeroShot:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: There are no labels, or an option is unknown or invalid.
        """
        known = {"hypothesis_template": str, **MEANING}
        given = options(endpoint, "huggingface-zero-shot", known)
        labels = need_labels(endpoint, "huggingface-zero-shot")
        reader = Reader.of(endpoint)
        return cls(endpoint.url, labels, given.get("hypothesis_template", ""), reader=reader)

    @property
    def dialect(self) -> str:
        """Text for the cache key: the wire format's name, with a digest of labels and template."""
        request_digest = digest(self.labels, self.template)
        return " ".join(filter(None, (self.name, request_digest, self.reader.mark)))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        parameters: dict[str, Any] = {"candidate_labels": list(self.labels)}
        if self.template:
            parameters["hypothesis_template"] = self.template
        text = base64.b64encode(image.data).decode("ascii")
        return post(self.url, {"inputs": text, "parameters": parameters})

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, the candidate labels with their scores, per image.

        Raises:
            MalformedAnswerError: The response has another form, or contains labels that were not
                sent. Servers that ignore the candidate labels return such labels.
        """
        decoded = answers(response, self.reader)
        candidates = set(map(normal, self.labels))
        for answer in decoded:
            for label in answer.labels:
                if normal(label) not in candidates:
                    raise MalformedAnswerError(label, "one of the labels sent", "the label ")
        return decoded

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds to wait if the server is still loading the model; None otherwise."""
        return loading(response)


@dataclass(frozen=True, slots=True)
class Features(Defaults):
    """Wire format ``huggingface-features``: the server returns D features of each image.

    The command ``pgn map`` makes the label mapping that turns features into classes. A server that
    pools returns one list of D numbers. A server that does not pool returns one list per token; the
    features of the first token, a ViT's class token, are then used.

    Attributes:
        url: URL of the endpoint, used unchanged.
        pool: Whether to request pooled features; False sends no parameters, for servers and models
            that refuse them.
        learnt: What the server's responses have shown: whether a request for pooled features has
            worked once.
    """

    url: str
    pool: bool = True
    name: Literal["huggingface-features"] = "huggingface-features"
    learnt: Learnt = field(default_factory=Learnt, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Features:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid.
        """
        # Refuses all options: this wire format has none.
        options(endpoint, "huggingface-features", {})
        return cls(endpoint.url)

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether this is a URL path for feature extraction on Hugging Face's serverless API."""
        return path.rstrip("/").endswith(
            ("/pipeline/feature-extraction", "/pipeline/image-feature-extraction")
        )

    @property
    def dialect(self) -> str:
        """Text for the cache key: the wire format's name, and ``pooled`` or ``plain``."""
        return f"{self.name} {'pooled' if self.pool else 'plain'}"

    @property
    def proven(self) -> bool:
        """Whether pooled features are requested, and such a request has worked once."""
        return self.pool and self.learnt.json_works

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        document: dict[str, Any] = {"inputs": base64.b64encode(image.data).decode("ascii")}
        if self.pool:
            document["parameters"] = {"pool": True}
        return post(self.url, document)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return a list with one answer: the features of the one image."""
        features = response.json()
        # There are at most two axes, image and token, around the D features.
        for _ in range(2):
            if isinstance(features, list) and features and isinstance(features[0], list):
                features = features[0]
        if not isinstance(features, list) or not features or isinstance(features[0], list | dict):
            raise MalformedAnswerError(response.body, FEATURES)

        answer = embedding(features)
        if self.pool:
            self.learnt.json_works = True
        return [answer]

    def wait(self, response: WireResponse) -> float | None:
        """Return the seconds to wait if the server is still loading the model; None otherwise."""
        return loading(response)

    def plainer(self) -> Features | None:
        """Return the wire format without the parameter ``pool``; None if this one sends none."""
        return replace(self, pool=False) if self.pool else None

    def fallback(self, response: WireResponse) -> Features | None:
        """Return the wire format without ``pool``, if the server may have refused that parameter.

        None if the failure has another cause, or if the request had no parameter.
        """
        refused = response.status in (400, 415, 422)
        return self.plainer() if refused and not self.proven else None
