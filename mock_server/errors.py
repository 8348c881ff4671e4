"""Error types and error codes; `mock_server.responses` renders them for each wire format."""

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
# TorchServe accepts PUT for inference; an adapter upload is a PUT, too.
INFERENCE_METHODS = ("POST", "PUT")

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

# The first matching prefix decides. `protocol_of` handles "/" by itself; every other path uses our
# own protocol.
_PREFIXES: tuple[tuple[str, Protocol], ...] = (
    ("/models/", "huggingface"),
    ("/hf-inference/", "huggingface"),
    ("/pipeline/", "huggingface"),
    # Without a slash at the end, because `/v2` itself describes the server.
    ("/v2", "oip"),
    ("/v1/models", "v1"),
    ("/v1/projects/", "vertex"),
    ("/invocations", "sagemaker"),
    ("/endpoints/", "sagemaker_runtime"),
    ("/predictions/", "torchserve"),
    ("/ping", "torchserve"),
    ("/v1/chat/", "openai"),
    ("/v1/embeddings", "openai"),
    # No route serves this path, but the 404 must have a form that OpenAI's clients can read.
    ("/v1/responses", "openai"),
    ("/embeddings", "openai"),
)


class ConfigurationError(ValueError):
    """The server cannot start with these settings; the message is one line for the user."""


class RequestError(Exception):
    """The server cannot process a request, or one image of it.

    Args:
        code: Error code of our own protocol; it decides the HTTP status (`STATUS`).
        message: One sentence that never repeats data from the client.
        headers: Additional response headers, for instance ``Retry-After``.
        estimated_time: Seconds until a loading model is ready; only the Hugging Face format returns
            it.
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
    """Return the protocol whose error form applies to ``path``; unknown paths use our own."""
    if path == "/":
        return "huggingface"
    for prefix, protocol in _PREFIXES:
        if path.startswith(prefix):
            return protocol
    return "pgn"


def code_of(status: int) -> Code:
    """Return the error code for an HTTP status, or the nearest code if the status has none."""
    exact: dict[int, Code] = {number: code for code, number in STATUS.items()}
    return exact.get(status, "invalid_request" if status < 500 else "internal")
