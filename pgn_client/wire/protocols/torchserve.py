"""The wire format of TorchServe's inference API: ``/predictions/{model}`` takes a raw image.

TorchServe's default image classifier returns the best five labels with their scores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote, urlsplit

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import (
    Defaults,
    Described,
    Payload,
    WireRequest,
    WireResponse,
    join,
)
from pgn_client.wire.protocols.options import MEANING, options
from pgn_client.wire.protocols.scores import Reader

MODEL = r"/predictions/([^/]+(?:/[^/]+)?)/*"


@dataclass(frozen=True, slots=True)
class TorchServe(Defaults):
    """Wire format ``torchserve``: one raw image to ``POST {url}/predictions/{model}``.

    The URL may be the server's address, or end in the model's name, with or without its version.

    Option:

    - ``scores`` (or ``output``): Meaning of the numbers: ``probs``, ``logits``, ``sigmoid`` or
      ``embedding``; see ``Reader``.

    Attributes:
        endpoint: Endpoint to query; its labels name scores that come without labels.
        model: Path of the model below ``/predictions/``; empty if it is not given. This API does
            not list models.
        reader: Reader that turns the scores into an answer.
    """

    endpoint: Endpoint
    model: str
    name: Literal["torchserve"] = "torchserve"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> TorchServe:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid, or the protocol is configured
                without the model's name.
        """
        # A check alone: ``Reader.of`` reads the option.
        options(endpoint, "torchserve", MEANING)
        in_url = re.search(f"{MODEL}$", urlsplit(endpoint.url).path)
        model = in_url[1] if in_url else quote(endpoint.model or "", safe="")
        # With ``auto`` the server may turn out to use another protocol, which needs no model name.
        if endpoint.protocol == "torchserve":
            _check_model(endpoint, model)
        return cls(endpoint, model, reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether this is the URL path of a model, ``/predictions/{model}``."""
        return re.search(f"{MODEL}$", path) is not None

    @property
    def dialect(self) -> str:
        """Text for the cache key: the name, with a digest of the labels and the type of scores."""
        return " ".join(filter(None, (self.name, self.reader.digest)))

    def describe(self) -> WireRequest:
        """Return the HTTP request for the server's health, which shows that it is TorchServe."""
        url = join(self.endpoint.url, "/ping", MODEL)
        return WireRequest("GET", url, {"accept": "application/json"})

    def described(self, response: WireResponse) -> Described | None:
        """Return a description if the health response is TorchServe's; None for another server."""
        document = response.json() if response.ok else None
        is_healthy = isinstance(document, dict) and document.get("status") == "Healthy"
        return Described(self) if is_healthy else None

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model.

        Raises:
            ConfigurationError: The model's name is unknown.
        """
        (image,) = images
        _check_model(self.endpoint, self.model)
        headers = {"content-type": image.media_type, "accept": "application/json"}
        url = join(self.endpoint.url, f"/predictions/{self.model}", MODEL)
        return WireRequest("POST", url, headers, image.data)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return a list with the one image's answer: its labels and scores."""
        return [self.reader.read(response.json())]

    def retryable(self, response: WireResponse) -> bool | None:
        """Return False, no retry, for the status 503 with "Prediction failed"; None otherwise.

        This failure is due to the image.
        """
        # Only the start is searched, because an error may echo the whole request.
        prediction_failed = response.status == 503 and b"Prediction failed" in response.body[:500]
        return False if prediction_failed else None


def _check_model(endpoint: Endpoint, model: str) -> None:
    if not model:
        raise ConfigurationError(
            f"{endpoint.name} is a TorchServe server: got model=None, expected the name of "
            "a model; give model= (--model)"
        )
