"""The application: routes, error forms, and the life of the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mock_server.errors import RequestError, code_of
from mock_server.faults import FaultMiddleware
from mock_server.metrics import ObserveMiddleware
from mock_server.model import ServedModel, load
from mock_server.responses import error_response
from mock_server.routes import (
    adapters,
    health,
    huggingface,
    oip,
    openai,
    pgn,
    sagemaker,
    torchserve,
    v1,
)
from mock_server.routes.payload import service_of
from mock_server.service import Service
from mock_server.settings import Settings


def create_app(settings: Settings, model: ServedModel | None = None) -> FastAPI:
    """Return the application; the model is warm once its lifespan has started.

    Args:
        settings: The switches.
        model: What to host; then ``settings.model``, ``weights``, ``labels`` and ``device`` are not
            looked at.

    Raises:
        ConfigurationError: The settings do not fit the model, or there is no such model.
    """
    service = Service(settings, model or load(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
            yield
        finally:
            await service.stop()

    app = FastAPI(title="mock_server", lifespan=lifespan, redirect_slashes=False)
    app.state.service = service
    for routes in (health, adapters, pgn, huggingface, oip, v1, sagemaker, torchserve, openai):
        app.include_router(routes.router)
    _add_error_forms(app)
    if settings.faults is not None:
        app.add_middleware(FaultMiddleware, plan=settings.faults)
    app.add_middleware(
        ObserveMiddleware, metrics=service.metrics, compute_type=service.model.device.type
    )
    return app


def _add_error_forms(app: FastAPI) -> None:
    """Answer every refusal, the framework's too, in the form of the protocol that was spoken.

    `ObserveMiddleware` does so for what nobody expected.
    """

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        service_of(request).metrics.rejected.labels(error.code).inc()
        return error_response(request.scope, error)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        refusal = RequestError(code_of(error.status_code), str(error.detail), headers=error.headers)
        return error_response(request.scope, refusal, error.status_code)
