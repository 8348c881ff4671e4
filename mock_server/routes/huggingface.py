"""The formats of Hugging Face's Inference Endpoints and serverless API.

Image classification takes raw image bytes with parameters in the query string, or JSON ``{"inputs":
..., "parameters": {...}}``. ``inputs`` is base64 (also a ``data:`` URL, never a path or another
URL), ``{"image": base64}``, or a list of these. The server ignores the model name in the path,
because it hosts one model only.

Zero-shot classification is the same with ``parameters.candidate_labels``.

Image feature extraction is the same under ``/pipeline/feature-extraction``. For one image the
server returns ``[[D numbers]]`` with ``pool``, or else the last hidden state, ``[[[D numbers], ...
N of them]]``.

Like the real servers, a list with one bad image fails as a whole. Deviations: ``--output label``
returns one entry with score 1.0; an unknown parameter is a 400 in every form. The server has no
text encoder: candidate labels must equal class names of the model, the softmax covers only these
classes, and ``hypothesis_template`` has no effect. With ``--output embedding`` every path extracts
pooled features.
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
"""Number of labels that both of Hugging Face's servers return by default."""
PARAMETERS = ("function_to_apply", "top_k")
FUNCTIONS: tuple[Function, ...] = ("softmax", "sigmoid", "none")
ZERO_SHOT = ("candidate_labels", "hypothesis_template")
"""Additional parameters of zero-shot classification, which only the JSON form accepts."""

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
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
_RESPONSE = list[LabelScore] | list[list[LabelScore]]
"""Response for one image, or for a list of images."""
BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/png": _IMAGE, "image/jpeg": _IMAGE, "application/json": _JSON},
    }
}

router = APIRouter(tags=["huggingface"], dependencies=[Depends(require_key)])


# These routes come before those of `classify`, whose ``{model:path}`` matches their paths, too.
@router.post("/pipeline/feature-extraction", openapi_extra=BODY)
@router.post("/models/{model:path}/pipeline/feature-extraction", openapi_extra=BODY)
@router.post("/hf-inference/models/{model:path}/pipeline/feature-extraction", openapi_extra=BODY)
async def extract(request: Request) -> JSONResponse:
    """Return the features of one image, or of a list of images."""
    return JSONResponse(await features(request))


@router.post("/", response_model=_RESPONSE, openapi_extra=BODY)
@router.post("/models/{model:path}", response_model=_RESPONSE, openapi_extra=BODY)
@router.post("/hf-inference/models/{model:path}", response_model=_RESPONSE, openapi_extra=BODY)
async def classify(request: Request) -> JSONResponse:
    """Classify one image, or a list of images; by default, return the top 5 by softmax."""
    return JSONResponse(await answer(request))


async def answer(request: Request) -> list[Any]:
    """Return the labels for a request in this format, or features on a server for embeddings.

    Args:
        request: Request with images and parameters.

    Raises:
        RequestError: The request or one of its images is invalid, or the server is not available.
    """
    service = service_of(request)
    if service.want == "embedding":
        return await features(request)

    images, parameters, single = await _read(request, PARAMETERS, ZERO_SHOT)
    among = places_of(service, parameters.get("candidate_labels"))
    function = _function(service, parameters, among)
    top_k = _top_k(parameters, among)

    answers = []
    for logits in await service.ask_all(images):
        labels, scores = service.rank(logits, function, top_k=top_k, among=among)
        answers.append(
            [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
        )
    return answers[0] if single else answers


async def features(request: Request) -> list[Any]:
    """Return the features for a request in this format.

    Args:
        request: Request with images and parameters.

    Raises:
        RequestError: The request or one of its images is invalid, or the server is not available.
    """
    service = service_of(request)
    images, parameters, single = await _read(request, ["pool"], [])
    pool = parameters.get("pool", service.want == "embedding")
    # JSON has booleans, and the query string has texts.
    if pool not in (True, False, "true", "false"):
        raise RequestError("invalid_request", "pool must be true or false")

    answers = await service.ask_all(images, "embedding" if pool in (True, "true") else "tokens")
    nested = [[service.complete(vector).tolist()] for vector in answers]
    return nested[0] if single else nested


async def _read(
    request: Request, anywhere: Any, json_only: Any
) -> tuple[list[bytes | RequestError], dict[str, Any], bool]:
    """Read the images and parameters of a request.

    Args:
        request: Request to read.
        anywhere: Names of the parameters that the query string and the JSON form accept.
        json_only: Names of the parameters that only the JSON form accepts.

    Returns:
        The images, the parameters, and whether the request holds one image instead of a list.
    """
    parameters = query_of(request, anywhere)
    body = await read_body(request)
    if not is_json(request, body):
        return [body], parameters, True

    content = parse_object(body, ["inputs", "parameters"])
    parameters |= check_object(
        content.get("parameters") or {}, [*anywhere, *json_only], "parameters"
    )

    inputs = content.get("inputs")
    single = not isinstance(inputs, list)
    entries = [inputs] if single else inputs
    if not entries:
        raise RequestError("invalid_request", "inputs must hold at least one image")
    return [_image(entry) for entry in entries], parameters, single


def _function(service: Service, parameters: dict[str, Any], among: list[int] | None) -> Function:
    """Return the function that turns logits into scores for this request."""
    if among is not None:
        if "function_to_apply" in parameters:
            raise RequestError(
                "invalid_request",
                "candidate_labels are compared by softmax; drop function_to_apply",
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
    """Return the largest number of labels; zero-shot classification has no default limit."""
    default = DEFAULT_TOP_K if among is None else None
    return check_top_k(parameters.get("top_k")) or default


def _image(entry: Any) -> bytes | RequestError:
    """Return the bytes of one entry of ``inputs``, or the error of its base64."""
    if isinstance(entry, dict):
        entry = check_object(entry, ["image"], "inputs").get("image")
    return from_text(entry, "inputs")
