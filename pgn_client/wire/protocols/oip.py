"""The Open Inference Protocol (KServe v2) of Triton, MLServer and KServe.

The datatype of the model's input tensor decides what is sent:

- UINT8: the image's pixels. FP32 or FP16: the normalized pixels. The client resizes an image to the
  input's size, without keeping the aspect ratio (the profile ``direct``). The server neither
  resizes nor re-encodes it, so this wire format changes an image least of all.
- BYTES: the image file (in JSON as base64), which the server preprocesses.

The client tries the protocol's binary tensor extension first, and then JSON, whose bodies are five
times as long. It ignores the extensions that ``GET /v2`` lists, because KServe supports the binary
one without listing it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer, ModelInfo
from pgn_client.wire.endpoint import Endpoint, Meaning
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
from pgn_client.wire.protocols.kserve_v1 import V1
from pgn_client.wire.protocols.options import only_model, options
from pgn_client.wire.protocols.scores import Reader
from pgn_client.wire.protocols.tensors import (
    FLOATS,
    HEADER,
    Input,
    Output,
    choose_input,
    outputs,
    texts,
)

OPTIONS: Mapping[str, type | tuple[type, ...]] = {
    "input": str,
    "datatype": str,
    "shape": list,
    "layout": str,
    "mean": (list, int, float),
    "std": (list, int, float),
    "scores": str,
    "output": str,
    "classification": int,
}
ENDING = r"/v2(?:/models/[^/]+(?:/versions/[^/]+)?(?:/infer)?)?"
NAMES: Mapping[str, Meaning] = {
    "logits": "logits",
    "probabilities": "probabilities",
    "probs": "probabilities",
    "softmax": "probabilities",
    "embedding": "embedding",
    "embeddings": "embedding",
    "features": "embedding",
}
"""Meaning of the numbers that the name of an output tensor shows."""
Question = Literal["model", "server", "index", "models"]
"""What a request asks for: a model's metadata, the server's, or a list of models.

``index`` and ``models`` are two lists, of different servers.
"""
NEXT: Mapping[Question, Question] = {"server": "index", "index": "models"}
"""What to ask for next while the model's name is unknown, by what was asked for before.

Triton and MLServer list their models in a repository index (``index``), and KServe only at
``GET /v1/models`` (``models``).
"""


@dataclass(frozen=True, slots=True)
class OpenInference(Defaults):
    """Wire format ``oip``: POST of tensors to ``{url}/v2/models/{model}/infer``.

    The URL may be the server's address, or the URL of a model or of a model version. Without a
    model name, the server's only model is used.

    Options:

    - ``input``: Name of the input tensor for the image.
    - ``mean``, ``std``: Normalization of the pixels, if the model's metadata do not contain it.
    - ``layout``: Order of the pixels' axes, CHW or HWC, if the tensor's shape does not show it.
    - ``datatype``, ``shape``: Form of the input tensor, for a server without metadata.
    - ``scores``: Name of the output tensor with the scores. Without it, the tensor whose name fits
      ``output`` is used, or else the first one of floating point.
    - ``output``: Meaning of the numbers: ``probs``, ``logits``, ``sigmoid`` or ``embedding``.
      Without it, the output tensor's name decides, or else ``Reader``.
    - ``classification``: Number of best labels to request, on a server with the classification
      extension.

    Attributes:
        endpoint: Endpoint to query; its labels take precedence over the model's own ``classes``.
        model: Path of the model below ``/v2/models/``; empty until the server returns it.
        question: What the next request from ``describe`` asks the server for.
        input: Input tensor for the image; None until the metadata are read.
        output: Name of the output tensor with the scores; empty for the first one.
        classification: Number of labels to request; 0 requests all scores.
        binary: Whether requests use the binary tensor extension.
        reader: Reader that turns the scores into an answer.
        learnt: Set that contains ``"binary"`` once a request with binary tensors has worked.
    """

    endpoint: Endpoint
    model: str = ""
    question: Question = "model"
    input: Input | None = None
    output: str = ""
    classification: int = 0
    binary: bool = True
    name: Literal["oip"] = "oip"
    reader: Reader = field(default_factory=Reader, repr=False)
    learnt: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> OpenInference:
        """Return this wire format, bound to an endpoint.

        Raises:
            ConfigurationError: An option is unknown or invalid.
        """
        given = options(endpoint, "oip", OPTIONS)
        if given.get("classification", 0) < 0:
            raise ConfigurationError(
                f"options: classification: got {given['classification']}, expected a number of "
                "labels, 1 or more, or 0 for all scores"
            )
        in_url = re.search(r"/v2/models/([^/]+(?:/versions/[^/]+)?)", urlsplit(endpoint.url).path)
        model = in_url[1] if in_url else quote(endpoint.model or "", safe="")
        first_question: Question = "model" if model else "server"
        protocol = cls(endpoint, model, first_question, reader=Reader.of(endpoint))
        if "datatype" not in given or "shape" not in given:
            return protocol

        tensor = {
            "name": given.get("input", "input"),
            "datatype": given["datatype"],
            "shape": given["shape"],
        }
        return protocol._with_tensors({"inputs": [tensor]})

    @classmethod
    def recognises(cls, path: str) -> bool:
        """Whether this is a path of the Open Inference Protocol, such as ``/v2/models/{model}``."""
        return re.search(rf"{ENDING}$", path.rstrip("/")) is not None

    @property
    def dialect(self) -> str:
        """Text for the cache key: name, datatype, ``binary`` or ``JSON``, settings' digests."""
        tensor = self.input or Input("", "", ())
        request_digest = digest(
            tensor.name,
            tensor.layout,
            tensor.mean,
            tensor.std,
            tensor.shape,
            self.output,
            self.classification,
        )
        form = "binary" if self.binary else "JSON"
        parts = (self.name, tensor.datatype, form, request_digest, self.reader.digest)
        return " ".join(filter(None, parts))

    @property
    def complete(self) -> bool:
        """Whether the model's name and its input tensor are known."""
        return bool(self.model) and self.input is not None

    @property
    def proven(self) -> bool:
        """Whether tensors are sent in binary, and such a request has worked once."""
        return self.binary and "binary" in self.learnt

    # ---- finding the model and its tensors

    def describe(self) -> WireRequest:
        """Return a request for the model's metadata; without a model name, for a list of models.

        The server's own metadata are requested before such a list.
        """
        headers = {"accept": "application/json"}
        if self.question == "index":
            headers["content-type"] = "application/json"
            return WireRequest("POST", self._at("/v2/repository/index"), headers, b"{}")
        paths = {"model": f"/v2/models/{self.model}", "server": "/v2", "models": "/v1/models"}
        return WireRequest("GET", self._at(paths[self.question]), headers)

    def described(self, response: WireResponse) -> Described | OpenInference | None:
        """Read the response to the request from ``describe``.

        Returns:
            The description in the model's metadata. Or the wire format whose ``describe`` request
            must be sent next. Or None, if the response belongs to another protocol.

        Raises:
            ConfigurationError: There are several models or none, or the metadata are incomplete.
        """
        document = _json(response)
        if self.question == "model":
            return self._read(document if isinstance(document, dict) else {})

        if self.question == "server":
            has_name = isinstance(document, dict) and isinstance(document.get("name"), str)
            if has_name and {"extensions", "version"} & document.keys():
                return replace(self, question=NEXT[self.question])
            return None

        names = _model_names(document)
        if names is None and self.question == "index":
            return replace(self, question=NEXT[self.question])

        name = only_model(self.endpoint, names or [])
        return replace(self, model=quote(name, safe=""), question="model")

    def _read(self, metadata: Mapping[str, Any]) -> Described | None:
        """Return the description in a model's metadata; None if there are no usable metadata.

        If the protocol is configured, not detected, options may replace missing metadata.
        """
        inputs = metadata.get("inputs")
        is_auto = self.endpoint.protocol == "auto"
        if not isinstance(inputs, list):
            return None if is_auto or self.input is None else Described(self)
        if self.input is not None:
            return Described(self, self._info(metadata))

        # KServe also describes models that support v1 only, and lists no inputs for them.
        if not inputs and is_auto and not self.recognises(urlsplit(self.endpoint.url).path):
            return Described(V1.of(replace(self.endpoint, model=unquote(self.model))))

        completed = self._with_tensors(metadata)
        return Described(completed, completed._info(metadata))

    def _with_tensors(self, metadata: Mapping[str, Any]) -> OpenInference:
        """Return a copy that uses the tensors which a model's (untrusted) metadata declare."""
        given = self.endpoint.options
        parameters = _parameters(metadata)
        output = self._choose_output(metadata.get("outputs"))
        kind = self.reader.kind or NAMES.get(output.lower())
        labels = self.reader.labels or texts(parameters.get("classes"))

        # A server with this parameter never returns all scores, only a classification.
        top_k = parameters.get("top_k")
        is_count = isinstance(top_k, int) and not isinstance(top_k, bool) and top_k > 0
        # The extension belongs to an output that the request names.
        if given.get("classification") and not output:
            raise ConfigurationError(
                f"options: classification: got {given['classification']} for a model whose "
                "metadata name no output, expected the name of the output with the scores; give "
                "it as options: scores"
            )
        return replace(
            self,
            input=choose_input(metadata["inputs"], given, parameters),
            output=output,
            classification=given.get("classification", top_k if is_count else 0),
            reader=replace(self.reader, labels=labels, kind=kind),
        )

    def _choose_output(self, declared: Any) -> str:
        """Return the name of the output tensor to request; empty if the metadata name none.

        A name that fits the configured type of scores comes first, then an output of floating
        point, then any.
        """
        if "scores" in self.endpoint.options:
            return str(self.endpoint.options["scores"])

        items = declared if isinstance(declared, list) else []
        datatypes: list[tuple[str, str]] = []
        for item in items:
            if isinstance(item, dict) and isinstance(item.get("name"), str):
                datatypes.append((item["name"], str(item.get("datatype"))))

        kind = self.reader.kind
        for name, _ in datatypes:
            if kind is not None and NAMES.get(name.lower()) == kind:
                return name
        for name, datatype in datatypes:
            if datatype in FLOATS:
                return name
        return datatypes[0][0] if datatypes else ""

    def _info(self, metadata: Mapping[str, Any]) -> ModelInfo:
        height, width = self.input.size if self.input is not None else (-1, -1)
        is_square = height == width > 0

        # Only files go through the server's preprocessing; pixels are resized here (``direct``).
        profile = None
        if self.input is not None and self.input.datatype == "BYTES":
            profile = _parameters(metadata).get("profile")
        if not isinstance(profile, str):
            profile = "direct" if is_square else None

        return ModelInfo(
            name=unquote(self.model),
            input_size=height if is_square else None,
            profile=profile,
            classes=self.reader.labels or None,
        )

    # ---- images and answers

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the HTTP request that sends exactly one image to the model."""
        (image,) = images
        if self.input is None or not self.model:
            raise ConfigurationError("oip: the model's metadata must be read first; see describe")

        tensor, tail = self.input.tensor(image, binary=self.binary)
        document: dict[str, Any] = {"inputs": [tensor]}
        parameters: dict[str, Any] = {"binary_data": self.binary}
        if self.classification:
            parameters["classification"] = self.classification
        if self.output:
            document["outputs"] = [{"name": self.output, "parameters": parameters}]
        else:
            # Without a named output, this parameter asks for binary in all of them.
            document["parameters"] = {"binary_data_output": self.binary}

        head = json.dumps(document, separators=(",", ":")).encode()
        # The server decides between JSON and binary, so both are accepted.
        headers = {"content-type": "application/json", "accept": "*/*"}
        if self.binary:
            headers |= {"content-type": "application/octet-stream", HEADER: str(len(head))}
        return WireRequest("POST", self._at(f"/v2/models/{self.model}/infer"), headers, head + tail)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer, labels with their scores, per image."""
        answers = _answers(self._wanted(outputs(response)), self.reader)
        if self.binary:
            self.learnt.add("binary")
        return answers

    def _wanted(self, tensors: Sequence[Output]) -> Output:
        """Return the output tensor that holds the scores, among the tensors of a response."""
        if self.output:
            candidates = [tensor for tensor in tensors if tensor.name == self.output]
        else:
            candidates = list(tensors)
        best = [tensor for tensor in candidates if tensor.datatype in FLOATS] or candidates
        if not best:
            names = ", ".join(tensor.name for tensor in tensors)
            raise MalformedAnswerError(names, f"one named {self.output}", "outputs ")
        return best[0]

    def retryable(self, response: WireResponse) -> bool | None:
        """Return False, no retry, if the server could not parse the body or JSON is tried next.

        None otherwise: the retry policy decides. Triton returns 500 for a body that it cannot
        parse, and MLServer returns 500 for a binary body.
        """
        if _unparsed(response) or self.fallback(response) is not None:
            return False
        return None

    def plainer(self) -> OpenInference | None:
        """Return the wire format with tensors in JSON instead of binary.

        None if this one already uses JSON, or for the datatype FP16, which JSON cannot carry.
        """
        is_half = self.input is not None and self.input.datatype == "FP16"
        return replace(self, binary=False) if self.binary and not is_half else None

    def fallback(self, response: WireResponse) -> OpenInference | None:
        """Return the wire format with tensors in JSON, if the server may have refused binary ones.

        None if the failure has another cause, or if JSON cannot be used.
        """
        # MLServer's own refusal of a binary body echoes that body and fails with 500.
        refused = response.status in (400, 415, 422, 500)
        return self.plainer() if refused and not self.proven else None

    def _at(self, path: str) -> str:
        return join(self.endpoint.url, path, ENDING)


def _answers(tensor: Output, reader: Reader) -> list[Answer]:
    """Return one answer per image from the output tensor with the scores.

    Args:
        tensor: Scores of S labels, (S,) or, for B images, (B, S). Or D features for each of T
            tokens, (1, T, D), of which the first token, a ViT's class token, is used. Trailing axes
            of size 1 are dropped.
        reader: Reader that turns the scores into an answer.

    Raises:
        MalformedAnswerError: The tensor has another datatype or shape, or is empty.
    """
    shape = tensor.shape
    if tensor.datatype not in (*FLOATS, "BYTES") or not tensor.data:
        raise MalformedAnswerError(
            f"{tensor.datatype} of shape {list(shape)}", "floating-point scores", "the output "
        )

    if reader.kind == "embedding" and len(shape) == 3 and shape[0] == 1:
        return [reader.numbers(tensor.data[: shape[2]])]
    # Some models keep the two spatial axes after pooling to 1 x 1.
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (1, 2):
        raise MalformedAnswerError(
            f"the shape {list(tensor.shape)}", "one score for each label: (labels,) or (1, labels)"
        )

    width = shape[-1]
    rows = [tensor.data[start : start + width] for start in range(0, len(tensor.data), width)]
    if tensor.datatype == "BYTES":
        return [_classified(row, reader) for row in rows]
    return [reader.numbers(row) for row in rows]


def _classified(row: Sequence[Any], reader: Reader) -> Answer:
    """Return the answer for one image from texts of the form ``value:index[:label]``.

    The protocol's classification extension returns one such text per label.
    """
    labels = []
    scores = []
    for item in row:
        index, label, score = _element(item)
        default = reader.labels[index] if index < len(reader.labels) else f"class {index}"
        labels.append(label or default)
        scores.append(score)
    return reader.pairs(labels, scores)


def _element(item: Any) -> tuple[int, str | None, float]:
    """Return index, label (None if absent) and score from the text ``value:index[:label]``."""
    text = item if isinstance(item, str) else ""
    # The number of digits is limited, because int refuses thousands of them.
    parts = re.fullmatch(r"([^:]+):(\d{1,9})(?::(.*))?", text, re.DOTALL)
    # An element of another form gets an empty value, which float refuses too.
    value, index, label = parts.groups() if parts else ("", "0", None)
    try:
        score = float(value)
    except ValueError:
        raise MalformedAnswerError(
            json.dumps(item), "value:index[:label]", "the element "
        ) from None
    return int(index), label, score


def _json(response: WireResponse) -> Any:
    """Return the parsed JSON of a successful response; None if it failed or is not JSON."""
    try:
        return response.json() if response.ok else None
    except MalformedAnswerError:
        return None


def _model_names(document: Any) -> list[str] | None:
    """Return the model names in a server's repository index or in its ``GET /v1/models`` list.

    Models that are not ready are left out. None if the document is neither.
    """
    items = document.get("models") if isinstance(document, dict) else document
    if not isinstance(items, list):
        return None

    names: list[str] = []
    for item in items:
        name = item
        if isinstance(item, dict):
            if item.get("state", "READY") not in ("READY", ""):
                continue
            name = item.get("name")
        if isinstance(name, str) and name:
            names.append(name)
    # Triton's index has one entry per version of a model.
    return list(dict.fromkeys(names))


def _parameters(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters in a model's metadata, as plain values.

    Triton wraps each value as ``{"string_value": ...}``; the wrapping is removed.
    """
    wrapped = metadata.get("parameters")
    parameters: dict[str, Any] = {}
    for key, value in wrapped.items() if isinstance(wrapped, dict) else ():
        is_wrapped = isinstance(value, dict) and "string_value" in value
        parameters[key] = value["string_value"] if is_wrapped else value
    return parameters


def _unparsed(response: WireResponse) -> bool:
    """Whether the response says that the server could not parse the request's body."""
    # Only the start is searched, because an error may echo the whole request.
    return response.status == 500 and b"failed to parse" in response.body[:500]
