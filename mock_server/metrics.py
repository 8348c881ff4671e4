"""Prometheus metrics, and the middleware that times, counts and labels every request."""

from __future__ import annotations

import logging
import time
import uuid

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mock_server.errors import INFERENCE_METHODS, RequestError, protocol_of
from mock_server.responses import error_response

LONGEST_ID = 200  # characters of a client's header that we are willing to repeat

_log = logging.getLogger(__name__)


class Metrics:
    """The metrics of one application, in their own registry so that two can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pgn_requests",
            "Inference requests answered",
            ["protocol", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "pgn_request_duration_seconds",
            "Time to answer a request",
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
            "pgn_queue_depth", "Images that wait for a batch", registry=self.registry
        )
        self.images = Counter("pgn_images", "Images classified", registry=self.registry)
        self.rejected = Counter(
            "pgn_rejected", "Requests refused", ["reason"], registry=self.registry
        )


class ObserveMiddleware:
    """Give every answer its ids and times, and count the inference requests (every POST and PUT).

    Adds ``x-request-id`` (the client's, or a new one), ``x-compute-time`` (seconds until the answer
    began) and ``x-compute-type``, and repeats the client's ``Idempotency-Key``. An exception that
    nothing below has caught is logged and answered 500 in the protocol's form, unless an answer was
    begun.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, compute_type: str) -> None:
        self.app = app
        self.metrics = metrics
        self.compute_type = compute_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, labelled and counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None  # of the answer, once it was begun
        given = Headers(scope=scope)
        request_id = given.get("x-request-id", "")[:LONGEST_ID] or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-compute-time"] = f"{time.perf_counter() - started:.3f}"
                headers["x-compute-type"] = self.compute_type
                if "idempotency-key" in given:
                    headers["idempotency-key"] = given["idempotency-key"][:LONGEST_ID]
            await send(message)

        try:
            await self.app(scope, receive, send_labelled)
        except Exception:
            if status is not None:
                raise
            _log.exception("request %s failed", request_id)
            mistake = RequestError("internal", "the server made a mistake; see its log")
            await error_response(scope, mistake)(scope, receive, send_labelled)
        finally:
            if scope["method"] in INFERENCE_METHODS:
                self._count(scope["path"], status or 500, time.perf_counter() - started)

    def _count(self, path: str, status: int, seconds: float) -> None:
        protocol = protocol_of(path)
        self.metrics.requests.labels(protocol, str(status)).inc()
        self.metrics.seconds.labels(protocol).observe(seconds)
