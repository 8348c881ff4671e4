"""Data models of the responses, which the routes return and `/openapi.json` describes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from mock_server.settings import Output


class Prediction(BaseModel):
    """Labels of one image, best first, with their scores.

    For an embedding, the labels are the indices "0", "1", … and the scores are its numbers.
    """

    labels: list[str]
    scores: list[float]


class ErrorDetail(BaseModel):
    """The reason why an image was not classified."""

    code: str
    message: str


class FailedPrediction(BaseModel):
    """Entry of an image that failed, in the place of its prediction."""

    error: ErrorDetail


class Classification(BaseModel):
    """Response of `POST /v1/classify`: one entry per image, in order."""

    model: str
    output: Output
    predictions: list[Prediction | FailedPrediction]


class RequestErrorDetail(ErrorDetail):
    """The reason why a request failed, and its id for a report."""

    request_id: str


class ErrorAnswer(BaseModel):
    """Response of our own protocol to a request that failed."""

    error: RequestErrorDetail


class Limits(BaseModel):
    """Largest accepted body in bytes, and largest accepted image in pixels."""

    body_bytes: int
    pixels: int


class ModelCard(BaseModel):
    """Response of `GET /v1/model`."""

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
    """Response of `PUT` and `GET /v1/adapters/{name}`; `bytes` counts numbers and class names."""

    name: str
    sha256: str
    classes: list[str]
    task: Literal["classify", "segment"]
    prompts: int
    bytes: int


class Mask(BaseModel):
    """The class of each pixel of the model's input.

    `mask` is an 8-bit gray PNG in base64. Its values are indices into `classes`.
    """

    mask: str


class Segmentation(BaseModel):
    """Response of `POST /v1/segment`: one entry per image, in order."""

    model: str
    classes: list[str]
    predictions: list[Mask | FailedPrediction]


class AdapterList(BaseModel):
    """Response of `GET /v1/adapters`: the tenant's own adapters by name, and the limit."""

    adapters: list[AdapterCard]
    most: int


class LabelScore(BaseModel):
    """One entry of a Hugging Face image-classification response."""

    label: str
    score: float
