"""The Hugging Face image-classification format, as Inference Endpoints and the serverless API speak it.

Raw picture bytes with parameters in the query string, or JSON ``{"inputs": ..., "parameters": {...}}``, where inputs
is base64 (also a ``data:`` URL, never a path or another URL), ``{"image": base64}``, or a list of these. One model is
hosted, so the name in the path is not looked at.

Deviations from the real servers: `--output label` answers one entry with score 1.0; a list in which one picture is bad
is refused as a whole, as there; and an unknown parameter is a 400 on every form.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from mock_server.errors import RequestError
from mock_server.routes.payload import (
    check_object,
    check_top_k,
    from_base64,
    is_json,
    parse_object,
    query_of,
    read_body,
    require_key,
    service_of,
)
from mock_server.schemas import LabelScore
from mock_server.service import FUNCTIONS, Function, Service

DEFAULT_TOP_K = 5
PARAMETERS = ("function_to_apply", "top_k")

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_PARAMETERS_SCHEMA = {
    "type": "object",
    "properties": {
        "top_k": {"type": "integer", "minimum": 1},
        "function_to_apply": {"type": "string", "enum": list(FUNCTIONS)},
    },
}
_JSON = {
    "schema": {"type": "object", "required": ["inputs"], "properties": {"inputs": {}, "parameters": _PARAMETERS_SCHEMA}}
}
_ANSWER = list[LabelScore] | list[list[LabelScore]]  # of one picture, or of a list of them
_BODY = {"required": True, "content": {"image/png": _PICTURE, "image/jpeg": _PICTURE, "application/json": _JSON}}

router = APIRouter(tags=["huggingface"], dependencies=[Depends(require_key)])


@router.post("/", response_model=_ANSWER, openapi_extra={"requestBody": _BODY})
@router.post("/models/{model:path}", response_model=_ANSWER, openapi_extra={"requestBody": _BODY})
@router.post("/hf-inference/models/{model:path}", response_model=_ANSWER, openapi_extra={"requestBody": _BODY})
async def classify(request: Request) -> JSONResponse:
    """Classify one picture, or a list of them: the top 5 by softmax unless the parameters say otherwise."""
    service = service_of(request)
    parameters = query_of(request, PARAMETERS)
    body = await read_body(request)
    if not is_json(request, body):
        [answer] = await _answers(service, [body], parameters)
        return JSONResponse(answer)
    content = parse_object(body, ["inputs", "parameters"])
    parameters |= check_object(content.get("parameters") or {}, PARAMETERS, "parameters")
    inputs = content.get("inputs")
    batch = inputs if isinstance(inputs, list) else [inputs]
    if not batch:
        raise RequestError("invalid_request", "inputs must hold at least one picture")
    answers = await _answers(service, [_picture(entry) for entry in batch], parameters)
    return JSONResponse(answers if isinstance(inputs, list) else answers[0])


async def _answers(
    service: Service, pictures: list[bytes | RequestError], parameters: dict[str, Any]
) -> list[list[dict[str, Any]]]:
    function, top_k = _function(service, parameters), check_top_k(parameters.get("top_k")) or DEFAULT_TOP_K
    answers = []
    for logits in await service.logits(pictures):
        if isinstance(logits, RequestError):
            raise logits
        ranked = zip(*service.rank(logits, function, top_k=top_k), strict=True)
        answers.append([{"label": label, "score": score} for label, score in ranked])
    return answers


def _function(service: Service, parameters: dict[str, Any]) -> Function:
    default = "none" if service.settings.output == "logits" else "softmax"
    function = parameters.get("function_to_apply") or default
    if function not in FUNCTIONS:
        raise RequestError("invalid_request", f"function_to_apply must be one of {', '.join(FUNCTIONS)}")
    return function


def _picture(entry: Any) -> bytes | RequestError:
    if isinstance(entry, dict):
        entry = check_object(entry, ["image"], "inputs").get("image")
    if not isinstance(entry, str):
        raise RequestError("invalid_request", "inputs must be base64 strings")
    if entry.startswith("data:"):
        entry = entry.partition(";base64,")[2]
    return from_base64(entry)
