"""Servers and adapters for the tests of the wire arm."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.types import Answer, Prepared

URL = "http://127.0.0.1:9"
CARD = {
    "name": "toy",
    "input_size": 8,
    "profile": "direct",
    "patch_embedding_sha256": "ab" * 32,
    "classes": ["a", "b"],
}


def picture(seed: int = 0, size: int = 8) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    )


def file_bytes(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def answered(
    labels: Sequence[str] = ("a", "b"), scores: Sequence[float] = (0.75, 0.25)
) -> httpx.Response:
    body = {
        "model": "toy",
        "output": "probs",
        "predictions": [{"labels": list(labels), "scores": list(scores)}],
    }
    return httpx.Response(200, json=body, headers={"x-request-id": "req-7"})


class Server:
    """Our protocol on a MockTransport; ``script`` is used up first, one response or exception per
    image.
    """

    def __init__(self, script: Iterable[httpx.Response | Exception] = (), card: Any = CARD) -> None:
        self.script, self.card = list(script), card
        self.requests: list[httpx.Request] = []
        self.card_requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/v1/model"):
            self.card_requests += 1
            if isinstance(self.card, Exception):
                raise self.card
            return (
                self.card
                if isinstance(self.card, httpx.Response)
                else httpx.Response(200, json=self.card)
            )
        # which protocol, which model?
        if request.method == "GET" or request.url.path.endswith("/v2/repository/index"):
            return httpx.Response(404)
        self.requests.append(request)
        step = self.script.pop(0) if self.script else answered()
        if isinstance(step, Exception):
            raise step
        return step


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)


def client(
    server: Callable[[httpx.Request], httpx.Response], ckpt: Any = None, **options: Any
) -> AdaptedClient:
    made = AdaptedClient(
        options.pop("url", URL), ckpt, transport=httpx.MockTransport(server), **options
    )
    made.clock = Clock()  # type: ignore[attr-defined]
    made._sleep = made.clock.sleep  # type: ignore[attr-defined]
    made._session.clocks.monotonic = made.clock  # type: ignore[attr-defined]
    made._session.clocks.wall = lambda: 1_700_000_000.0
    made._session.clocks.jitter = lambda: 1.0
    return made


def async_client(server: Any, ckpt: Any = None, **options: Any) -> AsyncAdaptedClient:
    made = AsyncAdaptedClient(
        options.pop("url", URL), ckpt, transport=httpx.MockTransport(server), **options
    )
    made.clock = Clock()  # type: ignore[attr-defined]
    made._sleep = made.clock.sleep_async  # type: ignore[attr-defined]
    made._session.clocks.monotonic = made.clock  # type: ignore[attr-defined]
    return made


class ToyMapping:
    classes = ("x", "y")

    def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
        rows = [dict(zip(answer.labels, answer.scores, strict=True)) for answer in answers]
        return np.log([[row["a"], row["b"]] for row in rows])


class ToyAdapter:
    """Inverts the image; the local head says ``local``."""

    def __init__(
        self, local: Sequence[float] | None = None, fusion: float | None = None, **card: Any
    ) -> None:
        self.info = {
            "classes": ["x", "y"],
            "fusion": fusion,
            "profile": "direct",
            "fingerprint": hashlib.sha256(json.dumps([local, fusion, card]).encode()).hexdigest(),
            "backbone": {"name": "toy", "input_size": 8, "patch_embedding_sha256": "ab" * 32},
            **card,
        }
        self.mapping = ToyMapping()
        self.local = None if local is None else np.log(np.asarray(local, dtype=np.float64))
        self.batches: list[int] = []

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        self.batches.append(len(images))
        return [Prepared(Image.eval(image, lambda v: 255 - v), self.local) for image in images]
