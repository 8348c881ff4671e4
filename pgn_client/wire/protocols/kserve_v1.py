"""The ``:predict`` format of KServe v1, TensorFlow Serving and Vertex AI.

A request holds ``{"instances": [...]}``, one instance per image, and the response
``{"predictions": [...]}``. The model's author decides the form of an instance. So the option
``instance`` names a usual form (``FORMS``), or is a JSON template with ``{base64}`` or
``{data_url}`` in the place of the image. A prediction may have any form that ``Reader`` reads.
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
from pgn_client.wire.protocols.options import MEANING, only_model, options
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
    **MEANING,
}
# TensorFlow Serving's paths may name a version of the model, or a label of a version.
MODEL = r"/v1/models/([^/:]+)((?:/(?:versions|labels)/[^/:]+)?)(?::predict)?"


def instance_of(endpoint: Endpoint, default: str) -> Any:
    """Return the JSON template of an instance, the part of a request that holds one image.

    It comes from the option ``instance``, or else is the form with the name ``default``.

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
    """Return the JSON request body for one image; empty ``parameters`` are left out.

    ``instance`` is the template of the part that holds the image.
    """
    document: dict[str, Any] = {"instances": [fill(instance, image)]}
    if parameters:
        document["parameters"] = parameters
    return json.dumps(document, separators=(",", ":")).encode()


def predictions(response: WireResponse, reader: Reader) -> list[Answer]:
    """Return one answer, labels with their scores, per entry of the response's ``predictions``.

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
    """Wire format ``kserve-v1``: ``POST {url}/v1/models/{model}:predict``.

    The URL may be the server's address, or end in the model's name or in ``:predict``. Without a
    model name, the only model that KServe lists is used. TensorFlow Serving lists no models, so it
    needs the name.

    Options:

    - ``instance``: Form of the part of the request that holds the image. It is one of ``FORMS``, or
      a JSON template; the default is ``b64``.
    - ``parameters``: JSON object that is sent with each image.
    - ``scores`` (or ``output``): Meaning of the numbers: ``probs``, ``logits``, ``sigmoid`` or
      ``embedding``; see ``Reader``.

    Attributes:
        endpoint: Endpoint to query; its labels name scores that come without labels.
        model: Path of the model below ``/v1/models/``; empty until the server returns it.
        instance: Template of the part of the request that holds the image.
        reader: Reader that turns the scores into an answer.
    """

    endpoint: Endpoint
    model: str
    instance: Any
    name: str = "kserve-v1"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> V1:
        """Return this wire format, bound to an endpoint.

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
        """Whether this is the URL path of a model, ``/v1/models/{model}:predict``."""
        return re.search(r"/v1/models/[^/]+.*:predict$", path) is not None

    @property
    def dialect(self) -> str:
        """Text for the cache key: the wire format's name, with digests of its settings."""
        parameters = self.endpoint.options.get("parameters", {})
        request_digest = digest(self.instance, parameters)
        return " ".join(filter(None, (self.name, request_digest, self.reader.digest)))

    @property
    def complete(self) -> bool:
        """Whether the model's name is known, so that images can be encoded."""
        return bool(self.model)

    def describe(self) -> WireRequest:
        """Return a request for the model's status; without a model name, for the list of models."""
        path = f"/v1/models/{self.model}" if self.model else "/v1/models"
        return WireRequest("GET", self._at(path), {"accept": "application/json"})

    def described(self, response: WireResponse) -> Described | None:
        """Return the description in a model's status, or in KServe's list of models.

        None if the response belongs to another wire format.

        Raises:
            ConfigurationError: The list contains no model, or several.
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
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        parameters = self.endpoint.options.get("parameters", {})
        body = body_of(self.instance, parameters, image)
        headers = {"content-type": "application/json", "accept": "application/json"}
        return WireRequest("POST", self._at(f"/v1/models/{self.model}:predict"), headers, body)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, labels with scores, per entry of the response's ``predictions``."""
        return predictions(response, self.reader)

    def _at(self, path: str) -> str:
        return join(self.endpoint.url, path, MODEL)


@dataclass(frozen=True, slots=True)
class Vertex(Defaults):
    """Wire format ``vertex``: POST to a Vertex AI endpoint's unchanged URL, ending in ``:predict``.

    The options are those of ``kserve-v1``. By default an image is sent as AutoML models take it,
    ``{"content": base64}``; your own container may need another form. For all of AutoML's labels,
    set the option ``parameters`` to ``{"confidenceThreshold": 0.0, "maxPredictions": 1000}``. The
    API key is an OAuth2 access token.

    Attributes:
        endpoint: Endpoint to query; its labels name scores that come without labels.
        instance: Template of the part of the request that holds the image.
        reader: Reader that turns the scores into an answer.
    """

    endpoint: Endpoint
    instance: Any
    name: str = "vertex"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Vertex:
        """Return this wire format, bound to an endpoint.

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
        """Whether this is the URL path of a Vertex AI endpoint, ``/endpoints/{id}:predict``."""
        return re.search(r"/endpoints/[^/:]+:predict$", path) is not None

    @property
    def dialect(self) -> str:
        """Text for the cache key: the wire format's name, with digests of its settings."""
        parameters = self.endpoint.options.get("parameters", {})
        request_digest = digest(self.instance, parameters)
        return " ".join(filter(None, (self.name, request_digest, self.reader.digest)))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        parameters = self.endpoint.options.get("parameters", {})
        body = body_of(self.instance, parameters, image)
        headers = {"content-type": "application/json", "accept": "application/json"}
        return WireRequest("POST", self.endpoint.url, headers, body)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, labels with scores, per entry of the response's ``predictions``."""
        return predictions(response, self.reader)
