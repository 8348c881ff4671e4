"""The FastAPI application: routes, error responses, and startup and shutdown of the model."""

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
    """Build the application. Its lifespan warms up the model when it starts.

    Args:
        settings: The server's options.
        model: Model to host; ``settings.model``, ``weights``, ``labels`` and ``device`` are then
            ignored. None loads the model that the settings name.

    Raises:
        ConfigurationError: The settings do not fit the model, or the model does not exist.
    """
    service = Service(settings, model or load(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # `start` is inside the `try`, so that the worker thread also ends if the warm-up fails.
        try:
            await service.start()
            yield
        finally:
            await service.stop()

    # An unknown path must be a 404 in the protocol's form, even if only its last slash is wrong.
    app = FastAPI(title="mock_server", lifespan=lifespan, redirect_slashes=False)
    app.state.service = service
    for routes in (health, adapters, pgn, huggingface, oip, v1, sagemaker, torchserve, openai):
        app.include_router(routes.router)
    _add_error_handlers(app)

    # The middleware added last runs outermost: it also times and counts the faults.
    if settings.faults is not None:
        app.add_middleware(FaultMiddleware, plan=settings.faults)
    app.add_middleware(
        ObserveMiddleware, metrics=service.metrics, compute_type=service.model.device.type
    )
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Return every expected error, the framework's too, in the form of the request's protocol.

    `ObserveMiddleware` does the same for unexpected exceptions.
    """

    @app.exception_handler(RequestError)
    async def handle_request_error(request: Request, error: RequestError) -> JSONResponse:
        service_of(request).metrics.rejected.labels(error.code).inc()
        return error_response(request.scope, error)

    @app.exception_handler(HTTPException)
    async def handle_framework_error(request: Request, error: HTTPException) -> JSONResponse:
        request_error = RequestError(
            code_of(error.status_code), str(error.detail), headers=error.headers
        )
        return error_response(request.scope, request_error, error.status_code)
