"""Request parsing: keys, bodies, JSON and base64, with the limits that a public server needs."""

from __future__ import annotations

import base64
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
"""Tenant name of the owner; a named tenant cannot have it."""


def service_of(request: Request) -> Service:
    """Return the application's service."""
    return cast(Service, request.app.state.service)


def require_key(request: Request) -> None:
    """Check that the request has a valid key, as a bearer token or in ``X-API-Key``.

    Raises:
        RequestError: ``unauthorized``.
    """
    # The name is not needed here: `tenant_of` raises if no key matches.
    tenant_of(request)


def tenant_of(request: Request) -> str:
    """Return the tenant whose key the request has.

    The result is ``OWNER`` for the server's own key, and for every request to a server without
    keys.

    Args:
        request: Request with a bearer token or the header ``X-API-Key``.

    Raises:
        RequestError: ``unauthorized`` if the request has no valid key.
    """
    settings = service_of(request).settings
    keys = dict(settings.tenants)
    if settings.api_key is not None:
        keys[OWNER] = settings.api_key
    if not keys:
        return OWNER

    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    header = request.headers.get("x-api-key", "")

    # The loop compares all keys, each in constant time: the response time reveals nothing. It
    # compares bytes, because `compare_digest` rejects text that is not ASCII.
    matches = []
    for name, key in keys.items():
        for candidate in (bearer, header):
            if hmac.compare_digest(candidate.encode(), key.encode()):
                matches.append(name)
    if not matches:
        message = "this endpoint needs its API key as a bearer token or in X-API-Key"
        raise RequestError("unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
    return matches[0]


async def read_body(request: Request, limit: int | None = None) -> bytes:
    """Return the complete body, decompressed if its content encoding is gzip or deflate.

    Args:
        request: Request to read; its content type does not matter.
        limit: Largest number of bytes; None is the server's own limit.

    Raises:
        RequestError: ``payload_too_large`` if the declared, the real or the decompressed length
            exceeds the limit; ``invalid_request`` if the body is empty, has another content
            encoding, or the client disconnected.
    """
    limit = service_of(request).settings.max_body_bytes if limit is None else limit
    too_large = RequestError("payload_too_large", f"the body is longer than {limit} bytes")
    # A declared length rejects the body before it arrives. A chunked body declares none, so its
    # bytes are counted as well.
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

    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    return _decompressed(bytes(body), encoding, limit)


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """Return ``body`` without its content encoding.

    The function never holds more than ``limit`` + 1 decompressed bytes, so a compression bomb does
    no harm.
    """
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "deflate"):
        raise RequestError("invalid_request", "the content encoding must be gzip, deflate or none")

    # With 32 added, zlib itself detects gzip or deflate.
    decompressor = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        content = decompressor.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(
            "invalid_request", "the body does not match its content encoding"
        ) from None

    if len(content) > limit:
        raise RequestError("payload_too_large", f"the unpacked body is longer than {limit} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise RequestError(
            "invalid_request", "the compressed body is cut short, or has data behind its end"
        )
    return content


def is_json(request: Request, body: bytes) -> bool:
    """Return whether the body is JSON: by the content type, or else by the first byte."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/json":
        return True
    # Some clients declare no JSON: curl calls it a form unless a header is given.
    return not content_type.startswith("image/") and body.lstrip()[:1] in (b"{", b"[")


def parse_object(body: bytes, known: Iterable[str] | None) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Args:
        body: Bytes of the request's body.
        known: Allowed keys; None allows any key.

    Raises:
        RequestError: ``invalid_request`` if the body is not JSON (NaN is not), not an object, or
            has an unknown key.
    """
    try:
        content = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise RequestError("invalid_request", "the body is not valid JSON") from None
    return check_object(content, known, "the body")


def _reject_constant(text: str) -> None:
    """Reject NaN and Infinity, which Python's parser accepts and JSON does not have."""
    raise ValueError(text)


def check_object(content: Any, known: Iterable[str] | None, what: str) -> dict[str, Any]:
    """Return ``content`` after a check that it is an object with allowed keys.

    Args:
        content: Parsed JSON.
        known: Allowed keys; None allows any key.
        what: Name of the object for the error message.

    Raises:
        RequestError: ``invalid_request``. The message names ``what`` and the allowed keys, never
            the client's keys.
    """
    if not isinstance(content, dict):
        raise RequestError("invalid_request", f"{what} must be a JSON object")
    if known is None:
        return content
    names = sorted(known)
    if not content.keys() <= set(names):
        raise RequestError(
            "invalid_request", f"{what} has an unknown key or parameter; known: {', '.join(names)}"
        )
    return content


def query_of(request: Request, known: Iterable[str]) -> dict[str, Any]:
    """Return the parameters in the query string, with whole numbers as int.

    Args:
        request: Request to read.
        known: Allowed parameters.

    Raises:
        RequestError: ``invalid_request`` for an unknown parameter.
    """
    texts = check_object(dict(request.query_params), known, "the query string")
    # Numbers of ten or more digits stay texts, so that no huge integer is built.
    return {
        name: int(text) if text.isdecimal() and len(text) < 10 else text
        for name, text in texts.items()
    }


def check_top_k(value: Any) -> int | None:
    """Return the ``top_k`` of a request, or None if the request has none.

    Args:
        value: Value in the request.

    Raises:
        RequestError: ``invalid_request`` unless the value is a whole number from 1.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError("invalid_request", "top_k must be a whole number from 1")
    return value


def from_base64(text: str) -> bytes | RequestError:
    """Return the decoded bytes, or the error for this image."""
    try:
        # Some clients leave the padding out. Without `validate`, Python skips characters that are
        # not base64.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        return RequestError("invalid_image", "the image is not valid base64")


def from_text(text: Any, what: str) -> bytes | RequestError:
    """Return the bytes in base64 or in a ``data:`` URL, or the error for this image.

    The server never fetches a URL or opens a path.

    Args:
        text: Value in the request.
        what: Name of the value for the error message, in the plural.

    Raises:
        RequestError: ``invalid_request`` if the value is not a string.
    """
    if not isinstance(text, str):
        raise RequestError("invalid_request", f"{what} must be base64 strings")
    # A ``data:`` URL without base64 gives an empty image, which the decoder rejects.
    return from_base64(text.partition(";base64,")[2] if text.startswith("data:") else text)


def check_model(request: Request) -> None:
    """Check that the request's path names the hosted model.

    Raises:
        RequestError: ``not_found`` for another model.
    """
    require_model(service_of(request), request.path_params.get("model"))


def require_model(service: Service, name: Any) -> None:
    """Check that ``name`` is the hosted model's.

    Raises:
        RequestError: ``not_found`` for another model.
    """
    if name != service.model.name:
        raise RequestError("not_found", f"no such model; this server hosts {service.model.name}")


def places_of(service: Service, labels: Any) -> list[int] | None:
    """Return the class indices of a request's closed set, or None if it has no closed set.

    Args:
        service: Service with the hosted model.
        labels: Closed set in the request: class names of the model, or None.

    Raises:
        RequestError: ``invalid_request`` unless the set is a list of different class names of the
            model.
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

    indices = {name: index for index, name in enumerate(service.model.classes)}
    unknown = sum(label not in indices for label in labels)
    if unknown:
        raise RequestError(
            "invalid_request",
            f"{unknown} of the candidate labels are unknown: each must be one of the model's "
            f"{len(indices)} class names",
        )
    if len(set(labels)) < len(labels):
        raise RequestError(
            "invalid_request", "a candidate label occurs twice: all labels must be different"
        )
    return [indices[label] for label in labels]
