"""SageMaker: a container's ``/invocations``, and the runtime's ``/endpoints/{name}/invocations`` in
front of it.

The body is the container's own: here a raw image, or Hugging Face's JSON, as in the containers
that it publishes. The runtime wants AWS's signature (SigV4) instead of a key; a container on your
own machine wants nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from pgn_client.types import Answer
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import (
    Defaults,
    MalformedAnswerError,
    Payload,
    WireRequest,
    WireResponse,
    digest,
    join,
)
from pgn_client.wire.protocols.huggingface import post
from pgn_client.wire.protocols.options import options
from pgn_client.wire.protocols.scores import Reader
from pgn_client.wire.retry import RETRYABLE

THROTTLED = (
    "Throttling",
    "ThrottledException",
    "TooManyRequests",
    "ProvisionedThroughputExceeded",
    "SlowDown",
)


@dataclass(frozen=True, slots=True)
class SageMaker(Defaults):
    """``sagemaker``: one raw image per request, an answer in any of the forms of ``scores``.

    The URL ends in ``/invocations``; without that it is the address of a container, or with a
    model's name that of the runtime, where the model is the endpoint's name. Options:
    ``parameters`` (then the image goes as Hugging Face's JSON; ``{"top_k": 1000}`` asks its
    containers for all labels), ``output`` (what bare numbers are: probabilities, logits or
    embedding; else the first answer tells).

    Attributes:
        url: where images go.
        parameters: of the JSON form; empty for the raw one.
    """

    url: str
    parameters: dict[str, Any] = field(default_factory=dict)
    name: Literal["sagemaker"] = "sagemaker"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> SageMaker:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option.
        """
        given = options(endpoint, "sagemaker", {"parameters": dict, "output": str})
        path = (
            f"/endpoints/{quote(endpoint.model, safe='')}/invocations"
            if endpoint.model
            else "/invocations"
        )
        whole = endpoint.url.partition("?")[0].rstrip("/").endswith("/invocations")
        url = endpoint.url if whole else join(endpoint.url, path)
        return cls(url, given.get("parameters", {}), reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """``/invocations`` is SageMaker's."""
        return path.rstrip("/").endswith("/invocations")

    @property
    def dialect(self) -> str:
        """The name, what is sent along, and how bare numbers are read."""
        form = digest(self.parameters) if self.parameters else "raw"
        return " ".join(filter(None, (self.name, form, self.reader.digest)))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        if self.parameters:
            inputs = base64.b64encode(image.data).decode("ascii")
            return post(self.url, {"inputs": inputs, "parameters": self.parameters})
        headers = {"content-type": image.media_type, "accept": "application/json"}
        return WireRequest("POST", self.url, headers, image.data)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return the answer about the one image; ``{"predictions": [...]}`` around it is looked
        through.
        """
        said = response.json()
        if isinstance(said, dict) and isinstance(said.get("predictions"), list):
            said = said["predictions"]
        return [self.reader.read(said)]

    def retryable(self, response: WireResponse) -> bool | None:
        """424 is the container's error, so its own status decides; throttling is 400, and 530 is
        AWS's own.
        """
        if response.status == 424:
            status = _fields(response).get("OriginalStatusCode")
            return isinstance(status, int) and status in RETRYABLE - {500}
        if response.status == 400:
            kinds = [
                response.headers.get("x-amzn-errortype"),
                *map(_fields(response).get, ("__type", "code", "Code")),
            ]
            return any(word in str(kind) for kind in kinds for word in THROTTLED) or None
        return True if response.status == 530 else None


def _fields(response: WireResponse) -> dict[str, Any]:
    try:
        document = response.json()
    except MalformedAnswerError:
        return {}
    return document if isinstance(document, dict) else {}
