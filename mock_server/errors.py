"""What can go wrong; `mock_server.responses` says it in each wire format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Code = Literal[
    "invalid_image",
    "invalid_request",
    "unauthorized",
    "not_found",
    "method_not_allowed",
    "payload_too_large",
    "rate_limited",
    "internal",
    "overloaded",
]
Protocol = Literal[
    "pgn",
    "huggingface",
    "oip",
    "v1",
    "vertex",
    "sagemaker",
    "sagemaker_runtime",
    "torchserve",
    "openai",
]
INFERENCE_METHODS = ("POST", "PUT")  # PUT is TorchServe's alone

STATUS: dict[Code, int] = {
    "invalid_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "payload_too_large": 413,
    "invalid_image": 422,
    "rate_limited": 429,
    "internal": 500,
    "overloaded": 503,
}


# The first that a path begins with decides; "/" is Hugging Face's by itself, and everything else
# speaks our own.
_BEGINNINGS: tuple[tuple[str, Protocol], ...] = (
    ("/models/", "huggingface"),
    ("/hf-inference/", "huggingface"),
    ("/pipeline/", "huggingface"),
    ("/v2", "oip"),
    ("/v1/models", "v1"),
    ("/v1/projects/", "vertex"),
    ("/invocations", "sagemaker"),
    ("/endpoints/", "sagemaker_runtime"),
    ("/predictions/", "torchserve"),
    ("/ping", "torchserve"),
    ("/v1/chat/", "openai"),
    ("/v1/embeddings", "openai"),
    ("/v1/responses", "openai"),
    ("/embeddings", "openai"),
)


class ConfigurationError(ValueError):
    """The server cannot start as it was asked to; the message is one line for the user."""


class RequestError(Exception):
    """A request, or one image of it, that cannot be answered.

    Args:
        code: One of our protocol's error codes; it decides the status (`STATUS`).
        message: One sentence that never repeats what the client sent.
        headers: Further response headers, for instance ``Retry-After``.
        estimated_time: Seconds until a loading model is ready; shown by the Hugging Face format
            only.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        estimated_time: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.headers = dict(headers or {})
        self.estimated_time = estimated_time


def protocol_of(path: str) -> Protocol:
    """Return the wire format whose error form answers ``path``; unknown paths speak our own."""
    if path == "/":
        return "huggingface"
    return next(
        (protocol for beginning, protocol in _BEGINNINGS if path.startswith(beginning)), "pgn"
    )


def code_of(status: int) -> Code:
    """Return the error code that stands for an HTTP status, the nearest one if there is none of its
    own.
    """
    exact: dict[int, Code] = {number: code for code, number in STATUS.items()}
    return exact.get(status, "invalid_request" if status < 500 else "internal")
