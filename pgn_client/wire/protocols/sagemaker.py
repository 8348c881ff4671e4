"""The wire format of Amazon SageMaker, for its hosted runtime and for its model containers.

The runtime, AWS's public service, takes requests at ``/endpoints/{name}/invocations``. It forwards
them to ``/invocations`` of a container, which defines the body. This module sends a raw image, or
the JSON of Hugging Face's containers. The runtime requires AWS's signature instead of a key; see
``pgn_client.wire.aws``. A container on your own machine requires no authentication.
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
from pgn_client.wire.protocols.options import MEANING, options
from pgn_client.wire.protocols.scores import Reader
from pgn_client.wire.retry import RETRYABLE

# AWS's error types for throttling, or parts of them; the status is 400 for all of them.
THROTTLED = (
    "Throttling",
    "ThrottledException",
    "TooManyRequests",
    "ProvisionedThroughputExceeded",
    "SlowDown",
)


@dataclass(frozen=True, slots=True)
class SageMaker(Defaults):
    """Wire format ``sagemaker``: each request sends one image, raw or in JSON.

    The response may have any form that ``Reader`` reads. A URL that ends in ``/invocations`` is
    used unchanged. Any other URL is the address of a container or, if a model name is given, of
    AWS's runtime. The model name is then the name of the SageMaker endpoint.

    Options:

    - ``parameters``: Parameters for Hugging Face's JSON, which is then sent instead of the raw
      image. ``{"top_k": 1000}`` requests all labels from its containers.
    - ``scores`` (or ``output``): Meaning of the numbers: ``probs``, ``logits``, ``sigmoid`` or
      ``embedding``; see ``Reader``.

    Attributes:
        url: URL that images are sent to.
        parameters: Parameters to send in JSON with the image; if empty, the raw image is sent.
        reader: Reader that turns the scores into an answer.
    """

    url: str
    parameters: dict[str, Any] = field(default_factory=dict)
    name: Literal["sagemaker"] = "sagemaker"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> SageMaker:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid.
        """
        given = options(endpoint, "sagemaker", {"parameters": dict, **MEANING})
        path = "/invocations"
        if endpoint.model:
            path = f"/endpoints/{quote(endpoint.model, safe='')}/invocations"

        is_complete = endpoint.url.partition("?")[0].rstrip("/").endswith("/invocations")
        url = endpoint.url if is_complete else join(endpoint.url, path)
        return cls(url, given.get("parameters", {}), reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether a URL path ends in ``/invocations``."""
        return path.rstrip("/").endswith("/invocations")

    @property
    def dialect(self) -> str:
        """Text for the cache key: the name, ``raw`` or a digest of the parameters, and labels."""
        form = digest(self.parameters) if self.parameters else "raw"
        return " ".join(filter(None, (self.name, form, self.reader.digest)))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        if self.parameters:
            inputs = base64.b64encode(image.data).decode("ascii")
            return post(self.url, {"inputs": inputs, "parameters": self.parameters})
        headers = {"content-type": image.media_type, "accept": "application/json"}
        return WireRequest("POST", self.url, headers, image.data)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return a list with the one image's answer: its labels and scores.

        Some containers wrap the scores in ``{"predictions": [...]}``.
        """
        document = response.json()
        if isinstance(document, dict) and isinstance(document.get("predictions"), list):
            document = document["predictions"]
        return [self.reader.read(document)]

    def retryable(self, response: WireResponse) -> bool | None:
        """Return whether to retry a failed request; None leaves it to the retry policy.

        Three HTTP statuses have a special meaning at AWS. 424 reports an error of the container,
        whose own status decides. 400 is retried if it reports throttling. 530 is retried.
        """
        if response.status == 424:
            status = _fields(response).get("OriginalStatusCode")
            # The container's own 500 is not retried: the image is its most likely cause.
            return isinstance(status, int) and status in RETRYABLE - {500}
        if response.status == 400:
            return True if is_throttled(response) else None
        return True if response.status == 530 else None


def is_throttled(response: WireResponse) -> bool:
    """Whether AWS refused the request because too many were sent.

    AWS's services name the type of an error in different headers and fields; all are searched.
    """
    fields = _fields(response)
    # AWS's services differ in the place of the error type; only the first is SageMaker's own.
    error_types = [
        response.headers.get("x-amzn-errortype"),
        fields.get("__type"),
        fields.get("code"),
        fields.get("Code"),
    ]
    text = " ".join(map(str, error_types))
    return any(word in text for word in THROTTLED)


def _fields(response: WireResponse) -> dict[str, Any]:
    """Return the JSON object in a response's body; empty if there is none."""
    try:
        document = response.json()
    except MalformedAnswerError:
        return {}
    return document if isinstance(document, dict) else {}
