"""A wire format of your own, said in ``Endpoint.options``: for the services that share no form with
any other.

What is sent is a template; what comes back is read by JMESPath, the query language of AWS's tools.
For example, Azure Custom Vision, as TOML::

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

from pgn_client.errors import ConfigurationError
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
BOUNDARY = "pgn-client-3f1c9e5b7a2d4860"
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
SECRET = re.compile(r"(?i).*(auth|cookie|credential|key|passw|secret|signature|token).*")


@dataclass(frozen=True, slots=True)
class Custom(Defaults):
    """``custom``: request and answer as ``Endpoint.options`` say.

    Request: ``method`` (POST), ``path`` (appended to the URL, with ``{model}``; none), ``headers``
    (texts; the key goes by ``key_header``), and one of ``body`` and ``multipart``. A body is
    ``"raw"`` (the image's file, the default), or a template, JSON or a text, with ``{base64}`` or
    ``{data_url}`` where the image goes and ``{model}`` where the name does; ``multipart`` is the
    name of the form's field that holds the image.

    Answer, JMESPath each: ``scores`` (a list of numbers; without it the whole answer in one of the
    forms of ``scores``), ``labels`` (as many names; without it ``Endpoint.labels``), ``error``
    (found and not empty it is a failure inside a success). ``scale`` multiplies the scores: 0.01
    makes percents to probabilities. ``output`` says what the scores are: probabilities (if they sum
    to more than 1, they are divided by their sum), logits or embedding; without it the first answer
    tells.

    Attributes:
        url: where images go.
        options: as checked.
        model: for ``{model}``.
        reader: names and kind of the scores.
    """

    url: str
    options: Mapping[str, Any] = field(repr=False)
    model: str | None = None
    name: Literal["custom"] = "custom"
    reader: Reader = field(default_factory=Reader, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Custom:
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: an option that is unknown or cannot work; the message names it.
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
                f"options of custom: path: got {path!r}, expected one from a slash on"
            )
        url = join(endpoint.url, path) if path else endpoint.url
        return cls(url, given, endpoint.model, reader=Reader.of(endpoint))

    @property
    def dialect(self) -> str:
        """The name, and all that is asked and read."""
        return " ".join(filter(None, (self.name, digest(dict(self.options)), self.reader.digest)))

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
        (image,) = images
        kind, body = self._body(image)
        own = {key.lower(): value for key, value in self.options.get("headers", {}).items()}
        headers = {"content-type": kind, "accept": "application/json"} | own
        return WireRequest(self.options.get("method", "POST"), self.url, headers, body)

    def _body(self, image: Payload) -> tuple[str, bytes]:
        """Return the content type and the body."""
        if "multipart" in self.options:
            return (f"multipart/form-data; boundary={BOUNDARY}"), _form(
                self.options["multipart"], image
            )
        template = self.options.get("body", "raw")
        if template == "raw":
            return image.media_type, image.data
        filled = fill(template, image, self.model)
        if isinstance(filled, str):
            return "text/plain", filled.encode()
        return "application/json", json.dumps(filled, separators=(",", ":")).encode()

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return the answer about the one image.

        Raises:
            MalformedAnswerError: nothing where the paths lead, or an error inside a success.
        """
        document = response.json()
        failure = self._at("error", document)
        if failure:
            raise MalformedAnswerError(json.dumps(failure, default=str), "an answer", "a failure: ")
        if "scores" not in self.options:
            return [self.reader.read(document)]
        scores, labels = self._at("scores", document), self._at("labels", document)
        for key, found in (("scores", scores), ("labels", labels)):
            if not isinstance(found, list) and key in self.options:
                raise MalformedAnswerError(
                    response.body, f"a list at {self.options[key]!r}", f"no {key} in "
                )
        scaled = [_scaled(score, self.options.get("scale", 1)) for score in scores]
        return [
            self.reader.numbers(scaled) if labels is None else self.reader.pairs(labels, scaled)
        ]

    def _at(self, key: str, document: Any) -> Any:
        """Return what is where an option's path leads; None where it leads nowhere."""
        path = self.options.get(key)
        try:
            return jmespath.search(path, document) if path is not None else None
        except (JMESPathError, ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise MalformedAnswerError(
                f"{path!r}: {error}", "an answer that fits the path", f"{key}: "
            ) from None


def _scaled(score: Any, scale: float) -> Any:
    """Scale a number; anything else is left for the reader to refuse."""
    number = isinstance(score, int | float) and not isinstance(score, bool)
    try:
        return float(score) * scale if number and scale != 1 else score
    except OverflowError:
        return score


def _form(name: str, image: Payload) -> bytes:
    """Return a form with the image as its one field.

    The boundary is fixed, so that a retry sends the same body; an image that holds it has yet to
    be seen.
    """
    extension = image.media_type.rpartition("/")[2]
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; '
        f'filename="image.{extension}"\r\n'
    )
    kind = f"Content-Type: {image.media_type}\r\n\r\n"
    return (head + kind).encode() + image.data + f"\r\n--{BOUNDARY}--\r\n".encode()


def _check_headers(headers: Mapping[str, Any]) -> None:
    for name, value in headers.items():
        if SECRET.fullmatch(name):
            raise ConfigurationError(
                f"options of custom: headers: got {name}, expected none that holds a key; give "
                "api_key= or "
                "PGN_API_KEY, and key_header where it is no bearer token"
            )
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
            "with {base64} or "
            "{data_url} in it"
        )
    field = given.get("multipart", "data")
    if not field.isprintable() or not field or '"' in field:
        raise ConfigurationError(
            f"options of custom: multipart: got {field!r}, expected the name of a form's field"
        )


def _check_path(key: str, path: str | None) -> None:
    try:
        if path is not None:
            jmespath.compile(path)
    except JMESPathError as error:
        why = " ".join(str(error).split())
        raise ConfigurationError(
            f"options of custom: {key}: got {path!r}, expected a JMESPath such as "
            f"predictions[*].tagName ({why})"
        ) from error
