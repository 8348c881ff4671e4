"""Prometheus metrics, and the middleware that measures every request."""

from __future__ import annotations

import logging
import time
import uuid

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mock_server.errors import INFERENCE_METHODS, RequestError, protocol_of
from mock_server.responses import error_response

LONGEST_ID = 200
"""Longest value of a client's header that a response repeats, in characters. The limit keeps
clients from filling headers and logs.
"""

_log = logging.getLogger(__name__)


class Metrics:
    """The metrics of one application.

    They have their own registry, so that one process can run two applications.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pgn_requests",
            "Inference requests completed",
            ["protocol", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "pgn_request_duration_seconds",
            "Time to complete a request",
            ["protocol"],
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "pgn_batch_size",
            "Images per forward pass",
            buckets=[1, 2, 4, 8, 16, 32, 64],
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "pgn_queue_depth", "Images waiting for a batch", registry=self.registry
        )
        self.images = Counter("pgn_images", "Images classified", registry=self.registry)
        self.rejected = Counter(
            "pgn_rejected", "Requests rejected", ["reason"], registry=self.registry
        )


class ObserveMiddleware:
    """Add id and time headers to every response, and count inference requests (POST and PUT).

    The headers are ``x-request-id`` (the client's, or a new one), ``x-compute-time`` (seconds until
    the response started), ``x-compute-type``, and the client's ``Idempotency-Key``.

    An uncaught exception is logged. If the response has not started, the client gets a 500 in the
    protocol's form.

    Args:
        app: The wrapped application.
        metrics: The metrics to update.
        compute_type: Value of ``x-compute-type``, ``cpu`` or ``cuda``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, compute_type: str) -> None:
        self.app = app
        self.metrics = metrics
        self.compute_type = compute_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = time.perf_counter()
        status: int | None = None  # HTTP status of the response, once the response has started.
        request_headers = Headers(scope=scope)
        request_id = request_headers.get("x-request-id", "")[:LONGEST_ID] or uuid.uuid4().hex
        # Routes read this entry as Starlette's `request.state.request_id`.
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-compute-time"] = f"{time.perf_counter() - started:.3f}"
                headers["x-compute-type"] = self.compute_type
                if "idempotency-key" in request_headers:
                    headers["idempotency-key"] = request_headers["idempotency-key"][:LONGEST_ID]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            if status is not None:
                raise
            _log.exception("request %s failed", request_id)
            error = RequestError("internal", "internal server error; see the server's log")
            await error_response(scope, error)(scope, receive, send_with_headers)
        finally:
            # The status is None, for example, if the request was cancelled before its response.
            if scope["method"] in INFERENCE_METHODS:
                self._count(scope["path"], status or 500, time.perf_counter() - started)

    def _count(self, path: str, status: int, seconds: float) -> None:
        protocol = protocol_of(path)
        self.metrics.requests.labels(protocol, str(status)).inc()
        self.metrics.seconds.labels(protocol).observe(seconds)
