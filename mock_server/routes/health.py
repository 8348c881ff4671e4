"""Liveness, readiness and metrics; these routes need no key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from mock_server.errors import RequestError
from mock_server.routes.payload import service_of

router = APIRouter(tags=["health"])


@router.get("/")
def alive() -> JSONResponse:
    """Report that the server is running."""
    # The form of KServe's version 1, whose client asks here; Hugging Face's reads only the status.
    return JSONResponse({"status": "alive"})


@router.get("/healthz")
@router.get("/health")
def health() -> PlainTextResponse:
    """Report that the process is alive."""
    return PlainTextResponse("Ok")


@router.get("/ping")
def ping(request: Request) -> JSONResponse:
    """Report whether the model is ready: by status for SageMaker, by body for TorchServe."""
    service_of(request).require_ready()
    return JSONResponse({"status": "Healthy"})


@router.get("/readyz")
def ready(request: Request) -> PlainTextResponse:
    """Report whether the model is ready: 503 while it loads and while the server stops."""
    if not service_of(request).ready:
        raise RequestError("overloaded", "the model is not ready", headers={"Retry-After": "1"})
    return PlainTextResponse("Ok")


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Return the metrics in the Prometheus text format."""
    return Response(
        generate_latest(service_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST
    )
