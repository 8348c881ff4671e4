"""TorchServe's inference API: a raw image to ``/predictions/{model}``, the best five labels with
scores back.
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

    The URL may be the server's address, or end in the model, with or without its version. Option:
    ``output`` (what bare numbers are, where a handler of your own answers those: probabilities,
    logits or embedding).

    Attributes:
        endpoint: where to ask; its labels name bare numbers.
        model: the path below ``/predictions/``; empty where it is not known (only the management
            API lists models).
    """

    endpoint: Endpoint
    model: str
    name: Literal["torchserve"] = "torchserve"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> TorchServe:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option; the model's name is not known, although the protocol
                is named.
        """
        options(endpoint, "torchserve", {"output": str})
        found = re.search(f"{MODEL}$", urlsplit(endpoint.url).path)
        model = found[1] if found else quote(endpoint.model or "", safe="")
        if endpoint.protocol == "torchserve":
            _named(endpoint, model)
        return cls(endpoint, model, reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """``/predictions/{model}`` is TorchServe's."""
        return re.search(f"{MODEL}$", path) is not None

    @property
    def dialect(self) -> str:
        """The name, and how bare numbers are read."""
        return " ".join(filter(None, (self.name, self.reader.digest)))

    def describe(self) -> WireRequest:
        """Return the question whether the server is well."""
        return WireRequest(
            "GET", join(self.endpoint.url, "/ping", MODEL), {"accept": "application/json"}
        )

    def described(self, response: WireResponse) -> Described | None:
        """TorchServe says that it is ``Healthy``; others say other words."""
        said = response.json() if response.ok else None
        return (
            Described(self) if isinstance(said, dict) and said.get("status") == "Healthy" else None
        )

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image.

        Raises:
            ConfigurationError: the model's name is not known.
        """
        (image,) = images
        _named(self.endpoint, self.model)
        headers = {"content-type": image.media_type, "accept": "application/json"}
        url = join(self.endpoint.url, f"/predictions/{self.model}", MODEL)
        return WireRequest("POST", url, headers, image.data)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return the answer about the one image."""
        return [self.reader.read(response.json())]

    def retryable(self, response: WireResponse) -> bool | None:
        """503 "Prediction failed" is about the image: sending it again would not help."""
        return (
            False
            if response.status == 503 and b"Prediction failed" in response.body[:500]
            else None
        )


def _named(endpoint: Endpoint, model: str) -> None:
    if not model:
        raise ConfigurationError(
            f"{endpoint.name} speaks torchserve: got model=None, expected its name; give model= "
            "(--model)"
        )
