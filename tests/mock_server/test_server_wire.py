"""The contract's golden exchanges, replayed against the server."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mock_server.app import create_app
from mock_server.settings import Settings

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = sorted((ROOT / "tests/contract/wire").glob("*.json"))
PROTOCOLS = {"pgn", "hf", "oip", "v1", "vertex", "sagemaker", "torchserve", "openai"}
ANY_NUMBER = "a number"


def names(value: Any) -> Any:
    """Reduce an answer to its names: numbers, texts and the like are examples."""
    if isinstance(value, dict):
        return {key: names(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [names(entry) for entry in value]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return ANY_NUMBER if number else type(value).__name__


def codes(value: Any) -> list[str]:
    """Return our protocol's error codes in an answer: they are names too."""
    if isinstance(value, list):
        return [code for entry in value for code in codes(entry)]
    if not isinstance(value, dict):
        return []
    return (
        [value["code"]]
        if "code" in value
        else [code for entry in value.values() for code in codes(entry)]
    )


@asynccontextmanager
async def serving(
    served: Any, settings: dict[str, Any], *, warm: bool
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(api_key="wire-key", **settings), served)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        if not warm:  # its lifespan has not begun: this is how a loading server answers
            yield client
            return
        async with app.router.lifespan_context(app):
            yield client


def test_the_golden_exchanges_are_found():
    assert len(GOLDEN) >= 100
    assert {file.stem.partition("_")[0] for file in GOLDEN} == PROTOCOLS
    assert {file.stem.partition("_")[0] for file in GOLDEN if "_error_" in file.stem} == PROTOCOLS


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.stem)
async def test_the_server_answers_a_golden_request_with_the_golden_names(wire_served, file):
    exchange = json.loads(file.read_text())
    request, expected = exchange["request"], exchange["response"]
    body = {"content": base64.b64decode(request["body_base64"])} if "body_base64" in request else {}
    if "json" in request:
        body = {"json": request["json"]}
    async with serving(
        wire_served, exchange.get("server", {}), warm=not file.stem.endswith("_503")
    ) as client:
        answer = await client.request(
            request["method"],
            request["path"],
            params=request["query"],
            headers=request["headers"],
            **body,
        )
    assert answer.status_code == expected["status"], answer.text
    assert expected["headers"].keys() <= answer.headers.keys()
    assert answer.headers["content-type"] == expected["headers"]["content-type"]
    if "body_base64" in expected:
        golden = base64.b64decode(expected["body_base64"])
        assert tensors(answer.headers, answer.content) == tensors(expected["headers"], golden)
        return
    content = answer.json()
    if file.stem == "pgn_model":  # the example names fewer classes
        content["classes"], expected["json"]["classes"] = (
            content["classes"][:1],
            expected["json"]["classes"][:1],
        )
    assert names(content) == names(expected["json"])
    assert codes(content) == codes(expected["json"])


def tensors(headers: Any, body: bytes) -> tuple[Any, int]:
    """Return the JSON part of a binary answer and the number of bytes behind it, which that must
    announce.
    """
    length = int(headers["inference-header-content-length"])
    header = json.loads(body[:length])
    behind = len(body) - length
    assert sum(tensor["parameters"]["binary_data_size"] for tensor in header["outputs"]) == behind
    return header, behind
