"""Reading requests: keys, bodies, JSON and base64, with the limits that a public server needs."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import zlib
from collections.abc import Iterable
from typing import Any, cast

from fastapi import Request
from starlette.requests import ClientDisconnect

from mock_server.errors import RequestError
from mock_server.service import Service

OWNER = ""


def service_of(request: Request) -> Service:
    """Return the application's service."""
    return cast(Service, request.app.state.service)


def require_key(request: Request) -> None:
    """Refuse a request without a key of the server's as a bearer token or in ``X-API-Key``.

    Raises:
        RequestError: ``unauthorized``.
    """
    tenant_of(request)


def tenant_of(request: Request) -> str:
    """Return who asks: the tenant whose key the request has, or ``OWNER`` with the server's own, or
    where none is set.

    All keys are compared, each in constant time, so that the time tells nothing of them.

    Raises:
        RequestError: ``unauthorized``.
    """
    settings = service_of(request).settings
    keys = dict(settings.tenants) | ({} if settings.api_key is None else {OWNER: settings.api_key})
    if not keys:
        return OWNER
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    given = [
        token.strip() if scheme.lower() == "bearer" else "",
        request.headers.get("x-api-key", ""),
    ]
    same = [
        name
        for name, key in keys.items()
        for one in given
        if hmac.compare_digest(one.encode(), key.encode())
    ]
    if not same:
        message = "this endpoint wants its API key as a bearer token or in X-API-Key"
        raise RequestError("unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
    return same[0]


async def read_body(request: Request, limit: int | None = None) -> bytes:
    """Return the whole body, of any content type, unpacked where it came as gzip or deflate.

    Args:
        request: To read.
        limit: Its most bytes; None is the server's own limit.

    Raises:
        RequestError: ``payload_too_large`` by the announced, the real or the unpacked length;
            ``invalid_request`` if the body is empty, packed in a way that is not known, or the
            client went away.
    """
    limit = service_of(request).settings.max_body_bytes if limit is None else limit
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
        raise RequestError(
            "invalid_request", "the connection closed before the body was complete"
        ) from None
    if not body:
        raise RequestError(
            "invalid_request", "the body is empty: send an image, JSON, or an adapter's file"
        )
    return _unpacked(
        bytes(body), request.headers.get("content-encoding", "identity").strip().lower(), limit
    )


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """Return ``body`` without its content encoding; never holds more than ``limit`` + 1 bytes of a
    bomb.
    """
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "deflate"):
        raise RequestError("invalid_request", "the content encoding must be gzip, deflate or none")
    unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)  # finds out by itself which of the two it is
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(
            "invalid_request", "the body is not what its content encoding says"
        ) from None
    if len(unpacked) > limit:
        raise RequestError("payload_too_large", f"the unpacked body is longer than {limit} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(
            "invalid_request", "the packed body is cut short or has something behind its end"
        )
    return unpacked


def is_json(request: Request, body: bytes) -> bool:
    """Tell JSON from an image by the content type or, where that says neither, by the first
    byte.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return True
    return not kind.startswith("image/") and body.lstrip()[:1] in (b"{", b"[")


def parse_object(body: bytes, known: Iterable[str] | None) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises:
        RequestError: ``invalid_request`` if it is not JSON (which has no NaN), not an object, or
            has other keys than ``known`` (None: any).
    """
    try:
        content = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise RequestError("invalid_request", "the body is not valid JSON") from None
    return check_object(content, known, "the body")


def _no_number(text: str) -> None:
    raise ValueError(text)


def check_object(content: Any, known: Iterable[str] | None, what: str) -> dict[str, Any]:
    """Return ``content`` if it is an object with no other keys than ``known`` (None: any).

    Raises:
        RequestError: ``invalid_request``; it names ``what`` and the known keys, never the client's
            own.
    """
    if not isinstance(content, dict):
        raise RequestError("invalid_request", f"{what} must be a JSON object")
    names = sorted(content if known is None else known)
    if not content.keys() <= set(names):
        raise RequestError(
            "invalid_request", f"{what} has an unknown key or parameter; known: {', '.join(names)}"
        )
    return content


def query_of(request: Request, known: Iterable[str]) -> dict[str, Any]:
    """Return the query string's parameters, whole numbers as int.

    Raises:
        RequestError: ``invalid_request`` for an unknown parameter.
    """
    given = check_object(dict(request.query_params), known, "the query string")
    return {
        name: int(text) if text.isdecimal() and len(text) < 10 else text
        for name, text in given.items()
    }


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
        return RequestError("invalid_image", "the image is not valid base64")


def from_text(text: Any, what: str) -> bytes | RequestError:
    """Return the bytes behind base64, or behind a ``data:`` URL of it; nothing is ever fetched or
    opened.

    Raises:
        RequestError: ``invalid_request`` if ``text`` is no text; ``what`` says where.
    """
    if not isinstance(text, str):
        raise RequestError("invalid_request", f"{what} must be base64 strings")
    return from_base64(text.partition(";base64,")[2] if text.startswith("data:") else text)


def check_model(request: Request) -> None:
    """Refuse a path or a body's model that is not the hosted one.

    Raises:
        RequestError: ``not_found``.
    """
    require_model(service_of(request), request.path_params.get("model"))


def require_model(service: Service, name: Any) -> None:
    """Refuse a model ``name`` that is not the hosted one.

    Raises:
        RequestError: ``not_found``.
    """
    if name != service.model.name:
        raise RequestError("not_found", f"no such model; this server hosts {service.model.name}")


def places_of(service: Service, labels: Any) -> list[int] | None:
    """Return where the names of a request's closed set stand among the model's classes; None if it
    has no such set.

    Raises:
        RequestError: ``invalid_request`` unless it is a list of different class names of the model,
            letter for letter.
    """
    if labels is None:
        return None
    if (
        not isinstance(labels, list)
        or not labels
        or not all(isinstance(label, str) for label in labels)
    ):
        raise RequestError(
            "invalid_request", "the candidate labels must be a list of one or more strings"
        )
    known = {name: place for place, name in enumerate(service.model.classes)}
    unknown = sum(label not in known for label in labels)
    if unknown or len(set(labels)) < len(labels):
        what = (
            (f"{unknown} of the candidate labels are unknown")
            if unknown
            else "a candidate label is there twice"
        )
        raise RequestError(
            "invalid_request",
            f"{what}: each must be another one of the model's {len(known)} class names",
        )
    return [known[label] for label in labels]
