"""Reading requests: keys, bodies, JSON and base64, with the limits that a public server needs."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Iterable
from typing import Any, cast

from fastapi import Request
from starlette.requests import ClientDisconnect

from mock_server.errors import RequestError
from mock_server.service import Service


def service_of(request: Request) -> Service:
    """Return the application's service."""
    return cast(Service, request.app.state.service)


def require_key(request: Request) -> None:
    """Refuse a request without the server's key, compared in constant time.

    Raises:
        RequestError: ``unauthorized``.
    """
    key = service_of(request).settings.api_key
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        headers = {"WWW-Authenticate": "Bearer"}
        raise RequestError("unauthorized", "this endpoint wants its API key as a bearer token", headers=headers)


async def read_body(request: Request) -> bytes:
    """Return the whole body, of any content type.

    Raises:
        RequestError: ``payload_too_large`` by the announced or by the real length; ``invalid_request`` if the body is
            empty or the client went away.
    """
    limit = service_of(request).settings.max_body_bytes
    too_large = RequestError("payload_too_large", f"the body is longer than {limit} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise RequestError("invalid_request", "the connection closed before the body was complete") from None
    if not body:
        raise RequestError("invalid_request", "the body is empty: send a picture, or JSON")
    return bytes(body)


def is_json(request: Request, body: bytes) -> bool:
    """Tell JSON from a picture by the content type or, where that says neither, by the first byte."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return True
    return not kind.startswith("image/") and body.lstrip()[:1] in (b"{", b"[")


def parse_object(body: bytes, known: Iterable[str]) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises:
        RequestError: ``invalid_request`` if it is not JSON, not an object, or has other keys than ``known``.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("invalid_request", "the body is not valid JSON") from None
    return check_object(content, known, "the body")


def check_object(content: Any, known: Iterable[str], what: str) -> dict[str, Any]:
    """Return ``content`` if it is an object with no other keys than ``known``.

    Raises:
        RequestError: ``invalid_request``; it names ``what`` and the known keys, never the client's own.
    """
    names = sorted(known)
    if not isinstance(content, dict):
        raise RequestError("invalid_request", f"{what} must be a JSON object")
    if not content.keys() <= set(names):
        raise RequestError("invalid_request", f"{what} has an unknown key or parameter; known: {', '.join(names)}")
    return content


def query_of(request: Request, known: Iterable[str]) -> dict[str, Any]:
    """Return the query string's parameters, whole numbers as int.

    Raises:
        RequestError: ``invalid_request`` for an unknown parameter.
    """
    given = check_object(dict(request.query_params), known, "the query string")
    return {name: int(text) if text.isdecimal() and len(text) < 10 else text for name, text in given.items()}


def check_top_k(value: Any) -> int | None:
    """Return a request's ``top_k``, or None if it has none.

    Raises:
        RequestError: ``invalid_request`` unless it is a whole number from 1.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError("invalid_request", "top_k must be a whole number from 1")
    return value


def from_base64(text: str) -> bytes | RequestError:
    """Return the bytes behind ``text``, or the error that stands in their place."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return RequestError("invalid_image", "the picture is not valid base64")
