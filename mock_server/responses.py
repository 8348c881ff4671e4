"""Error responses in the form of each wire format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from mock_server.errors import STATUS, Code, Protocol, RequestError, protocol_of

# Google's JSON errors contain the name of the gRPC code that matches the HTTP status.
_VERTEX: dict[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TORCHSERVE: dict[Code, str] = {
    "unauthorized": "InvalidKeyException",
    "not_found": "ModelNotFoundException",
    "method_not_allowed": "MethodNotAllowedException",
    "payload_too_large": "RequestEntityTooLargeException",
    "rate_limited": "TooManyRequestsException",
    "overloaded": "ServiceUnavailableException",
}
# The runtime raises these errors itself. All others come from the container, which it wraps.
_SAGEMAKER: dict[Code, str] = {
    "unauthorized": "AccessDeniedException",
    "not_found": "ValidationError",
    "method_not_allowed": "ValidationError",
    "payload_too_large": "ValidationError",
    "rate_limited": "ThrottlingException",
    "overloaded": "ServiceUnavailable",
}
_OPENAI: dict[Code, tuple[str, str | None]] = {
    "invalid_image": ("invalid_request_error", "invalid_image"),
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "not_found": ("invalid_request_error", "model_not_found"),
    # For rate limits OpenAI's type names what ran out: requests or tokens.
    "rate_limited": ("requests", "rate_limit_exceeded"),
    "internal": ("server_error", None),
    "overloaded": ("server_error", "overloaded"),
}


@dataclass(frozen=True)
class _Form:
    """Form of one protocol's error responses.

    Attributes:
        body: Function of scope, error and status that returns the JSON body.
        statuses: HTTP statuses that differ from `STATUS`.
        headers: Function of the error that returns additional response headers.
    """

    body: Callable[[Scope, RequestError, int], dict[str, Any]]
    statuses: Mapping[Code, int] = field(default_factory=dict)
    headers: Callable[[RequestError], dict[str, str]] = lambda error: {}


def error_response(scope: Scope, error: RequestError, status: int | None = None) -> JSONResponse:
    """Return ``error`` in the form of the protocol that the path of ``scope`` belongs to.

    Only our own protocol returns 422. The real servers of the other protocols return 400 for an
    unreadable image. TorchServe returns 503 for it, as for every other failure of its handler.

    Args:
        scope: ASGI scope of the request.
        error: The error to render.
        status: HTTP status to use; None takes the protocol's status for the error code.
    """
    form = _FORMS[protocol_of(scope["path"])]
    if status is None:
        status = form.statuses.get(error.code, STATUS[error.code])
    return JSONResponse(
        form.body(scope, error, status), status, error.headers | form.headers(error)
    )


def _pgn(scope: Scope, error: RequestError, status: int) -> dict[str, Any]:
    # The id is missing if no `ObserveMiddleware` is around the application.
    request_id = scope.get("state", {}).get("request_id", "")
    return {"error": {"code": error.code, "message": error.message, "request_id": request_id}}


def _text(scope: Scope, error: RequestError, status: int) -> dict[str, Any]:
    return {"error": error.message}


def _huggingface(scope: Scope, error: RequestError, status: int) -> dict[str, Any]:
    body: dict[str, Any] = {"error": error.message}
    if error.estimated_time is not None:
        body["estimated_time"] = error.estimated_time
    return body


def _vertex(scope: Scope, error: RequestError, status: int) -> dict[str, Any]:
    name = _VERTEX.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    return {"error": {"code": status, "message": error.message, "status": name}}


def _torchserve(scope: Scope, error: RequestError, status: int) -> dict[str, Any]:
    kind = _TORCHSERVE.get(error.code, "InternalServerException")
    # TorchServe hides why a handler failed.
    message = error.message if error.code in _TORCHSERVE else "Prediction failed"
    return {"code": status, "type": kind, "message": message}


def _sagemaker_runtime(scope: Scope, error: RequestError, status: int) -> dict[str, Any]:
    """Return the runtime's own error, or the container's error wrapped by the runtime."""
    if error.code in _SAGEMAKER:
        return {"message": error.message}

    original = 500 if error.code == "internal" else 400
    side = "server" if original == 500 else "client"
    content = json.dumps({"error": error.message})
    return {
        "ErrorCode": f"{side.upper()}_ERROR_FROM_MODEL",
        "LogStreamArn": "",
        "Message": f'Received {side} error ({original}) from primary with message "{content}".',
        "OriginalMessage": content,
        "OriginalStatusCode": original,
    }


def _sagemaker_headers(error: RequestError) -> dict[str, str]:
    # boto3 reads the error's code from this header, because the body does not contain it.
    return {"x-amzn-errortype": _SAGEMAKER.get(error.code, "ModelError")}


def _openai(scope: Scope, error: RequestError, status: int) -> dict[str, Any]:
    kind, code = _OPENAI.get(error.code, ("invalid_request_error", None))
    return {"error": {"message": error.message, "type": kind, "param": None, "code": code}}


_BAD_IMAGE: dict[Code, int] = {"invalid_image": 400}
_SAGEMAKER_STATUSES: dict[Code, int] = {
    # The runtime wraps the container's errors in its own status 424.
    "invalid_image": 424,
    "invalid_request": 424,
    "internal": 424,
    # The runtime's own errors. AWS returns 400 for an unknown endpoint, and also for throttling.
    "unauthorized": 403,
    "not_found": 400,
    "rate_limited": 400,
}
_TORCHSERVE_STATUSES: dict[Code, int] = {
    "invalid_image": 503,
    "invalid_request": 503,
    "internal": 503,
}

_FORMS: dict[Protocol, _Form] = {
    "pgn": _Form(_pgn),
    "huggingface": _Form(_huggingface, _BAD_IMAGE),
    "oip": _Form(_text, _BAD_IMAGE),
    "v1": _Form(_text, _BAD_IMAGE),
    "vertex": _Form(_vertex, _BAD_IMAGE),
    "sagemaker": _Form(_huggingface, _BAD_IMAGE),
    "sagemaker_runtime": _Form(_sagemaker_runtime, _SAGEMAKER_STATUSES, _sagemaker_headers),
    "torchserve": _Form(_torchserve, _TORCHSERVE_STATUSES),
    "openai": _Form(_openai, _BAD_IMAGE),
}
