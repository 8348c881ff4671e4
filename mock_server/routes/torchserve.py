"""TorchServe's inference API, with its default image classifier.

``POST`` or ``PUT /predictions/{model}[/{version}]`` takes the raw image with any content type, a
multipart form with the image as ``data`` (or ``body``), or JSON with the image in base64 under the
same names. The response maps the best five labels to their scores, best first. An embedding is the
plain list of its numbers.

Like TorchServe, the server returns 503 "Prediction failed" for every failure of the handler, also
for a bad image. Deviations: responses have a content type, 413 has a body, and a missing key is
401.
"""

from __future__ import annotations

from email.message import Message

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from mock_server.errors import RequestError
from mock_server.routes.payload import (
    check_model,
    from_text,
    is_json,
    parse_object,
    read_body,
    require_key,
    service_of,
)

VERSION = "1.0"
"""Version of the hosted model."""
TOP_K = 5
"""Number of labels that TorchServe's default image classifier returns."""
FIELDS = ("data", "body")
"""Names of the form field or JSON key that holds the image."""
MOST_PARTS = 16
"""Largest number of parts in a multipart form; it bounds the work for a hostile form."""

_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {"type": "object", "properties": {"data": {"type": "string", "format": "binary"}}}
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/png": _IMAGE, "multipart/form-data": _FORM},
    }
}

router = APIRouter(prefix="/predictions", tags=["torchserve"], dependencies=[Depends(require_key)])


@router.post("/{model}", openapi_extra=_BODY)
@router.put("/{model}", openapi_extra=_BODY)
@router.post("/{model}/{version}", openapi_extra=_BODY)
@router.put("/{model}/{version}", openapi_extra=_BODY)
async def predict(request: Request) -> JSONResponse:
    """Classify one image."""
    check_model(request)
    if request.path_params.get("version", VERSION) != VERSION:
        raise RequestError("not_found", f"no such version of the model; it has version {VERSION}")

    service = service_of(request)
    [answer] = await service.ask_all([await _image(request)], service.want)
    if service.want == "embedding":
        return JSONResponse(service.complete(answer).tolist())
    labels, scores = service.rank(answer, service.function, top_k=TOP_K)
    return JSONResponse(dict(zip(labels, scores, strict=True)))


async def _image(request: Request) -> bytes | RequestError:
    """Return the bytes of the request's image, or the error of its base64."""
    body = await read_body(request)
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith("multipart/form-data"):
        return _form_field(body, content_type)
    if not is_json(request, body):
        return body
    content = parse_object(body, FIELDS)
    return from_text(next(iter(content.values()), None), "the images")


def _form_field(body: bytes, content_type: str) -> bytes:
    """Return the unchanged bytes of the image in a multipart form."""
    # Starlette's own parser turns a field without a file name into text, which changes the bytes.
    boundary = _parameter(content_type, "boundary")
    # The first boundary has no line break before it; one is added so that all boundaries match.
    # The split gives the text before the first boundary, the parts, and "--" after the last one: at
    # most MOST_PARTS + 2 pieces. As many splits give one piece more, which reveals a longer form.
    parts = (b"\r\n" + body).split(
        b"\r\n--" + boundary.encode("latin-1", "replace"), MOST_PARTS + 2
    )
    if not boundary or not 3 <= len(parts) <= MOST_PARTS + 2 or not parts[-1].startswith(b"--"):
        raise RequestError(
            "invalid_request",
            f"the multipart form must be complete and have 1 to {MOST_PARTS} parts",
        )

    for part in parts[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").splitlines()
        headers = dict(line.lower().split(":", 1) for line in lines if ":" in line)
        if _parameter(headers.get("content-disposition", ""), "name") in FIELDS:
            return content
    raise RequestError("invalid_request", "the multipart form needs the image in the field data")


def _parameter(header: str, name: str) -> str:
    """Return a parameter of a header such as ``form-data; name="data"``, or an empty string."""
    # The standard library parses parameters only in the header content-type.
    message = Message()
    message["content-type"] = header.strip()
    value = message.get_param(name)
    return value if isinstance(value, str) else ""
