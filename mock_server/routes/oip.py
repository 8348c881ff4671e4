"""The Open Inference Protocol, version 2, as KServe, Triton and MLServer speak it.

Two inputs, one of them per request. ``images`` (B, 3, H, W) is what the model sees: FP32 in its
normalised space, or UINT8 pixels that are normalised here; neither resize nor JPEG touches it.
``pictures`` (B,) are BYTES: image files that go through the server's own preprocessing (in JSON
each is base64). Outputs: ``logits`` and ``probabilities``, the owner's choice first, or
``embedding`` alone. JSON, the binary tensor extension both ways, the raw request
(``Inference-Header-Content-Length: 0``, FP32 images) and the classification extension
(``value:index:label``) are spoken; gzip requests too.

Deviations from Triton: bad JSON and short data are 400 and not 500; NaN is refused; where the owner
keeps scores back, complete tensors are a 400 and only the classification extension answers; one bad
image refuses the whole request.
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

VERSION = "1"  # of the one model
EXTENSIONS = ["classification", "binary_tensor_data", "model_repository"]
FUNCTIONS: dict[str, Function] = {"logits": "none", "probabilities": "softmax"}

router = APIRouter(prefix="/v2", tags=["oip"])


@router.get("")
def server() -> JSONResponse:
    """Describe the server."""
    return JSONResponse({"name": "mock_server", "version": VERSION, "extensions": EXTENSIONS})


@router.get("/health/live")
def live() -> JSONResponse:
    """Say that the process lives."""
    return JSONResponse({"live": True})


@router.get("/health/ready")
def ready(request: Request) -> JSONResponse:
    """Say whether the model is warm."""
    service_of(request).require_ready()
    return JSONResponse({"ready": True})


@router.get("/models/{model}/ready")
@router.get("/models/{model}/versions/{version}/ready")
def model_ready(request: Request) -> JSONResponse:
    """Say whether this model is warm."""
    _check(request)
    service_of(request).require_ready()
    return JSONResponse({"name": service_of(request).model.name, "ready": True})


@router.get("/models/{model}", dependencies=[Depends(require_key)])
@router.get("/models/{model}/versions/{version}", dependencies=[Depends(require_key)])
def describe(request: Request) -> JSONResponse:
    """Describe the model: its tensors, and what a client needs to make them."""
    _check(request)
    service = service_of(request)
    preprocessing, side = service.preprocessing, service.preprocessing.input_size
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
    """List the one model."""
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
    """Answer tensors with tensors."""
    _check(request)
    service = service_of(request)
    header, tail = _split(
        await read_body(request), request.headers.get("inference-header-content-length")
    )
    content = _raw_request(service, tail) if header == b"" else parse_object(header, None)
    wanted = _wanted(service, content)
    images = read_input(content, tail, service.preprocessing)
    answers = await service.ask_all(images, service.want)
    outputs = [_output(service, answers, one) for one in wanted]
    return _respond(service, content, outputs)


def _check(request: Request) -> None:
    check_model(request)
    if request.path_params.get("version", VERSION) != VERSION:
        raise RequestError("not_found", f"no such version of the model; there is {VERSION}")


def _output_names(service: Service) -> list[str]:
    if service.want == "embedding":
        return ["embedding"]
    return (
        ["logits", "probabilities"] if service.function == "none" else ["probabilities", "logits"]
    )


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """Return the JSON and the tensors behind it; empty JSON is a raw request."""
    if length is None:
        return body, b""
    if not length.isdecimal() or len(length) > 12 or int(length) > len(body):
        raise RequestError(
            "invalid_request", f"inference header size should be in range (0, {len(body)})"
        )
    return body[: int(length)], body[int(length) :]


def _raw_request(service: Service, tail: bytes) -> dict[str, Any]:
    """Describe a body that is one FP32 tensor and nothing else."""
    side = service.preprocessing.input_size
    batch, rest = divmod(len(tail), 4 * 3 * side * side)
    if rest:
        raise RequestError(
            "invalid_request", f"a raw request holds whole FP32 images of 3 x {side} x {side}"
        )
    tensor: Input = {
        "name": "images",
        "datatype": "FP32",
        "shape": [batch, 3, side, side],
        "parameters": {"binary_data_size": len(tail)},
    }
    return {"inputs": [tensor], "parameters": {"binary_data_output": True}}


def _wanted(service: Service, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return name, classification (0: none) and binary of each output that the request asks for;
    all by default.
    """
    names = _output_names(service)
    default = _parameters(content).get("binary_data_output", False)
    outputs = content.get("outputs") or [{"name": name} for name in names]
    if not isinstance(outputs, list) or not all(
        isinstance(one, dict) and one.get("name") in names for one in outputs
    ):
        raise RequestError(
            "invalid_request", f"unexpected inference output; this model has {', '.join(names)}"
        )
    wanted = []
    for one in outputs:
        parameters = _parameters(one)
        classification, binary = (
            parameters.get("classification", 0),
            parameters.get("binary_data", default),
        )
        if type(classification) is not int or classification < 0 or not isinstance(binary, bool):
            raise RequestError(
                "invalid_request",
                "classification must be a whole number, binary_data true or false",
            )
        if classification and service.want == "embedding":
            raise RequestError("invalid_request", "an embedding has no classification")
        if not classification:
            service.require_complete()
        wanted.append({"name": one["name"], "classification": classification, "binary": binary})
    return wanted


def _parameters(part: dict[str, Any]) -> dict[str, Any]:
    parameters = part.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RequestError("invalid_request", "parameters must be an object")
    return parameters


def _output(
    service: Service, answers: list[Answer], wanted: dict[str, Any]
) -> tuple[dict[str, Any], bytes | None]:
    """Return one output's JSON and, if it is wanted as binary, its bytes."""
    values: NDArray[Any]
    function = FUNCTIONS.get(wanted["name"])
    if wanted["classification"] and function is not None:
        values = np.array(
            [_classified(service, answer, function, wanted["classification"]) for answer in answers]
        )
    else:
        values = np.stack([service.complete(answer, function) for answer in answers])
    kind = "BYTES" if values.dtype.kind == "U" else "FP32"
    tensor: dict[str, Any] = {"name": wanted["name"], "datatype": kind, "shape": list(values.shape)}
    if not wanted["binary"]:
        return tensor | {"data": values.ravel().tolist()}, None
    packed = pack(values)
    return tensor | {"parameters": {"binary_data_size": len(packed)}}, packed


def _classified(service: Service, logits: Answer, function: Function, count: int) -> list[str]:
    places = {label: place for place, label in enumerate(service.model.classes)}
    labels, scores = service.rank(logits, function, top_k=count)
    return [
        f"{score:f}:{places[label]}:{label}" for label, score in zip(labels, scores, strict=True)
    ]


def _respond(
    service: Service, content: dict[str, Any], outputs: list[tuple[dict[str, Any], bytes | None]]
) -> Response:
    given = (
        {"id": content["id"].encode("utf-8", "replace").decode()}
        if isinstance(content.get("id"), str)
        else {}
    )
    name = {"model_name": service.model.name, "model_version": VERSION}
    answer = {**given, **name, "outputs": [tensor for tensor, _ in outputs]}
    if all(packed is None for _, packed in outputs):
        return JSONResponse(answer)
    header = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(
        header + b"".join(packed or b"" for _, packed in outputs),
        media_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
