"""Routes for a tenant's EXPRES adapters.

`PUT`, `GET` and `DELETE /v1/adapters/{name}`, and `GET /v1/adapters`.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from mock_server.adapters import NAME, Adapter, read
from mock_server.errors import STATUS, RequestError
from mock_server.routes.payload import read_body, require_key, service_of, tenant_of
from mock_server.schemas import AdapterCard, AdapterList, ErrorAnswer

_FILE = {"schema": {"type": "string", "format": "binary"}}
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": _FILE}}}

router = APIRouter(
    prefix="/v1/adapters",
    tags=["adapters"],
    dependencies=[Depends(require_key)],
    responses={status: {"model": ErrorAnswer} for status in STATUS.values()},
)


@router.get("")
def index(request: Request) -> AdapterList:
    """List the tenant's adapters."""
    service = service_of(request)
    adapters = service.adapters.of(tenant_of(request))
    return AdapterList(
        adapters=[_card(adapters[name]) for name in sorted(adapters)],
        most=service.settings.max_adapters,
    )


@router.put("/{name}", response_model=AdapterCard, openapi_extra=_BODY)
async def put(request: Request, name: str) -> JSONResponse:
    """Store an adapter: 201 for a new name, 200 if it replaces an adapter of the tenant."""
    if NAME.fullmatch(name) is None:
        raise RequestError(
            "invalid_request",
            "a name has 1 to 64 letters, digits, dots, dashes and underscores, and begins with "
            "a letter or digit",
        )
    service = service_of(request)
    if service.want == "embedding":
        raise RequestError(
            "invalid_request", "this server returns embeddings, and an adapter has none"
        )
    service.require_ready()

    # Checked here to reject the upload early, and again in `put`, because other uploads may finish
    # in the meantime.
    service.adapters.require_room(tenant_of(request), name)
    data = await read_body(request, service.settings.max_adapter_bytes)
    adapter = await asyncio.to_thread(read, data, name, service.model)
    new = service.adapters.put(tenant_of(request), adapter)
    return JSONResponse(_card(adapter).model_dump(), 201 if new else 200)


@router.get("/{name}")
def get(request: Request, name: str) -> AdapterCard:
    """Describe one of the tenant's adapters."""
    return _card(service_of(request).adapters.get(tenant_of(request), name))


@router.delete("/{name}", status_code=204)
def delete(request: Request, name: str) -> Response:
    """Delete one of the tenant's adapters."""
    service_of(request).adapters.delete(tenant_of(request), name)
    return Response(status_code=204)


def adapter_of(request: Request, *, segments: bool = False) -> Adapter | None:
    """Return the tenant's adapter that the request's query names, or None if it names none.

    Args:
        request: Request with an optional query parameter ``adapter``: NAME or NAME@SHA256.
        segments: Whether the adapter must return masks; otherwise it must classify.

    Raises:
        RequestError: ``not_found`` if the tenant has no such adapter; ``invalid_request`` if the
            adapter has the other task, or if this server returns embeddings.
    """
    name = request.query_params.get("adapter")
    if name is None:
        return None
    service = service_of(request)
    if service.want == "embedding":
        raise RequestError(
            "invalid_request", "this server returns embeddings, and an adapter has none"
        )

    adapter = service.adapters.get(tenant_of(request), name)
    if adapter.segments != segments:
        path = "/v1/segment" if adapter.segments else "/v1/classify"
        raise RequestError("invalid_request", f"this adapter is for {path}")
    return adapter


def _card(adapter: Adapter) -> AdapterCard:
    return AdapterCard(
        name=adapter.name,
        sha256=adapter.sha256,
        classes=list(adapter.classes),
        task="segment" if adapter.segments else "classify",
        prompts=adapter.count,
        bytes=adapter.size,
    )
