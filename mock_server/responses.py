"""Errors in the form of the wire format that was spoken."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from mock_server.errors import STATUS, Protocol, RequestError, protocol_of


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
