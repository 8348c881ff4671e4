"""What can go wrong, and how each wire format says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from starlette.responses import JSONResponse
from starlette.types import Scope

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
Protocol = Literal["pgn", "huggingface"]

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


class ConfigurationError(ValueError):
    """The server cannot start as it was asked to; the message is one line for the user."""


class RequestError(Exception):
    """A request, or one picture of it, that cannot be answered.

    Args:
        code: One of our protocol's error codes; it decides the status (`STATUS`).
        message: One sentence that never repeats what the client sent.
        headers: Further response headers, for instance ``Retry-After``.
        estimated_time: Seconds until a loading model is ready; shown by the Hugging Face format only.
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
    hugging_face = path == "/" or path.startswith(("/models/", "/hf-inference/"))
    return "huggingface" if hugging_face else "pgn"


def code_of(status: int) -> Code:
    """Return the error code that stands for an HTTP status, the nearest one if there is none of its own."""
    exact: dict[int, Code] = {number: code for code, number in STATUS.items()}
    return exact.get(status, "invalid_request" if status < 500 else "internal")


def error_response(scope: Scope, error: RequestError, status: int | None = None) -> JSONResponse:
    """Return ``error`` in the form of the protocol that ``scope``'s path belongs to.

    The Hugging Face format knows no 422: its servers answer 400 for a picture that cannot be read.
    """
    protocol = protocol_of(scope["path"])
    if status is None:
        status = STATUS[error.code]
        if protocol == "huggingface" and status == 422:
            status = 400
    return JSONResponse(_body(protocol, scope, error), status, error.headers)


def _body(protocol: Protocol, scope: Scope, error: RequestError) -> dict[str, Any]:
    if protocol == "pgn":
        request_id = scope.get("state", {}).get("request_id", "")
        return {"error": {"code": error.code, "message": error.message, "request_id": request_id}}
    waiting = {} if error.estimated_time is None else {"estimated_time": error.estimated_time}
    return {"error": error.message, **waiting}
