"""The Hugging Face formats, as Inference Endpoints and the serverless API speak them.

Image classification: raw image bytes with parameters in the query string, or JSON ``{"inputs":
    ..., "parameters":
{...}}``, where inputs is base64 (also a ``data:`` URL, never a path or another URL), ``{"image":
base64}``, or a list of these. One model is hosted, so the name in the path is not looked at.

Zero-shot classification: the same with ``parameters.candidate_labels``. Image feature extraction:
    the same below
``/pipeline/feature-extraction``; one image is ``[[D numbers]]`` with ``pool``, else the last
hidden state ``[[N][D]]`` in one more list.

Deviations from the real servers: `--output label` answers one entry with score 1.0; a list in which
one image is bad is refused as a whole, as there; and an unknown parameter is a 400 on every form.
No text encoder is hosted: candidate labels must be class names of the model, letter for letter, the
softmax goes over these alone, and ``hypothesis_template`` changes nothing. With `--output
embedding` every path extracts features, pooled always.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from mock_server.errors import RequestError
from mock_server.routes.payload import (
    check_object,
    check_top_k,
    from_text,
    is_json,
    parse_object,
    places_of,
    query_of,
    read_body,
    require_key,
    service_of,
)
from mock_server.schemas import LabelScore
from mock_server.service import Function, Service

DEFAULT_TOP_K = 5
PARAMETERS = ("function_to_apply", "top_k")
FUNCTIONS: tuple[Function, ...] = ("softmax", "sigmoid", "none")
ZERO_SHOT = ("candidate_labels", "hypothesis_template")

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_PARAMETERS_SCHEMA = {
    "type": "object",
    "properties": {
        "top_k": {"type": "integer", "minimum": 1},
        "function_to_apply": {"type": "string", "enum": list(FUNCTIONS)},
        "candidate_labels": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "hypothesis_template": {"type": "string"},
    },
}
_JSON = {
    "schema": {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": {}, "parameters": _PARAMETERS_SCHEMA},
    }
}
_ANSWER = list[LabelScore] | list[list[LabelScore]]  # of one image, or of a list of them
BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/png": _PICTURE, "image/jpeg": _PICTURE, "application/json": _JSON},
    }
}

router = APIRouter(tags=["huggingface"], dependencies=[Depends(require_key)])


@router.post("/pipeline/feature-extraction", openapi_extra=BODY)
@router.post("/models/{model:path}/pipeline/feature-extraction", openapi_extra=BODY)
@router.post("/hf-inference/models/{model:path}/pipeline/feature-extraction", openapi_extra=BODY)
async def extract(request: Request) -> JSONResponse:
    """Return the features of one image, or of a list of them."""
    return JSONResponse(await features(request))


@router.post("/", response_model=_ANSWER, openapi_extra=BODY)
@router.post("/models/{model:path}", response_model=_ANSWER, openapi_extra=BODY)
@router.post("/hf-inference/models/{model:path}", response_model=_ANSWER, openapi_extra=BODY)
async def classify(request: Request) -> JSONResponse:
    """Classify one image, or a list of them: the top 5 by softmax unless the parameters say
    otherwise.
    """
    return JSONResponse(await answer(request))


async def answer(request: Request) -> list[Any]:
    """Return what the owner's model answers to a request of this format: labels, or features if it
    has none.

    Raises:
        RequestError: The request cannot be answered.
    """
    service = service_of(request)
    if service.want == "embedding":
        return await features(request)
    images, parameters, single = await _read(request, PARAMETERS, ZERO_SHOT)
    among = places_of(service, parameters.get("candidate_labels"))
    function, top_k = _function(service, parameters, among), _top_k(parameters, among)
    answers = []
    for logits in await service.ask_all(images):
        ranked = zip(*service.rank(logits, function, top_k=top_k, among=among), strict=True)
        answers.append([{"label": label, "score": score} for label, score in ranked])
    return answers[0] if single else answers


async def features(request: Request) -> list[Any]:
    """Return the features that a request of this format asks for.

    Raises:
        RequestError: The request cannot be answered.
    """
    service = service_of(request)
    images, parameters, single = await _read(request, ["pool"], [])
    pool = parameters.get("pool", service.want == "embedding")
    if pool not in (True, False, "true", "false"):
        raise RequestError("invalid_request", "pool must be true or false")
    answers = await service.ask_all(images, "embedding" if pool in (True, "true") else "tokens")
    nested = [[service.complete(vector).tolist()] for vector in answers]
    return nested[0] if single else nested


async def _read(
    request: Request, anywhere: Any, json_only: Any
) -> tuple[list[bytes | RequestError], dict[str, Any], bool]:
    """Return the images, the parameters, and whether it is one image and not a list of them."""
    parameters = query_of(request, anywhere)
    body = await read_body(request)
    if not is_json(request, body):
        return [body], parameters, True
    content = parse_object(body, ["inputs", "parameters"])
    parameters |= check_object(
        content.get("parameters") or {}, [*anywhere, *json_only], "parameters"
    )
    inputs = content.get("inputs")
    batch = inputs if isinstance(inputs, list) else [inputs]
    if not batch:
        raise RequestError("invalid_request", "inputs must hold at least one image")
    return [_image(entry) for entry in batch], parameters, not isinstance(inputs, list)


def _function(service: Service, parameters: dict[str, Any], among: list[int] | None) -> Function:
    if among is not None:
        if "function_to_apply" in parameters:
            raise RequestError(
                "invalid_request", "candidate_labels are compared by softmax: no function_to_apply"
            )
        if not isinstance(parameters.get("hypothesis_template", ""), str):
            raise RequestError("invalid_request", "hypothesis_template must be a string")
        return "softmax"
    if "hypothesis_template" in parameters:
        raise RequestError("invalid_request", "hypothesis_template needs candidate_labels")
    function = parameters.get("function_to_apply") or service.function
    if function not in FUNCTIONS:
        raise RequestError(
            "invalid_request", f"function_to_apply must be one of {', '.join(FUNCTIONS)}"
        )
    return function


def _top_k(parameters: dict[str, Any], among: list[int] | None) -> int | None:
    default = DEFAULT_TOP_K if among is None else None
    return check_top_k(parameters.get("top_k")) or default


def _image(entry: Any) -> bytes | RequestError:
    if isinstance(entry, dict):
        entry = check_object(entry, ["image"], "inputs").get("image")
    return from_text(entry, "inputs")
