"""TorchServe's inference API: ``/predictions/{model}`` takes a raw image.

Its default image classifier returns the best five labels with their scores.
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
from pgn_client.wire.protocols.options import options
from pgn_client.wire.protocols.scores import Reader

MODEL = r"/predictions/([^/]+(?:/[^/]+)?)/*"


@dataclass(frozen=True, slots=True)
class TorchServe(Defaults):
    """``torchserve``: ``POST {url}/predictions/{model}``.

    The URL may be the server's address, or end in the model's name, with or without its version.

    Option:

    - ``output``: Type of scores without labels, which your own handler may return:
      ``probabilities``, ``logits`` or ``embedding``. Without it, the first answer decides.

    Attributes:
        endpoint: Endpoint to query; its labels name scores that come without labels.
        model: Path of the model below ``/predictions/``; empty if it is unknown, because only the
            management API lists models.
        reader: Reader with the names and the type of the scores.
    """

    endpoint: Endpoint
    model: str
    name: Literal["torchserve"] = "torchserve"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> TorchServe:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid, or the protocol is configured
                without the model's name.
        """
        # A check alone: ``Reader.of`` reads the option.
        options(endpoint, "torchserve", {"output": str})
        in_url = re.search(f"{MODEL}$", urlsplit(endpoint.url).path)
        model = in_url[1] if in_url else quote(endpoint.model or "", safe="")
        # With ``auto`` the server may turn out to use another protocol, which needs no model name.
        if endpoint.protocol == "torchserve":
            _check_model(endpoint, model)
        return cls(endpoint, model, reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether this is a model's path, ``/predictions/{model}``."""
        return re.search(f"{MODEL}$", path) is not None

    @property
    def dialect(self) -> str:
        """Name, with a digest of the reader's settings."""
        return " ".join(filter(None, (self.name, self.reader.digest)))

    def describe(self) -> WireRequest:
        """Return the request for the server's health."""
        url = join(self.endpoint.url, "/ping", MODEL)
        return WireRequest("GET", url, {"accept": "application/json"})

    def described(self, response: WireResponse) -> Described | None:
        """Recognize TorchServe by its status ``Healthy``; None for another server."""
        document = response.json() if response.ok else None
        is_healthy = isinstance(document, dict) and document.get("status") == "Healthy"
        return Described(self) if is_healthy else None

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image.

        Raises:
            ConfigurationError: The model's name is unknown.
        """
        (image,) = images
        _check_model(self.endpoint, self.model)
        headers = {"content-type": image.media_type, "accept": "application/json"}
        url = join(self.endpoint.url, f"/predictions/{self.model}", MODEL)
        return WireRequest("POST", url, headers, image.data)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return the answer for the one image."""
        return [self.reader.read(response.json())]

    def retryable(self, response: WireResponse) -> bool | None:
        """Return False for 503 "Prediction failed", which is due to the image."""
        # Only the start is searched, because an error may echo the whole request.
        prediction_failed = response.status == 503 and b"Prediction failed" in response.body[:500]
        return False if prediction_failed else None


def _check_model(endpoint: Endpoint, model: str) -> None:
    if not model:
        raise ConfigurationError(
            f"{endpoint.name} is a TorchServe server: got model=None, expected the name of "
            "a model; give model= (--model)"
        )
