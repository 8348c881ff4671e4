"""An endpoint in this process, whose answers follow from the pixels alone.

For the fixtures, and for the tests that read them. It uses nothing of the project, so that it
answers today what it answered when the fixtures were written.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence

import httpx
import numpy as np
from PIL import Image

URL = "http://127.0.0.1:9"
SIDE = 8


class Toy:
    """The ``pgn`` and a ``custom`` wire format; instead of sending, httpx calls it.

    Args:
        labels: of its classes.
        patch_embedding: the fingerprint that it tells of itself.
        output: ``probs`` or ``embedding``.
        seed: of its weights; another one is another model.
    """

    def __init__(
        self,
        labels: Sequence[str],
        patch_embedding: str,
        *,
        output: str = "probs",
        seed: int = 7,
    ) -> None:
        self.labels, self.output = list(labels), output
        self.card = {"name": "toy", "input_size": 64, "patch_embedding_sha256": patch_embedding}
        self.weight = np.random.default_rng(seed).normal(size=(3 * SIDE * SIDE, len(self.labels)))
        self.images: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer a request; those that carry an image are kept."""
        body = request.read()
        if request.method == "GET":
            told = request.url.path == "/v1/model"
            return httpx.Response(200, json=self.card) if told else httpx.Response(404)
        self.images.append(request)
        if request.url.path == "/custom":
            scores = self.scores(base64.b64decode(json.loads(body)["inputs"]))
            pairs = zip(self.labels, scores, strict=True)
            best = sorted(pairs, key=lambda pair: -pair[1])[:5]
            return httpx.Response(200, json=[{"label": a, "score": b} for a, b in best])
        if self.output == "embedding":
            predictions = [{"labels": [], "scores": self.logits(body)[:12]}]
        else:
            predictions = [{"labels": self.labels, "scores": self.scores(body)}]
        return httpx.Response(200, json={"output": self.output, "predictions": predictions})

    def logits(self, data: bytes) -> list[float]:
        """Return the logits of an image file."""
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        x = np.asarray(small, dtype=np.float64).ravel() / 255 - 0.5
        return [round(float(v), 6) for v in x @ self.weight]

    def scores(self, data: bytes) -> list[float]:
        """Return the probabilities of an image file."""
        e = np.exp(np.array(self.logits(data)) / 4)
        return [round(float(p), 9) for p in e / e.sum()]


def fixed_images() -> list[Image.Image]:
    """Return two images that every checkpoint is shown."""
    y, x = np.mgrid[0:40, 0:56]
    first = np.stack([4 * x, 6 * y, 255 - 2 * (x + y)], axis=-1)
    second = np.where((x - 28) ** 2 + (y - 20) ** 2 < 200, 240, 10)[..., None] + np.array([0, 5, 9])
    return [Image.fromarray(array.clip(0, 255).astype(np.uint8)) for array in (first, second)]
