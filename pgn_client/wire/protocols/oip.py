"""The Open Inference Protocol (KServe v2), as Triton, MLServer and KServe speak it.

The model's metadata decide what is sent. An input of UINT8 or FP32 gets the image's pixels, as
they are or normalised; neither a resize nor JPEG of the server touches them, so this is the most
faithful of all wire formats. An input of BYTES gets the image's file (in JSON as base64), which
goes through the server's own preprocessing. An image of another size than the model's input is
squashed to it: the profile ``direct``.

The binary tensor extension is tried first, whatever ``GET /v2`` lists (KServe speaks it and does
not list it, MLServer does not speak it), then JSON, which is five times as long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer, ModelInfo, ScoreKind
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
NAMES: Mapping[str, ScoreKind] = {
    "logits": "logits",
    "probabilities": "probabilities",
    "probs": "probabilities",
    "softmax": "probabilities",
    "embedding": "embedding",
    "embeddings": "embedding",
    "features": "embedding",
}
Question = Literal["model", "server", "index", "models"]
NEXT: Mapping[Question, Question] = {"server": "index", "index": "models"}


@dataclass(frozen=True, slots=True)
class OpenInference(Defaults):
    """``oip``: tensors to ``{url}/v2/models/{model}/infer``.

    The URL may be the server's address, or that of a model or a version. Without a model's name the
    server's only one is asked. Options: ``input`` (name of the tensor that takes the image),
    ``mean``, ``std`` and ``layout`` (CHW or HWC) where the metadata do not tell them, ``datatype``
    and ``shape`` where there are no metadata at all; ``scores`` (name of the tensor that is read;
    else the first of floating point), ``output`` (what its numbers are: probabilities, logits or
    embedding; else its name or the first answer tells) and ``classification`` (ask for the best k
    with the classification extension).

    Attributes:
        endpoint: where to ask, and the names of the scores, before the model's own ``classes``.
        model: the model's path below ``/v2/models/``; empty until the server has told it.
        question: what ``describe`` asks next.
        input: the tensor that takes the image; None until the metadata were read.
        output: the name of the tensor that is read; empty for the first one.
        classification: how many labels to ask for; 0 asks for all scores.
        binary: whether tensors follow the JSON.
        reader: names and kind of the scores.
        learnt: ``"binary"`` is in it once the binary form was answered.
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
        """Bind the wire format to an endpoint.

        Raises:
            ConfigurationError: a wrong option.
        """
        given = options(endpoint, "oip", OPTIONS)
        found = re.search(r"/v2/models/([^/]+(?:/versions/[^/]+)?)", urlsplit(endpoint.url).path)
        model = found[1] if found else quote(endpoint.model or "", safe="")
        made = cls(endpoint, model, "model" if model else "server", reader=Reader.of(endpoint))
        if "datatype" not in given or "shape" not in given:
            return made
        item = {
            "name": given.get("input", "input"),
            "datatype": given["datatype"],
            "shape": given["shape"],
        }
        return made._with({"inputs": [item]})

    @classmethod
    def recognises(cls, path: str) -> bool:
        """The protocol's own paths."""
        return re.search(rf"{ENDING}$", path.rstrip("/")) is not None

    @property
    def dialect(self) -> str:
        """The name, the form of the tensors, and what is told about their numbers."""
        asked = self.input or Input("", "", ())
        told = digest(
            asked.name,
            asked.layout,
            asked.mean,
            asked.std,
            asked.shape,
            self.output,
            self.classification,
        )
        form = "binary" if self.binary else "JSON"
        return " ".join(filter(None, (self.name, asked.datatype, form, told, self.reader.digest)))

    @property
    def complete(self) -> bool:
        """Whether it is known which model to send which tensor."""
        return bool(self.model) and self.input is not None

    @property
    def proven(self) -> bool:
        """Whether the binary form was answered once."""
        return self.binary and "binary" in self.learnt

    # ---- finding the model and its tensors

    def describe(self) -> WireRequest:
        """Return the next question: the model's metadata, or which models there are."""
        headers = {"accept": "application/json"}
        if self.question == "index":
            headers["content-type"] = "application/json"
            return WireRequest("POST", self._at("/v2/repository/index"), headers, b"{}")
        paths = {"model": f"/v2/models/{self.model}", "server": "/v2", "models": "/v1/models"}
        return WireRequest("GET", self._at(paths[self.question]), headers)

    def described(self, response: WireResponse) -> Described | OpenInference | None:
        """Read metadata, or find the model's name; None where another protocol is spoken.

        KServe describes every model here, also one that speaks its first version only: that one
        names no inputs.

        Raises:
            ConfigurationError: several models, or metadata that do not tell enough.
        """
        document = _json(response)
        if self.question == "model":
            return self._read(document if isinstance(document, dict) else {})
        if self.question == "server":
            named = isinstance(document, dict) and isinstance(document.get("name"), str)
            return (
                replace(self, question="index")
                if named and {"extensions", "version"} & document.keys()
                else None
            )
        names = _model_names(document)
        if names is None and self.question == "index":
            return replace(self, question=NEXT[self.question])
        return replace(
            self, model=quote(only_model(self.endpoint, names or []), safe=""), question="model"
        )

    def _read(self, metadata: Mapping[str, Any]) -> Described | None:
        """Read a model's metadata; without any, options that say the same are enough where the
        protocol is named.
        """
        inputs, auto = metadata.get("inputs"), self.endpoint.protocol == "auto"
        if not isinstance(inputs, list):
            return None if auto or self.input is None else Described(self)
        if self.input is not None:
            return Described(self, self._info(metadata))
        if not inputs and auto and not self.recognises(urlsplit(self.endpoint.url).path):
            return Described(V1.of(replace(self.endpoint, model=unquote(self.model))))
        found = self._with(metadata)
        return Described(found, found._info(metadata))

    def _with(self, metadata: Mapping[str, Any]) -> OpenInference:
        """Return this with the tensors of the metadata, which are untrusted."""
        given = self.endpoint.options
        told = _parameters(metadata)
        wanted = self._choose_output(metadata.get("outputs"))
        kind = self.reader.kind or NAMES.get(wanted.lower())
        names = self.reader.labels or texts(told.get("classes"))
        most = told.get("top_k")
        limited = most if isinstance(most, int) and not isinstance(most, bool) and most > 0 else 0
        return replace(
            self,
            input=choose_input(metadata["inputs"], given, told),
            output=wanted,
            classification=given.get("classification", limited),
            reader=replace(self.reader, labels=names, kind=kind),
        )

    def _choose_output(self, declared: Any) -> str:
        """Return the output to ask for; empty where the metadata name none."""
        if "scores" in self.endpoint.options:
            return str(self.endpoint.options["scores"])
        items = (
            [item for item in declared if isinstance(item, dict)]
            if isinstance(declared, list)
            else []
        )
        named = [
            (str(item["name"]), str(item.get("datatype")))
            for item in items
            if isinstance(item.get("name"), str)
        ]
        wish = self.reader.kind
        best = [name for name, _ in named if wish is not None and NAMES.get(name.lower()) == wish]
        return next(
            iter(
                [
                    *best,
                    *(name for name, kind in named if kind in FLOATS),
                    *(name for name, _ in named),
                ]
            ),
            "",
        )

    def _info(self, metadata: Mapping[str, Any]) -> ModelInfo:
        told = _parameters(metadata)
        height, width = self.input.size if self.input is not None else (-1, -1)
        profile = (
            told.get("profile")
            if self.input is not None and self.input.datatype == "BYTES"
            else None
        )
        square = height == width > 0
        return ModelInfo(
            name=unquote(self.model),
            input_size=height if square else None,
            profile=profile if isinstance(profile, str) else "direct" if square else None,
            classes=self.reader.labels or None,
        )

    # ---- images and answers

    def encode(self, images: Sequence[Payload]) -> WireRequest:
        """Return the request for exactly one image."""
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
            document["parameters"] = {"binary_data_output": self.binary}
        head = json.dumps(document, separators=(",", ":")).encode()
        headers = {"content-type": "application/json", "accept": "*/*"}
        if self.binary:
            headers |= {"content-type": "application/octet-stream", HEADER: str(len(head))}
        return WireRequest("POST", self._at(f"/v2/models/{self.model}/infer"), headers, head + tail)

    def decode(self, response: WireResponse) -> list[Answer]:
        """Return one answer per image."""
        answers = _answers(self._wanted(outputs(response)), self.reader)
        self.learnt.update({"binary"} if self.binary else ())
        return answers

    def _wanted(self, tensors: Sequence[Output]) -> Output:
        found = (
            [tensor for tensor in tensors if tensor.name == self.output]
            if self.output
            else list(tensors)
        )
        best = [tensor for tensor in found if tensor.datatype in FLOATS] or found
        if not best:
            names = ", ".join(tensor.name for tensor in tensors)
            raise MalformedAnswerError(names, f"one named {self.output}", "outputs ")
        return best[0]

    def retryable(self, response: WireResponse) -> bool | None:
        """Triton says 500 of a body that it cannot parse, MLServer of a binary one: never retry
        that.
        """
        return False if _unparsed(response) or self.fallback(response) is not None else None

    def plainer(self) -> OpenInference | None:
        """Return the JSON form of the binary form; 16-bit numbers have none."""
        half = self.input is not None and self.input.datatype == "FP16"
        return replace(self, binary=False) if self.binary and not half else None

    def fallback(self, response: WireResponse) -> OpenInference | None:
        """Return the JSON form where the binary one may be what was refused."""
        # MLServer trips over its own refusal, which echoes the body
        refused = response.status in (400, 415, 422, 500)
        return self.plainer() if refused and not self.proven else None

    def _at(self, path: str) -> str:
        return join(self.endpoint.url, path, ENDING)


def _answers(tensor: Output, reader: Reader) -> list[Answer]:
    """Read scores, (S,) or one row per image (B, S), or the tokens (1, T, D) of an embedding: the
    first is the ViT's.

    Raises:
        MalformedAnswerError: other numbers, or another shape.
    """
    shape = tensor.shape
    if tensor.datatype not in (*FLOATS, "BYTES") or not tensor.data:
        raise MalformedAnswerError(
            f"{tensor.datatype} of shape {list(shape)}", "floating-point scores", "the output "
        )
    if reader.kind == "embedding" and len(shape) == 3 and shape[0] == 1:
        return [reader.numbers(tensor.data[: shape[2]])]
    while len(shape) > 2 and shape[-1] == 1:  # pooled to 1 x 1
        shape = shape[:-1]
    if len(shape) not in (1, 2):
        raise MalformedAnswerError(f"the shape {list(tensor.shape)}", "(S,) or (1, S)")
    wide = shape[-1]
    rows = [tensor.data[start : start + wide] for start in range(0, len(tensor.data), wide)]
    return [
        _classified(row, reader) if tensor.datatype == "BYTES" else reader.numbers(row)
        for row in rows
    ]


def _classified(row: Sequence[Any], reader: Reader) -> Answer:
    """Read ``value:index[:label]``, the classification extension."""
    labels, scores = [], []
    for item in row:
        found = (
            re.fullmatch(r"([^:]+):(\d{1,9})(?::(.*))?", item, re.DOTALL)
            if isinstance(item, str)
            else None
        )
        try:
            scores.append(float(found[1] if found else ""))
        except ValueError:
            raise MalformedAnswerError(
                json.dumps(item), "value:index[:label]", "the element "
            ) from None
        place = int(found[2]) if found else 0
        own = reader.labels[place] if place < len(reader.labels) else f"class {place}"
        labels.append((found[3] if found else None) or own)
    return reader.pairs(labels, scores)


def _json(response: WireResponse) -> Any:
    """Return the JSON of a success, or None."""
    try:
        return response.json() if response.ok else None
    except MalformedAnswerError:
        return None


def _model_names(document: Any) -> list[str] | None:
    """Read a repository's index, or the list of ``GET /v1/models``; None where it is neither."""
    items = document.get("models") if isinstance(document, dict) else document
    if not isinstance(items, list):
        return None
    ready = [
        item
        for item in items
        if not isinstance(item, dict) or item.get("state", "READY") in ("READY", "")
    ]
    names = [item.get("name") if isinstance(item, dict) else item for item in ready]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def _parameters(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a model's metadata; Triton wraps each value: ``{"string_value":
    ...}``.
    """
    found = metadata.get("parameters")
    items = found.items() if isinstance(found, dict) else ()
    return {
        key: v["string_value"] if isinstance(v, dict) and "string_value" in v else v
        for key, v in items
    }


def _unparsed(response: WireResponse) -> bool:
    return response.status == 500 and b"failed to parse" in response.body[:500]
