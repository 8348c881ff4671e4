"""Our client against our server over every public wire format: the same model gives the same answer
everywhere.

The two share no code, so an agreement is one with the specification that both were written from.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from mock_server.app import create_app
from mock_server.settings import Settings
from pgn_client import AsyncAdaptedClient
from pgn_client.types import Answer
from pgn_client.wire.endpoint import Endpoint
from tests.mock_server.conftest import wire_model

URL, KEY = "http://127.0.0.1:9", "wire-key"
CLASSES = ("goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay")
PIXELS = np.random.default_rng(5).integers(0, 256, (4, 4, 3), np.uint8)
VERTEX = "/v1/projects/p/locations/l/endpoints/e:predict"
UINT8 = {"input": "images", "datatype": "UINT8", "shape": [-1, 3, 4, 4]}

WAYS: dict[str, dict[str, Any]] = {
    "pgn": {},
    "auto": {"protocol": "auto"},
    "huggingface": {},
    "huggingface-zero-shot": {"labels": CLASSES},
    "oip": {},
    "oip pixels": {"options": UINT8, "labels": CLASSES, "model": "vit"},
    "oip files": {"options": {"input": "pictures"}},
    "oip by its url": {"protocol": "auto", "path": "/v2/models/vit"},
    "oip logits": {"options": {"output": "logits"}},
    "kserve-v1": {"labels": CLASSES},
    "kserve-v1 by its url": {
        "protocol": "auto",
        "path": "/v1/models/vit:predict",
        "labels": CLASSES,
    },
    "kserve-v1 image_bytes": {"labels": CLASSES, "options": {"instance": "image_bytes"}},
    "vertex": {"path": VERTEX},
    "sagemaker": {"options": {"parameters": {"top_k": 100}}},
    "sagemaker runtime": {"model": "vit"},
    "torchserve": {"model": "vit"},
    "openai": {"labels": CLASSES},
    "custom": {
        "path": "/predictions/vit",
        "options": {"multipart": "data", "key_header": "X-API-Key: {key}"},
    },
}
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "pgn": {},
    "huggingface-features": {"path": "/pipeline/feature-extraction"},
    "oip": {},
    "kserve-v1": {"options": {"output": "embedding"}},
    "vertex": {"path": VERTEX, "options": {"output": "embedding"}},
    "sagemaker": {"options": {"output": "embedding"}},
    "torchserve": {"model": "vit", "options": {"output": "embedding"}},
    "openai-embeddings": {},
    "custom": {"path": "/v1/models/vit:predict", "options": {
        "body": {"instances": ["{base64}"]}, "scores": "predictions[0]", "output": "embedding"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return wire_model()


def ask(
    model, folder, name: str, way: dict[str, Any], picture: Image.Image, **settings: object
) -> tuple[Answer, str]:
    """Return the answer about one image, and the dialect that was spoken."""
    path = folder / "endpoint.json"
    protocol = way.get("protocol", name.partition(" ")[0])
    labels = way.get("labels", ())
    Endpoint(
        URL + way.get("path", ""),
        protocol,
        way.get("model"),
        labels=labels,
        options=way.get("options", {}),
    ).write(path)

    async def run() -> tuple[Answer, str]:
        app = create_app(Settings(api_key=KEY, **settings), model)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncAdaptedClient(path, None, api_key=KEY, transport=transport, timeout=60) as client,
        ):
            return await client.answer(picture), client.protocol

    return asyncio.run(run())


def reference(model) -> dict[str, float]:
    """Return the model's own probabilities of the image, without any server."""
    pixels = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = model.network((pixels / 255 - 0.5) / 0.5)[0].double()
    return dict(zip(CLASSES, torch.softmax(logits, 0).tolist(), strict=True))


def as_probabilities(answer: Answer) -> dict[str, float]:
    scores = np.asarray(answer.scores)
    if answer.kind == "logits":
        scores = np.exp(scores - np.logaddexp.reduce(scores))
    return dict(zip(answer.labels, scores.tolist(), strict=True))


@pytest.mark.parametrize("name", WAYS)
def test_the_same_model_answers_the_same_over_every_protocol(model, tmp_path, name):
    answer, dialect = ask(model, tmp_path, name, WAYS[name], Image.fromarray(PIXELS))
    expected = reference(model)
    found = as_probabilities(answer)
    assert found == pytest.approx({label: expected[label] for label in found}, abs=1e-5)
    assert len(found) == (
        5
        if "/predictions/" in str(WAYS[name]) or name in ("torchserve", "sagemaker runtime")
        else 7
    )
    assert dialect.startswith("pgn" if name == "auto" else name.partition(" ")[0])


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_the_same_model_embeds_the_same_over_every_protocol(model, tmp_path, name):
    answer, _ = ask(
        model, tmp_path, name, EMBEDDINGS[name], Image.fromarray(PIXELS), output="embedding"
    )
    plain, _ = ask(model, tmp_path, "pgn", {}, Image.fromarray(PIXELS), output="embedding")
    assert answer.kind == "embedding"
    assert answer.scores == pytest.approx(plain.scores, abs=1e-5)


# without metadata nobody knows of a limit
@pytest.mark.parametrize("name", sorted(WAYS.keys() - {"oip pixels"}))
@pytest.mark.parametrize("settings", [{"top_k": 2}, {"output": "label"}], ids=str)
def test_what_the_owner_keeps_back_arrives_as_a_part(model, tmp_path, name, settings):
    answer, _ = ask(model, tmp_path, name, WAYS[name], Image.fromarray(PIXELS), **settings)
    expected = reference(model)
    assert answer.labels[0] == max(expected, key=lambda label: expected[label])
    assert len(answer.labels) <= settings.get("top_k", 1)


def test_a_picture_of_another_size_is_squashed_alike_by_client_and_server(model, tmp_path):
    picture = Image.fromarray(np.random.default_rng(6).integers(0, 256, (9, 13, 3), np.uint8))
    tensor, _ = ask(model, tmp_path, "oip", {}, picture)
    server, _ = ask(model, tmp_path, "pgn", {}, picture)
    assert as_probabilities(tensor) == pytest.approx(as_probabilities(server), abs=1e-2)
