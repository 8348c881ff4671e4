"""The Open Inference Protocol, version 2, of KServe, Triton and MLServer.

The model has two inputs, and a request has one of them:

- ``images`` (B, 3, H, W) goes to the model: FP32 in its normalized space, or UINT8 pixels that the
  server normalizes. The server applies neither resize nor JPEG to this input.
- ``pictures`` (B,), BYTES, holds image files, which go through the server's own preprocessing. In
  JSON each file is base64.

The outputs are ``logits`` and ``probabilities``, with the owner's choice first, or only
``embedding``. The server supports JSON, the binary tensor extension for requests and responses, the
raw request (``Inference-Header-Content-Length: 0``, FP32 images), the classification extension
(``value:index:label``), and gzip requests.

Deviations from Triton: bad JSON and short data are 400 and not 500; NaN is a 400. If the owner's
settings hide a part of the scores, complete tensors are a 400, and only the classification
extension works. One bad image fails the whole request.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from mock_server.errors import RequestError
from mock_server.routes.payload import check_model, parse_object, read_body, require_key, service_of
from mock_server.routes.tensors import Input, pack, read_input
from mock_server.service import Answer, Function, Service

VERSION = "1"
"""Version of the hosted model."""
EXTENSIONS = ["classification", "binary_tensor_data", "model_repository"]
FUNCTIONS: dict[str, Function] = {"logits": "none", "probabilities": "softmax"}
"""Function that turns logits into each output."""

router = APIRouter(prefix="/v2", tags=["oip"])


@router.get("")
def server() -> JSONResponse:
    """Describe the server."""
    return JSONResponse({"name": "mock_server", "version": VERSION, "extensions": EXTENSIONS})


@router.get("/health/live")
def live() -> JSONResponse:
    """Report that the process is alive."""
    return JSONResponse({"live": True})


@router.get("/health/ready")
def ready(request: Request) -> JSONResponse:
    """Report whether the model is ready: 503 until then."""
    service_of(request).require_ready()
    return JSONResponse({"ready": True})


@router.get("/models/{model}/ready")
@router.get("/models/{model}/versions/{version}/ready")
def model_ready(request: Request) -> JSONResponse:
    """Report whether the named model is ready: 503 until then."""
    _check_path(request)
    service_of(request).require_ready()
    return JSONResponse({"name": service_of(request).model.name, "ready": True})


@router.get("/models/{model}", dependencies=[Depends(require_key)])
@router.get("/models/{model}/versions/{version}", dependencies=[Depends(require_key)])
def describe(request: Request) -> JSONResponse:
    """Describe the model: its tensors, preprocessing and classes."""
    _check_path(request)
    service = service_of(request)
    preprocessing = service.preprocessing
    side = preprocessing.input_size
    any_shape = preprocessing.profile.kind == "shortest_edge"

    content = {
        "name": service.model.name,
        "versions": [VERSION],
        "platform": "mock_server",
        "inputs": [
            {
                "name": "images",
                "datatype": "FP32",
                "shape": [-1, 3, -1, -1] if any_shape else [-1, 3, side, side],
            },
            {"name": "pictures", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, len(service.labels)]}
            for name in _output_names(service)
        ],
        "parameters": {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "profile": str(preprocessing.profile),
            "top_k": 1 if service.settings.output == "label" else service.settings.top_k,
            "classes": service.labels,
        },
    }
    return JSONResponse(content)


@router.post("/repository/index", dependencies=[Depends(require_key)])
def index(request: Request) -> JSONResponse:
    """List the hosted model."""
    service = service_of(request)
    state = "READY" if service.ready else "LOADING"
    return JSONResponse(
        [{"name": service.model.name, "version": VERSION, "state": state, "reason": ""}]
    )


_TENSORS = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"], "properties": {"inputs": {}}}
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post("/models/{model}/infer", openapi_extra=_TENSORS, dependencies=[Depends(require_key)])
@router.post(
    "/models/{model}/versions/{version}/infer",
    openapi_extra=_TENSORS,
    dependencies=[Depends(require_key)],
)
async def infer(request: Request) -> Response:
    """Return the requested outputs for a batch of images."""
    _check_path(request)
    service = service_of(request)
    body = await read_body(request)
    header, tail = _split(body, request.headers.get("inference-header-content-length"))
    content = _raw_request(service, tail) if header == b"" else parse_object(header, None)
    requested = _requested_outputs(service, content)
    images = read_input(content, tail, service.preprocessing)

    answers = await service.ask_all(images, service.want)
    outputs = [_output(service, answers, one) for one in requested]
    return _respond(service, content, outputs)


def _check_path(request: Request) -> None:
    """Check the model and version in the request's path."""
    check_model(request)
    if request.path_params.get("version", VERSION) != VERSION:
        raise RequestError("not_found", f"no such version of the model; it has version {VERSION}")


def _output_names(service: Service) -> list[str]:
    """Return the names of the model's outputs, the owner's choice first."""
    if service.want == "embedding":
        return ["embedding"]
    if service.function == "none":
        return ["logits", "probabilities"]
    return ["probabilities", "logits"]


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and the tensors behind it; the JSON of a raw request is empty."""
    if length is None:
        return body, b""
    # More than 12 digits exceed every body; the check of the text avoids a huge integer.
    if not length.isdecimal() or len(length) > 12 or int(length) > len(body):
        raise RequestError(
            "invalid_request", f"inference header size should be in range (0, {len(body)})"
        )
    return body[: int(length)], body[int(length) :]


def _raw_request(service: Service, tail: bytes) -> dict[str, Any]:
    """Return the JSON request that is equivalent to a body of one FP32 tensor."""
    side = service.preprocessing.input_size
    batch, rest = divmod(len(tail), 4 * 3 * side * side)
    if rest:
        raise RequestError(
            "invalid_request", f"a raw request must hold complete FP32 images, 3 x {side} x {side}"
        )
    tensor: Input = {
        "name": "images",
        "datatype": "FP32",
        "shape": [batch, 3, side, side],
        "parameters": {"binary_data_size": len(tail)},
    }
    return {"inputs": [tensor], "parameters": {"binary_data_output": True}}


def _requested_outputs(service: Service, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the outputs that the request names; all outputs by default.

    Each entry has ``name``, ``classification`` (number of labels; 0 is the complete tensor) and
    ``binary``.
    """
    names = _output_names(service)
    binary_default = _parameters(content).get("binary_data_output", False)
    outputs = content.get("outputs") or [{"name": name} for name in names]
    if not isinstance(outputs, list) or not all(
        isinstance(one, dict) and one.get("name") in names for one in outputs
    ):
        raise RequestError(
            "invalid_request", f"unexpected inference output; this model has {', '.join(names)}"
        )

    requested = []
    for one in outputs:
        parameters = _parameters(one)
        classification = parameters.get("classification", 0)
        binary = parameters.get("binary_data", binary_default)
        # The exact type, because JSON's true and false are bool, which Python counts as int.
        if type(classification) is not int or classification < 0 or not isinstance(binary, bool):
            raise RequestError(
                "invalid_request",
                "classification must be a whole number, and binary_data true or false",
            )
        if classification and service.want == "embedding":
            raise RequestError("invalid_request", "an embedding has no classification")
        if not classification:
            service.require_complete()
        requested.append({"name": one["name"], "classification": classification, "binary": binary})
    return requested


def _parameters(part: dict[str, Any]) -> dict[str, Any]:
    parameters = part.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError("invalid_request", "parameters must be an object")
    return parameters


def _output(
    service: Service, answers: list[Answer], requested: dict[str, Any]
) -> tuple[dict[str, Any], bytes | None]:
    """Return the JSON of one output and, if the request wants binary data, its bytes."""
    name = requested["name"]
    count = requested["classification"]
    function = FUNCTIONS.get(name)

    values: NDArray[Any]
    # `function` is None only for the embedding, for which no classification gets this far.
    if count and function is not None:
        values = np.array([_classified(service, answer, function, count) for answer in answers])
    else:
        values = np.stack([service.complete(answer, function) for answer in answers])

    # Labels are an array of text, kind "U".
    datatype = "BYTES" if values.dtype.kind == "U" else "FP32"
    tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
    if not requested["binary"]:
        return tensor | {"data": values.ravel().tolist()}, None
    packed = pack(values)
    return tensor | {"parameters": {"binary_data_size": len(packed)}}, packed


def _classified(service: Service, logits: Answer, function: Function, count: int) -> list[str]:
    """Return the best labels of one image as ``value:index:label``."""
    indices = {label: index for index, label in enumerate(service.model.classes)}
    labels, scores = service.rank(logits, function, top_k=count)
    return [
        f"{score:f}:{indices[label]}:{label}" for label, score in zip(labels, scores, strict=True)
    ]


def _respond(
    service: Service, content: dict[str, Any], outputs: list[tuple[dict[str, Any], bytes | None]]
) -> Response:
    """Return the response: JSON, followed by the binary outputs if there are any."""
    answer: dict[str, Any] = {}
    if isinstance(content.get("id"), str):
        # JSON can hold a lone surrogate, which UTF-8 cannot encode; it becomes a question mark.
        answer["id"] = content["id"].encode("utf-8", "replace").decode()
    answer["model_name"] = service.model.name
    answer["model_version"] = VERSION
    answer["outputs"] = [tensor for tensor, _ in outputs]
    if all(packed is None for _, packed in outputs):
        return JSONResponse(answer)

    header = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    tail = b"".join(packed or b"" for _, packed in outputs)
    return Response(
        header + tail,
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
