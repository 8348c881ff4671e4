"""The answers, as data models: what `/openapi.json` describes and the routes return."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from mock_server.settings import Output


class Prediction(BaseModel):
    """Labels of one image, best first, with their scores; of an embedding its places, in order,
    with its numbers.
    """

    labels: list[str]
    scores: list[float]


class ErrorDetail(BaseModel):
    """Why an image was not classified."""

    code: str
    message: str


class FailedPrediction(BaseModel):
    """What stands in the place of an image that failed."""

    error: ErrorDetail


class Classification(BaseModel):
    """Answer of `POST /v1/classify`: one entry per image, in order."""

    model: str
    output: Output
    predictions: list[Prediction | FailedPrediction]


class RequestErrorDetail(ErrorDetail):
    """Why a request failed, and the id to quote."""

    request_id: str


class ErrorAnswer(BaseModel):
    """Our protocol's answer to a request that failed."""

    error: RequestErrorDetail


class Limits(BaseModel):
    """The largest body in bytes and image in pixels that are accepted."""

    body_bytes: int
    pixels: int


class ModelCard(BaseModel):
    """Answer of `GET /v1/model`."""

    name: str
    input_size: int
    patch_size: int | None
    profile: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    output: Output
    top_k: int | None
    classes: list[str]
    weights_sha256: str
    patch_embedding_sha256: str | None
    limits: Limits


class AdapterCard(BaseModel):
    """What is known of an adapter: answer of `PUT` and `GET /v1/adapters/{name}`; sizes in
    bytes.
    """

    name: str
    sha256: str
    classes: list[str]
    task: Literal["classify", "segment"]
    prompts: int
    bytes: int


class Mask(BaseModel):
    """The class of each pixel that the model sees: a PNG of 8-bit grey, base64; its values are
    places in `classes`.
    """

    mask: str


class Segmentation(BaseModel):
    """Answer of `POST /v1/segment`: one entry per image, in order."""

    model: str
    classes: list[str]
    predictions: list[Mask | FailedPrediction]


class AdapterList(BaseModel):
    """Answer of `GET /v1/adapters`: the tenant's own, by name."""

    adapters: list[AdapterCard]
    most: int


class LabelScore(BaseModel):
    """One entry of a Hugging Face image-classification answer."""

    label: str
    score: float
