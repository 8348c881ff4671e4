"""KServe's first version and TensorFlow Serving (``/v1/models/...:predict``), and Vertex AI's
envelope of the same.

An instance is one image: base64 by itself, ``{"b64": ...}``, or an object with either under
``image_bytes``, ``image``, ``bytes`` or ``content`` (a ``key`` or ``mimeType`` beside it is not
looked at). TensorFlow Serving's columns (``inputs`` instead of ``instances``) are answered as
``outputs``.

A prediction is the list of all S scores in the model's order, or the D numbers of an embedding;
where the owner keeps scores back it is ``{"labels": [...], "scores": [...]}``. Vertex answers
``{"ids", "displayNames", "confidences"}``, best first, all that reach
``parameters.confidenceThreshold`` (none given: all) up to ``maxPredictions`` (as many as the owner
allows). Deviation from KServe: an image that cannot be read is 400, as in TensorFlow Serving, not
500.
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

VERSION = "1"  # of the one model
LABEL = "stable"  # TensorFlow Serving's name for the version in use
PICTURE_KEYS = {"b64", "image_bytes", "image", "bytes", "content"}
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


@router.get("/models")
def models(request: Request) -> JSONResponse:
    """List the one model, for KServe and for OpenAI's clients."""
    card = _card(service_of(request))
    return JSONResponse({"object": "list", "data": [card], "models": [card["id"]]})


@router.get("/models/{model}")
def model(request: Request) -> JSONResponse:
    """Say that the model is there, for KServe, TensorFlow Serving and OpenAI's clients."""
    check_model(request)
    service = service_of(request)
    service.require_ready()
    fine = {"error_code": "OK", "error_message": ""}
    version = {"version": VERSION, "state": "AVAILABLE", "status": fine}
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
    """Answer rows of images with rows of scores, or a column with a column."""
    check_model(request)
    if (
        request.path_params.get("version", VERSION) != VERSION
        or request.path_params.get("label", LABEL) != LABEL
    ):
        raise RequestError(
            "not_found", f"no such version of the model; there is {VERSION}, labelled {LABEL}"
        )
    service = service_of(request)
    content = parse_object(await read_body(request), ["instances", "inputs", "signature_name"])
    if ("instances" in content) == ("inputs" in content):
        raise RequestError("invalid_request", "the body needs either instances or inputs")
    rows = "instances" in content
    images = _images(content["instances"] if rows else _column(content["inputs"]))
    predictions = [
        _prediction(service, answer) for answer in await service.ask_all(images, service.want)
    ]
    return JSONResponse({"predictions" if rows else "outputs": predictions})


@router.get("/projects/{project}/locations/{location}/endpoints/{endpoint}", tags=["vertex"])
def endpoint(request: Request) -> JSONResponse:
    """Describe the Vertex endpoint: the SDK asks before it predicts."""
    return JSONResponse({"name": _resource(request), "displayName": service_of(request).model.name})


@router.post(
    "/projects/{project}/locations/{location}/endpoints/{endpoint}:predict",
    tags=["vertex"],
    openapi_extra=_BODY,
    dependencies=[Depends(require_key)],
)
async def vertex(request: Request) -> JSONResponse:
    """Answer as a Vertex AI endpoint of an image classification model."""
    service = service_of(request)
    content = parse_object(await read_body(request), ["instances", "parameters"])
    most, least = _limits(content.get("parameters") or {})
    images = _images(content.get("instances"))
    answers = await service.ask_all(images, service.want)
    name = service.model.name
    return JSONResponse(
        {
            "predictions": [_confidences(service, answer, most, least) for answer in answers],
            "deployedModelId": "1",
            "model": _resource(request).partition("/endpoints/")[0] + f"/models/{name}",
            "modelDisplayName": name,
            "modelVersionId": VERSION,
        }
    )


def _card(service: Service) -> dict[str, Any]:
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
    if isinstance(instance, dict):
        check_object(instance, PICTURE_KEYS | IGNORED_KEYS, "an instance")
        found = [instance[key] for key in instance.keys() & PICTURE_KEYS]
        if len(found) != 1:
            raise RequestError("invalid_request", "an instance must hold one image")
        instance = found[0]
        if isinstance(instance, dict):
            instance = check_object(instance, ["b64"], "an image").get("b64")
    return from_text(instance, "pictures")


def _column(inputs: Any) -> Any:
    """Return the images of the column form: the list, or the one list in an object of named
    inputs.
    """
    if isinstance(inputs, dict) and "b64" not in inputs:
        check_object(inputs, PICTURE_KEYS, "inputs")
        [inputs] = inputs.values() if len(inputs) == 1 else [None]
    return inputs


def _prediction(service: Service, answer: Answer) -> Any:
    if service.want == "embedding":
        return service.complete(answer).tolist()
    if service.limited:
        labels, scores = service.rank(answer, service.function)
        return {"labels": labels, "scores": scores}
    return service.complete(answer, service.function).tolist()


def _limits(parameters: Any) -> tuple[int | None, float | None]:
    """Return how many labels at most, and with which score at least; the clients send whole numbers
    as floats.
    """
    known = ["maxPredictions", "confidenceThreshold"]
    check_object(parameters, known, "parameters")
    most, least = (parameters.get(name) for name in known)
    for number in (most, least):
        if number is not None and (not isinstance(number, int | float) or isinstance(number, bool)):
            raise RequestError("invalid_request", "parameters must be numbers")
    if most is not None and (most < 1 or most % 1 != 0):
        raise RequestError("invalid_request", "maxPredictions must be a whole number from 1")
    return None if most is None else int(most), least


def _confidences(service: Service, answer: Answer, most: int | None, least: float | None) -> Any:
    if service.want == "embedding":
        return service.complete(answer).tolist()
    labels, scores = service.rank(answer, service.function, top_k=most)
    kept = sum(least is None or score >= least for score in scores)  # the best come first
    places = {label: str(place) for place, label in enumerate(service.model.classes)}
    return {
        "ids": [places[label] for label in labels[:kept]],
        "displayNames": labels[:kept],
        "confidences": scores[:kept],
    }
