"""Our own wire format: `POST /v1/classify`, `POST /v1/segment` and `GET /v1/model`."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from PIL import Image

from mock_server.adapters import Adapter
from mock_server.errors import STATUS, RequestError
from mock_server.routes.adapters import adapter_of
from mock_server.routes.payload import (
    check_top_k,
    from_base64,
    is_json,
    parse_object,
    query_of,
    read_body,
    require_key,
    service_of,
)
from mock_server.schemas import (
    Classification,
    ErrorAnswer,
    ErrorDetail,
    FailedPrediction,
    Limits,
    Mask,
    ModelCard,
    Prediction,
    Segmentation,
)
from mock_server.service import Answer, Service

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_JSON = {
    "schema": {
        "type": "object",
        "required": ["images"],
        "additionalProperties": False,
        "properties": {
            "images": {
                "type": "array",
                "items": {"type": "string", "format": "byte"},
                "minItems": 1,
            },
            "top_k": {"type": "integer", "minimum": 1},
        },
    }
}
_CLASSIFY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": _IMAGE,
            "image/webp": _IMAGE,
            "image/jpeg": _IMAGE,
            "application/json": _JSON,
        },
    },
    "parameters": [
        {"name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1}},
        {"name": "adapter", "in": "query", "schema": {"type": "string"}},
    ],
}
# `/v1/segment` has no parameter top_k.
_SEGMENT = _CLASSIFY | {"parameters": _CLASSIFY["parameters"][1:]}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in STATUS.values()
}

router = APIRouter(
    prefix="/v1", tags=["pgn"], dependencies=[Depends(require_key)], responses=_ERRORS
)


# `response_model` only documents the form: FastAPI does not validate a `JSONResponse` again.
@router.post("/classify", response_model=Classification, openapi_extra=_CLASSIFY)
async def classify(request: Request) -> JSONResponse:
    """Classify one raw image, or several images as base64 in JSON.

    With ``adapter``, the tenant's adapter classifies the images into its own classes. In the JSON
    form, a bad image has an error in its place, and the others are classified.
    """
    service = service_of(request)
    limits = [check_top_k(query_of(request, ["top_k", "adapter"]).get("top_k"))]
    adapter = adapter_of(request)
    body = await read_body(request)

    if not is_json(request, body):
        [answer] = await service.ask([body], service.want, adapter)
        if isinstance(answer, RequestError):
            raise answer
        return _response(service, [answer], limits, adapter)

    content = parse_object(body, ["images", "top_k"])
    limits.append(check_top_k(content.get("top_k")))
    answers = await service.ask(_images(content), service.want, adapter)
    return _response(service, answers, limits, adapter)


@router.post("/segment", response_model=Segmentation, openapi_extra=_SEGMENT)
async def segment(request: Request) -> JSONResponse:
    """Return a mask per image, with the class of each pixel, from the tenant's adapter.

    The images have the same forms as for ``/v1/classify``.
    """
    service = service_of(request)
    # The result is not needed: `adapter_of` reads the parameter, this call rejects all others.
    query_of(request, ["adapter"])
    adapter = adapter_of(request, segments=True)
    if adapter is None:
        raise RequestError(
            "invalid_request",
            "segmenting needs ?adapter=NAME: the model itself does not return masks",
        )

    body = await read_body(request)
    if is_json(request, body):
        answers = await service.ask(_images(parse_object(body, ["images"])), adapter=adapter)
    else:
        answers = list(await service.ask_all([body], adapter=adapter))

    predictions = [_mask(answer) for answer in answers]
    content = Segmentation(
        model=service.model.name, classes=list(adapter.classes), predictions=predictions
    )
    return JSONResponse(content.model_dump())


@router.get("/model")
def describe(request: Request) -> ModelCard:
    """Describe the hosted model: its input, preprocessing, classes and limits."""
    service = service_of(request)
    settings = service.settings
    model = service.model
    preprocessing = service.preprocessing
    return ModelCard(
        name=model.name,
        input_size=preprocessing.input_size,
        patch_size=model.patch_size,
        profile=str(preprocessing.profile),
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        output=settings.output,
        top_k=settings.top_k,
        classes=service.labels,
        weights_sha256=model.weights_sha256,
        patch_embedding_sha256=model.patch_embedding_sha256,
        limits=Limits(body_bytes=settings.max_body_bytes, pixels=settings.max_pixels),
    )


def _mask(answer: Answer | RequestError) -> Mask | FailedPrediction:
    if isinstance(answer, RequestError):
        return FailedPrediction(error=ErrorDetail(code=answer.code, message=answer.message))
    buffer = BytesIO()
    # The mask is already uint8; only the static type `Answer` is float32.
    Image.fromarray(answer.astype(np.uint8)).save(buffer, "PNG")
    return Mask(mask=base64.b64encode(buffer.getvalue()).decode())


def _images(content: dict[str, Any]) -> list[bytes | RequestError]:
    images = content.get("images")
    if (
        not isinstance(images, list)
        or not images
        or not all(isinstance(image, str) for image in images)
    ):
        raise RequestError("invalid_request", "images must be a list of one or more base64 strings")
    return [from_base64(image) for image in images]


def _response(
    service: Service,
    answers: list[Answer | RequestError],
    limits: list[int | None],
    adapter: Adapter | None,
) -> JSONResponse:
    """Return the response of `/v1/classify`; the smallest of ``limits`` is the top-k."""
    top_k = min((limit for limit in limits if limit is not None), default=None)
    if top_k is not None and service.want == "embedding":
        raise RequestError("invalid_request", "an embedding has no top_k")

    predictions = [_prediction(service, answer, top_k, adapter) for answer in answers]
    content = Classification(
        model=service.model.name, output=service.settings.output, predictions=predictions
    )
    return JSONResponse(content.model_dump())


def _prediction(
    service: Service, answer: Answer | RequestError, top_k: int | None, adapter: Adapter | None
) -> Prediction | FailedPrediction:
    if isinstance(answer, RequestError):
        return FailedPrediction(error=ErrorDetail(code=answer.code, message=answer.message))
    if service.want == "embedding":
        return Prediction(labels=service.labels, scores=service.complete(answer).tolist())

    # The same function fits an adapter: the softmax of its log-probabilities is its probabilities.
    classes = None if adapter is None else adapter.classes
    labels, scores = service.rank(answer, service.function, top_k=top_k, classes=classes)
    return Prediction(labels=labels, scores=scores)
