"""The ``:predict`` format of KServe v1, TensorFlow Serving and Vertex AI.

A request holds ``{"instances": [...]}`` and the response ``{"predictions": [...]}``. The model's
author decides the form of an instance. So the option ``instance`` is one of ``FORMS``, or a JSON
template with ``{base64}`` or ``{data_url}`` in the place of the image. A prediction may have any
form that ``Reader`` reads.
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

# ``b64`` marks binary data in TensorFlow Serving; a model with several inputs has one key for each.
# ``content`` is the form of Vertex AI's AutoML models, ``text`` that of Hugging Face's containers.
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
# TensorFlow Serving's paths may name a version of the model, or a label of a version.
MODEL = r"/v1/models/([^/:]+)((?:/(?:versions|labels)/[^/:]+)?)(?::predict)?"


def instance_of(endpoint: Endpoint, default: str) -> Any:
    """Return the template of an instance, from the option ``instance`` or the default form.

    Raises:
        ConfigurationError: The option is neither one of ``FORMS`` nor a template with a place for
            the image.
    """
    option = endpoint.options.get("instance", default)
    template = FORMS.get(option, option) if isinstance(option, str) else option
    if not holds_image(template):
        raise ConfigurationError(
            f"options: instance: got {option!r}, expected {', '.join(FORMS)}, or JSON with "
            f"{{base64}} or {{data_url}}"
        )
    return template


def body_of(instance: Any, parameters: Mapping[str, Any], image: Payload) -> bytes:
    """Return the request body for one image; empty parameters are left out."""
    document: dict[str, Any] = {"instances": [fill(instance, image)]}
    if parameters:
        document["parameters"] = parameters
    return json.dumps(document, separators=(",", ":")).encode()


def predictions(response: WireResponse, reader: Reader) -> list[Answer]:
    """Return one answer per prediction.

    Raises:
        MalformedAnswerError: There are no predictions, or one has an unknown form.
    """
    document = response.json()
    items = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(items, list) or not items:
        raise MalformedAnswerError(response.body, "predictions")
    return [reader.read(item) for item in items]


@dataclass(frozen=True, slots=True)
class V1(Defaults):
    """``kserve-v1``: ``POST {url}/v1/models/{model}:predict``.

    The URL may be the server's address, or end in the model's name or in ``:predict``. Without a
    model name, KServe's only model is used. TensorFlow Serving has no list of its models, so it
    needs the name.

    Options:

    - ``instance``: One of ``FORMS``, or a template; the default is ``b64``.
    - ``parameters``: Object that is sent with each instance.
    - ``output``: Type of scores without labels: ``probabilities``, ``logits`` or ``embedding``.
      Without it, the first answer decides.

    Attributes:
        endpoint: Endpoint to query; its labels name scores that come without labels.
        model: Path of the model below ``/v1/models/``; empty until the server returns it.
        instance: Template of one instance.
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
            ConfigurationError: An option is unknown or invalid.
        """
        # A check alone: ``instance_of``, ``Reader.of`` and ``encode`` read the options.
        options(endpoint, "kserve-v1", OPTIONS)
        in_url = re.search(rf"{MODEL}/*$", urlsplit(endpoint.url).path)
        model = in_url[1] + in_url[2] if in_url else quote(endpoint.model or "", safe="")
        return cls(endpoint, model, instance_of(endpoint, "b64"), reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether this is a model's path, ``/v1/models/{model}:predict``."""
        return re.search(r"/v1/models/[^/]+.*:predict$", path) is not None

    @property
    def dialect(self) -> str:
        """Name, with a digest of the instance, the parameters and the reader's settings."""
        parameters = self.endpoint.options.get("parameters", {})
        request_digest = digest(self.instance, parameters)
        return " ".join(filter(None, (self.name, request_digest, self.reader.digest)))

    @property
    def complete(self) -> bool:
        """Whether the model's name is set."""
        return bool(self.model)

    def describe(self) -> WireRequest:
        """Return a request for this model's status, or for the list of models."""
        path = f"/v1/models/{self.model}" if self.model else "/v1/models"
        return WireRequest("GET", self._at(path), {"accept": "application/json"})

    def described(self, response: WireResponse) -> Described | None:
        """Read the status of a model (KServe, TensorFlow Serving) or KServe's list of models.

        Raises:
            ConfigurationError: There is no model, or there are several.
        """
        document = response.json() if response.ok else None
        if not isinstance(document, dict):
            return None

        if self.model:
            # KServe returns the first key, TensorFlow Serving the second.
            is_status = {"ready", "model_version_status"} & document.keys()
            return Described(self, ModelInfo(unquote(self.model))) if is_status else None

        names = document.get("models")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        model = only_model(self.endpoint, names)
        return Described(replace(self, model=quote(model, safe="")), ModelInfo(model))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        parameters = self.endpoint.options.get("parameters", {})
        body = body_of(self.instance, parameters, image)
        headers = {"content-type": "application/json", "accept": "application/json"}
        return WireRequest("POST", self._at(f"/v1/models/{self.model}:predict"), headers, body)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per prediction."""
        return predictions(response, self.reader)

    def _at(self, path: str) -> str:
        return join(self.endpoint.url, path, MODEL)


@dataclass(frozen=True, slots=True)
class Vertex(Defaults):
    """``vertex``: POST to the unchanged URL of a Vertex AI endpoint, which ends in ``:predict``.

    The options are those of ``kserve-v1``. The default instance is AutoML's, ``{"content":
    base64}``; your own container may need another. For all of AutoML's labels, set the option
    ``parameters`` to ``{"confidenceThreshold": 0.0, "maxPredictions": 1000}``. The API key is an
    OAuth2 access token.

    Attributes:
        endpoint: Endpoint to query; its labels name scores that come without labels.
        instance: Template of one instance.
    """

    endpoint: Endpoint
    instance: Any
    name: str = "vertex"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Vertex:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid, or the URL is not one of a Vertex
                AI endpoint that ends in ``:predict``.
        """
        # A check alone: ``instance_of``, ``Reader.of`` and ``encode`` read the options.
        options(endpoint, "vertex", OPTIONS)
        if not cls.recognises(urlsplit(endpoint.url).path):
            raise ConfigurationError(
                f"{endpoint.name}: got a URL that is no Vertex AI endpoint's, expected "
                "https://REGION-aiplatform.googleapis.com/v1/projects/P/locations/L/endpoints/ID:predict"
            )
        return cls(endpoint, instance_of(endpoint, "content"), reader=Reader.of(endpoint))

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether this is an endpoint's path, ``/endpoints/{id}:predict``."""
        return re.search(r"/endpoints/[^/:]+:predict$", path) is not None

    @property
    def dialect(self) -> str:
        """Name, with a digest of the instance, the parameters and the reader's settings."""
        parameters = self.endpoint.options.get("parameters", {})
        request_digest = digest(self.instance, parameters)
        return " ".join(filter(None, (self.name, request_digest, self.reader.digest)))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        parameters = self.endpoint.options.get("parameters", {})
        body = body_of(self.instance, parameters, image)
        headers = {"content-type": "application/json", "accept": "application/json"}
        return WireRequest("POST", self.endpoint.url, headers, body)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per prediction."""
        return predictions(response, self.reader)
