"""The wire format ``custom``, which you describe by options, for services with their own format.

A template defines the request. Expressions in JMESPath, a query language for JSON, find labels and
scores in the response. For example, these settings in TOML fit Azure Custom Vision::

    url = "https://REGION.api.cognitive.microsoft.com/customvision/v3.1/prediction/ID/classify/iterations/NAME/image"
    protocol = "custom"
    [options]
    key_header = "Prediction-Key: {key}"
    body = "raw"
    labels = "predictions[*].tagName"
    scores = "predictions[*].probability"
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jmespath
from jmespath.exceptions import JMESPathError

from pgn_client.errors import ConfigurationError, printable
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
from pgn_client.wire.protocols.options import choice, options
from pgn_client.wire.protocols.sagemaker import is_throttled
from pgn_client.wire.protocols.scores import Reader
from pgn_client.wire.protocols.template import fill, holds_image

OPTIONS: Mapping[str, type | tuple[type, ...]] = {
    "method": str,
    "path": str,
    "headers": dict,
    "body": (str, dict, list),
    "multipart": str,
    "labels": str,
    "scores": str,
    "scale": (int, float),
    "output": str,
    "error": str,
}
# Fixed, so that a retry sends the same body. No image is expected to contain it.
BOUNDARY = "pgn-client-3f1c9e5b7a2d4860"
# The characters that HTTP allows in the name of a header.
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Names of headers that may hold a key. Only ``api_key`` is kept out of logs and caches.
SECRET = re.compile(r"(?i).*(auth|cookie|credential|key|passw|secret|signature|token).*")


@dataclass(frozen=True, slots=True)
class Custom(Defaults):
    """Wire format ``custom``: ``Endpoint.options`` describe the request and the response.

    Options for the request:

    - ``method``: POST (the default), PUT or PATCH.
    - ``path``: Path to append to the URL; it may contain ``{model}``. By default nothing is added.
    - ``headers``: HTTP headers, as names and texts. The API key is not among them: see the option
      ``key_header``.
    - ``body``: ``"raw"``, which sends the image file (the default), or a template. A template is
      JSON or a text, with ``{base64}`` or ``{data_url}`` in the place of the image and ``{model}``
      in the place of the model's name.
    - ``multipart``: Name of the form field for the image; it replaces ``body``.

    Options for the response; ``scores``, ``labels`` and ``error`` are JMESPath expressions:

    - ``scores``: Finds the list of scores. Without it, the whole response has one of the forms that
      ``Reader`` reads.
    - ``labels``: Finds the list of the scores' labels. Without it, ``Endpoint.labels`` are used.
    - ``error``: If its value is not empty, the request failed despite the status 2xx.
    - ``scale``: Factor for the scores, for example 0.01 for percentages.
    - ``output``: Meaning of the numbers: ``probs`` (divided by their sum if that exceeds 1),
      ``logits``, ``sigmoid`` or ``embedding``; see ``Reader``.

    Attributes:
        url: URL that images are sent to.
        options: Checked options.
        model: Model name that replaces ``{model}``; None if it is not configured.
        reader: Reader that turns the scores into an answer.
    """

    url: str
    options: Mapping[str, Any] = field(repr=False)
    model: str | None = None
    name: Literal["custom"] = "custom"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Custom:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid; the message names it.
        """
        given = options(endpoint, "custom", OPTIONS)
        choice("method", given.get("method"), ("POST", "PUT", "PATCH"))
        _check_headers(given.get("headers", {}))
        _check_body(given)

        for key in ("labels", "scores", "error"):
            _check_path(key, given.get(key))
        if "labels" in given and "scores" not in given:
            raise ConfigurationError(
                "options of custom: got labels without scores, expected both, or scores alone"
            )
        if not 0 < given.get("scale", 1) < float("inf"):
            raise ConfigurationError(
                f"options of custom: scale: got {given['scale']}, expected a number above 0"
            )

        path = given.get("path", "").replace("{model}", endpoint.model or "")
        if path and not path.startswith("/"):
            raise ConfigurationError(
                f"options of custom: path: got {path!r}, expected one that starts with a slash"
            )

        url = join(endpoint.url, path) if path else endpoint.url
        return cls(url, given, endpoint.model, reader=Reader.of(endpoint))

    @property
    def dialect(self) -> str:
        """Text for the cache key: the wire format's name, with digests of options and labels."""
        return " ".join(filter(None, (self.name, digest(dict(self.options)), self.reader.digest)))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        content_type, body = self._body(image)
        configured = {key.lower(): value for key, value in self.options.get("headers", {}).items()}
        headers = {"content-type": content_type, "accept": "application/json"} | configured
        return WireRequest(self.options.get("method", "POST"), self.url, headers, body)

    def _body(self, image: Payload) -> tuple[str, bytes]:
        """Return the content type and the body of the request for one image."""
        if "multipart" in self.options:
            form = _form(self.options["multipart"], image)
            return f"multipart/form-data; boundary={BOUNDARY}", form

        template = self.options.get("body", "raw")
        if template == "raw":
            return image.media_type, image.data

        filled = fill(template, image, self.model)
        if isinstance(filled, str):
            return "text/plain", filled.encode()
        return "application/json", json.dumps(filled, separators=(",", ":")).encode()

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return a list with the one image's answer: its labels and scores.

        Raises:
            MalformedAnswerError: The scores or labels are missing, or the response reports an error
                despite its status.
        """
        document = response.json()
        failure = self._at("error", document)
        if failure:
            raise MalformedAnswerError(json.dumps(failure, default=str), "an answer", "a failure: ")

        if "scores" not in self.options:
            return [self.reader.read(document)]

        scores = self._at("scores", document)
        labels = self._at("labels", document)
        for key, values in (("scores", scores), ("labels", labels)):
            if not isinstance(values, list) and key in self.options:
                raise MalformedAnswerError(
                    response.body, f"a list at {self.options[key]!r}", f"no {key} in "
                )

        scaled = [_scaled(score, self.options.get("scale", 1)) for score in scores]
        if labels is None:
            return [self.reader.numbers(scaled)]
        return [self.reader.pairs(labels, scaled)]

    def retryable(self, response: WireResponse) -> bool | None:
        """Return True for a throttled request to AWS, whose status is 400; None otherwise."""
        return True if response.status == 400 and is_throttled(response) else None

    def _at(self, key: str, document: Any) -> Any:
        """Return the value that an option's JMESPath finds in the response's JSON.

        None if it finds nothing, or if the option is not set.
        """
        path = self.options.get(key)
        try:
            return jmespath.search(path, document) if path is not None else None
        # jmespath lets Python's own errors through, for example from floor() of infinity, from
        # contains() with a number, and from a slice with the step 0.
        except (JMESPathError, ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise MalformedAnswerError(
                f"{path!r}: {error}", "a response that fits the JMESPath", f"{key}: "
            ) from None


def _scaled(score: Any, scale: float) -> Any:
    """Return a score times ``scale``; anything but a number is returned unchanged.

    The caller refuses it later.
    """
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    try:
        return float(score) * scale if is_number and scale != 1 else score
    except OverflowError:
        # An integer beyond float's range: the reader refuses it as not finite.
        return score


def _form(name: str, image: Payload) -> bytes:
    """Return the body of a multipart form with the image as its only field."""
    extension = image.media_type.rpartition("/")[2]
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; '
        f'filename="image.{extension}"\r\n'
    )
    content_type = f"Content-Type: {image.media_type}\r\n\r\n"
    tail = f"\r\n--{BOUNDARY}--\r\n"
    return (head + content_type).encode() + image.data + tail.encode()


def _check_headers(headers: Mapping[str, Any]) -> None:
    for name, value in headers.items():
        if SECRET.fullmatch(name):
            raise ConfigurationError(
                f"options of custom: headers: got {name}, expected none that holds a key; give "
                "api_key= or PGN_API_KEY, and key_header if the key is no bearer token"
            )
        # A line break in a value would start another header.
        if (
            not TOKEN.fullmatch(name)
            or not isinstance(value, str)
            or not (value.isascii() and value.isprintable())
        ):
            raise ConfigurationError(
                f"options of custom: headers: {name!r}: expected a name and one line of ASCII text"
            )


def _check_body(given: Mapping[str, Any]) -> None:
    if "body" in given and "multipart" in given:
        raise ConfigurationError("options of custom: got body and multipart, expected one of them")
    body = given.get("body", "raw")
    if body != "raw" and not holds_image(body):
        raise ConfigurationError(
            "options of custom: body: got no place for the image, expected 'raw', or a template "
            "that contains {base64} or {data_url} in a text that is no key"
        )

    field = given.get("multipart")
    # A quote or a line break would end the name in the form.
    if field is not None and (not field or not field.isprintable() or '"' in field):
        raise ConfigurationError(
            f"options of custom: multipart: got {field!r}, expected the name of a form field"
        )


def _check_path(key: str, path: str | None) -> None:
    try:
        if path is not None:
            jmespath.compile(path)
    except JMESPathError as error:
        # jmespath's messages have several lines.
        reason = printable(" ".join(str(error).split()))
        raise ConfigurationError(
            f"options of custom: {key}: got {path!r}, expected a JMESPath such as "
            f"predictions[*].tagName ({reason})"
        ) from error
