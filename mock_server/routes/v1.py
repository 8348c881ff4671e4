"""KServe v1 and TensorFlow Serving (``/v1/models/...:predict``), and Vertex AI's similar format.

An instance is one image: a base64 string, ``{"b64": ...}``, or an object with either of them under
``image_bytes``, ``image``, ``bytes`` or ``content`` (``key`` and ``mimeType`` are ignored). For
TensorFlow Serving's columns (``inputs`` instead of ``instances``) the server returns ``outputs``.

A prediction is the list of all S scores in the model's order, or the D numbers of an embedding. If
the owner's settings hide a part of the scores, it is ``{"labels": [...], "scores": [...]}``.

Vertex predictions are ``{"ids", "displayNames", "confidences"}``, best first. They contain the
labels that reach ``parameters.confidenceThreshold`` (default: all), at most ``maxPredictions``
(default: as many as the owner's settings allow).

Deviation from KServe: for an unreadable image the server returns 400, like TensorFlow Serving, and
not 500.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from mock_server.errors import RequestError
from mock_server.routes.payload import (
    check_model,
    check_object,
    from_text,
    parse_object,
    read_body,
    require_key,
    service_of,
)
from mock_server.service import Answer, Service

VERSION = "1"
"""Version of the hosted model."""
LABEL = "stable"
"""TensorFlow Serving's name for the version in use."""
PICTURE_KEYS = {"b64", "image_bytes", "image", "bytes", "content"}
"""Keys that hold the image of an instance."""
IGNORED_KEYS = {"key", "mimeType"}

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"instances": {"type": "array"}}}
            }
        },
    }
}

router = APIRouter(prefix="/v1", tags=["v1"])


# These two need no key, because KServe's client uses them to ask whether the model is ready. They
# reveal only its name.
@router.get("/models")
def models(request: Request) -> JSONResponse:
    """List the hosted model, in the forms of KServe and OpenAI."""
    card = _card(service_of(request))
    return JSONResponse({"object": "list", "data": [card], "models": [card["id"]]})


@router.get("/models/{model}")
def model(request: Request) -> JSONResponse:
    """Return the model's status, in the forms of KServe, TensorFlow Serving and OpenAI."""
    check_model(request)
    service = service_of(request)
    service.require_ready()

    status = {"error_code": "OK", "error_message": ""}
    version = {"version": VERSION, "state": "AVAILABLE", "status": status}
    name = service.model.name
    return JSONResponse(
        {"name": name, "ready": True, "model_version_status": [version], **_card(service)}
    )


@router.post("/models/{model}:predict", openapi_extra=_BODY, dependencies=[Depends(require_key)])
@router.post(
    "/models/{model}/versions/{version}:predict",
    openapi_extra=_BODY,
    dependencies=[Depends(require_key)],
)
@router.post(
    "/models/{model}/labels/{label}:predict",
    openapi_extra=_BODY,
    dependencies=[Depends(require_key)],
)
async def predict(request: Request) -> JSONResponse:
    """Return one prediction per image, as ``predictions`` or, for columns, as ``outputs``."""
    check_model(request)
    version = request.path_params.get("version", VERSION)
    label = request.path_params.get("label", LABEL)
    if version != VERSION or label != LABEL:
        raise RequestError(
            "not_found",
            f"no such version of the model; it has version {VERSION} with the label {LABEL}",
        )

    service = service_of(request)
    content = parse_object(await read_body(request), ["instances", "inputs", "signature_name"])
    # Equal means that the body has both, or neither.
    if ("instances" in content) == ("inputs" in content):
        raise RequestError("invalid_request", "the body needs either instances or inputs")
    rows = "instances" in content
    images = _images(content["instances"] if rows else _column(content["inputs"]))

    answers = await service.ask_all(images, service.want)
    predictions = [_prediction(service, answer) for answer in answers]
    return JSONResponse({"predictions" if rows else "outputs": predictions})


@router.get("/projects/{project}/locations/{location}/endpoints/{endpoint}", tags=["vertex"])
def endpoint(request: Request) -> JSONResponse:
    """Describe the Vertex endpoint; Vertex's SDK sends this request before it predicts."""
    return JSONResponse({"name": _resource(request), "displayName": service_of(request).model.name})


@router.post(
    "/projects/{project}/locations/{location}/endpoints/{endpoint}:predict",
    tags=["vertex"],
    openapi_extra=_BODY,
    dependencies=[Depends(require_key)],
)
async def vertex(request: Request) -> JSONResponse:
    """Classify images in the form of a Vertex AI endpoint for image classification."""
    service = service_of(request)
    content = parse_object(await read_body(request), ["instances", "parameters"])
    most, threshold = _limits(content.get("parameters") or {})
    images = _images(content.get("instances"))

    answers = await service.ask_all(images, service.want)
    predictions = [_confidences(service, answer, most, threshold) for answer in answers]
    name = service.model.name
    return JSONResponse(
        {
            "predictions": predictions,
            "deployedModelId": "1",
            "model": _resource(request).partition("/endpoints/")[0] + f"/models/{name}",
            "modelDisplayName": name,
            "modelVersionId": VERSION,
        }
    )


def _card(service: Service) -> dict[str, Any]:
    # OpenAI's form has a time of creation, which the hosted model has not: 0.
    return {"id": service.model.name, "object": "model", "created": 0, "owned_by": "mock_server"}


def _resource(request: Request) -> str:
    return "projects/{project}/locations/{location}/endpoints/{endpoint}".format(
        **request.path_params
    )


def _images(instances: Any) -> list[bytes | RequestError]:
    if not isinstance(instances, list) or not instances:
        raise RequestError(
            "invalid_request", 'Expected "instances" to be a list of one or more images'
        )
    return [_image(instance) for instance in instances]


def _image(instance: Any) -> bytes | RequestError:
    """Return the bytes of an instance's image, or the error of its base64."""
    if isinstance(instance, dict):
        check_object(instance, PICTURE_KEYS | IGNORED_KEYS, "an instance")
        images = [instance[key] for key in instance.keys() & PICTURE_KEYS]
        if len(images) != 1:
            raise RequestError("invalid_request", "an instance must hold one image")
        instance = images[0]
        if isinstance(instance, dict):
            instance = check_object(instance, ["b64"], "an image").get("b64")
    return from_text(instance, "images")


def _column(inputs: Any) -> Any:
    """Return the images of the column form.

    Args:
        inputs: List of images, or object with this list under one name.
    """
    if isinstance(inputs, dict) and "b64" not in inputs:
        check_object(inputs, PICTURE_KEYS, "inputs")
        if len(inputs) != 1:
            # None is not a list, so the caller rejects it with its own message.
            return None
        return next(iter(inputs.values()))
    return inputs


def _prediction(service: Service, answer: Answer) -> Any:
    if service.want == "embedding":
        return service.complete(answer).tolist()
    if service.limited:
        labels, scores = service.rank(answer, service.function)
        return {"labels": labels, "scores": scores}
    return service.complete(answer, service.function).tolist()


def _limits(parameters: Any) -> tuple[int | None, float | None]:
    """Return the largest number of labels and the smallest score; None is no limit."""
    check_object(parameters, ["maxPredictions", "confidenceThreshold"], "parameters")
    most = parameters.get("maxPredictions")
    threshold = parameters.get("confidenceThreshold")
    for number in (most, threshold):
        if number is not None and (not isinstance(number, int | float) or isinstance(number, bool)):
            raise RequestError("invalid_request", "parameters must be numbers")

    # Vertex's clients send whole numbers as floats. Infinity % 1 is NaN, so this rejects it, too.
    if most is not None and (most < 1 or most % 1 != 0):
        raise RequestError("invalid_request", "maxPredictions must be a whole number from 1")
    return None if most is None else int(most), threshold


def _confidences(
    service: Service, answer: Answer, most: int | None, threshold: float | None
) -> Any:
    """Return the Vertex prediction of one image."""
    if service.want == "embedding":
        return service.complete(answer).tolist()

    labels, scores = service.rank(answer, service.function, top_k=most)
    # The scores are sorted, so the labels that reach the threshold come first.
    count = sum(threshold is None or score >= threshold for score in scores)
    ids = {label: str(index) for index, label in enumerate(service.model.classes)}
    return {
        "ids": [ids[label] for label in labels[:count]],
        "displayNames": labels[:count],
        "confidences": scores[:count],
    }
