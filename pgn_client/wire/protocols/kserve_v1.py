"""``:predict``: KServe's first version and TensorFlow Serving, and Vertex AI's envelope of the
same.

``{"instances": [...]}`` goes there, ``{"predictions": [...]}`` comes back. What an instance is, the
model's author decides: the option ``instance`` is one of ``FORMS``, or a template, JSON with
``{base64}`` or ``{data_url}`` where the image goes. A prediction may have any of the forms of
``scores``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

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
    join,
)
from pgn_client.wire.protocols.options import only_model, options
from pgn_client.wire.protocols.scores import Reader
from pgn_client.wire.protocols.template import fill, holds_image

FORMS: Mapping[str, Any] = {
    "b64": {"b64": "{base64}"},
    "image_bytes": {"image_bytes": {"b64": "{base64}"}},
    "image": {"image": {"b64": "{base64}"}},
    "content": {"content": "{base64}"},
    "text": "{base64}",
}
OPTIONS: Mapping[str, type | tuple[type, ...]] = {
    "instance": (str, dict),
    "parameters": dict,
    "output": str,
}
MODEL = r"/v1/models/([^/:]+)((?:/(?:versions|labels)/[^/:]+)?)(?::predict)?"


def instance_of(endpoint: Endpoint, default: str) -> Any:
    """Return the template of an instance: the option ``instance``, or the default form.

    Raises:
        ConfigurationError: neither a form nor a template with a place for the image.
    """
    wish = endpoint.options.get("instance", default)
    template = FORMS.get(wish, wish) if isinstance(wish, str) else wish
    if not holds_image(template):
        raise ConfigurationError(
            f"options: instance: got {wish!r}, expected {', '.join(FORMS)}, or JSON with "
            f"{{base64}} or {{data_url}}"
        )
    return template


def body_of(instance: Any, parameters: Mapping[str, Any], image: Payload) -> bytes:
    """Return the JSON of one instance, with parameters where there are any."""
    document = {"instances": [fill(instance, image)]} | (
        {"parameters": parameters} if parameters else {}
    )
    return json.dumps(document, separators=(",", ":")).encode()


def predictions(response: WireResponse, reader: Reader) -> list[Answer]:
    """Return one answer per prediction.

    Raises:
        MalformedAnswerError: there are none, or none of the forms.
    """
    document = response.json()
    found = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(found, list) or not found:
        raise MalformedAnswerError(response.body, "predictions")
    return [reader.read(item) for item in found]


@dataclass(frozen=True, slots=True)
class V1(Defaults):
    """``kserve-v1``: ``POST {url}/v1/models/{model}:predict``.

    The URL may be the server's address, or end in the model or in ``:predict``. Without a model's
    name KServe's only one is asked; TensorFlow Serving has no list of its models. Options:
    ``instance`` (``b64``), ``parameters`` (sent along) and ``output`` (what bare numbers are:
    probabilities, logits or embedding; else the first answer tells).

    Attributes:
        endpoint: where to ask; its labels name bare numbers.
        model: the model's path below ``/v1/models/``; empty until the server has told it.
        instance: the template of one instance.
    """

    endpoint: Endpoint
    model: str
    instance: Any
    name: str = "kserve-v1"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> V1:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option.
        """
        options(endpoint, "kserve-v1", OPTIONS)
        found = re.search(rf"{MODEL}/*$", urlsplit(endpoint.url).path)
        model = found[1] + found[2] if found else quote(endpoint.model or "", safe="")
        return cls(endpoint, model, instance_of(endpoint, "b64"), reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """A model's own path, ``/v1/models/{model}:predict``."""
        return re.search(r"/v1/models/[^/]+.*:predict$", path) is not None

    @property
    def dialect(self) -> str:
        """The name, and what is sent and read."""
        parameters = self.endpoint.options.get("parameters", {})
        return " ".join(
            filter(None, (self.name, digest(self.instance, parameters), self.reader.digest))
        )

    @property
    def complete(self) -> bool:
        """Whether the model's name is known."""
        return bool(self.model)

    def describe(self) -> WireRequest:
        """Return the question whether this model is there, or which models there are."""
        path = f"/v1/models/{self.model}" if self.model else "/v1/models"
        return WireRequest("GET", self._at(path), {"accept": "application/json"})

    def described(self, response: WireResponse) -> Described | None:
        """Read KServe's list of models, or KServe's or TensorFlow Serving's word about one.

        Raises:
            ConfigurationError: there are several models.
        """
        document = response.json() if response.ok else None
        if not isinstance(document, dict):
            return None
        if self.model:
            known = {"ready", "model_version_status"} & document.keys()
            return Described(self, ModelInfo(unquote(self.model))) if known else None
        names = document.get("models")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        model = only_model(self.endpoint, names)
        return Described(replace(self, model=quote(model, safe="")), ModelInfo(model))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        body = body_of(self.instance, self.endpoint.options.get("parameters", {}), image)
        headers = {"content-type": "application/json", "accept": "application/json"}
        return WireRequest("POST", self._at(f"/v1/models/{self.model}:predict"), headers, body)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per prediction."""
        return predictions(response, self.reader)

    def _at(self, path: str) -> str:
        return join(self.endpoint.url, path, MODEL)


@dataclass(frozen=True, slots=True)
class Vertex(Defaults):
    """``vertex``: a Vertex AI endpoint; POST to its URL, which ends in ``:predict``, verbatim.

    An instance is ``{"content": base64}``, an AutoML model's; a container of your own may want
    another. Ask AutoML for all its labels with the option ``parameters``: ``{"confidenceThreshold":
    0.0, "maxPredictions": 1000}``. The key is an OAuth2 access token.

    Attributes:
        endpoint: where to ask; its labels name bare numbers.
        instance: the template of one instance.
    """

    endpoint: Endpoint
    instance: Any
    name: str = "vertex"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Vertex:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option, or a URL that is no method of an endpoint.
        """
        options(endpoint, "vertex", OPTIONS)
        if not cls.recognises(urlsplit(endpoint.url).path):
            raise ConfigurationError(
                f"{endpoint.name}: got no URL of a Vertex endpoint's method, expected "
                "https://REGION-aiplatform.googleapis.com/v1/projects/P/locations/L/endpoints/ID:predict"
            )
        return cls(endpoint, instance_of(endpoint, "content"), reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """An endpoint's method, ``/endpoints/{id}:predict``."""
        return re.search(r"/endpoints/[^/:]+:predict$", path) is not None

    @property
    def dialect(self) -> str:
        """The name, and what is sent and read."""
        parameters = self.endpoint.options.get("parameters", {})
        return " ".join(
            filter(None, (self.name, digest(self.instance, parameters), self.reader.digest))
        )

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        body = body_of(self.instance, self.endpoint.options.get("parameters", {}), image)
        headers = {"content-type": "application/json", "accept": "application/json"}
        return WireRequest("POST", self.endpoint.url, headers, body)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per prediction."""
        return predictions(response, self.reader)
