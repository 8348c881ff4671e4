"""The contract's golden exchanges, and what real clients were seen to send, replayed against the server."""

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
CAPTURED = ROOT.parent / "shared/golden/wire"
CLIENTS = sorted(
    file for pattern in ("hf_hub_*imgcls*.http", "js_4.13.30__ep*.http") for file in CAPTURED.glob(pattern)
)
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
    return [value["code"]] if "code" in value else [code for entry in value.values() for code in codes(entry)]


@asynccontextmanager
async def serving(served: Any, settings: dict[str, Any], *, warm: bool) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(api_key="wire-key", **settings), served)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
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
    async with serving(wire_served, exchange.get("server", {}), warm=not file.stem.endswith("_503")) as client:
        answer = await client.request(
            request["method"], request["path"], params=request["query"], headers=request["headers"], **body
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
        content["classes"], expected["json"]["classes"] = content["classes"][:1], expected["json"]["classes"][:1]
    assert names(content) == names(expected["json"])
    assert codes(content) == codes(expected["json"])


def tensors(headers: Any, body: bytes) -> tuple[Any, int]:
    """Return the JSON part of a binary answer and the number of bytes behind it, which that must announce."""
    length = int(headers["inference-header-content-length"])
    header = json.loads(body[:length])
    behind = len(body) - length
    assert sum(tensor["parameters"]["binary_data_size"] for tensor in header["outputs"]) == behind
    return header, behind


def captured(file: Path) -> tuple[str, str, dict[str, str], bytes]:
    """Return method, path, headers and body of a captured HTTP/1.1 request, chunks joined."""
    head, _, body = file.read_bytes().replace(b"\r\n\r\n", b"\n\n", 1).partition(b"\n\n")
    first, *lines = head.decode("latin-1").splitlines()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = first.split(" ")
    return method, path, headers, body[: int(headers["content-length"])]


@pytest.mark.shared
@pytest.mark.skipif(not CLIENTS, reason="needs the shared folder beside the repository")
def test_the_captured_requests_are_found():
    assert len(CLIENTS) >= 13


@pytest.mark.shared
@pytest.mark.parametrize("file", CLIENTS, ids=lambda file: file.stem)
async def test_a_real_clients_request_is_answered_as_that_client_parses_it(open_client, file):
    method, path, headers, body = captured(file)
    path = "/" if path == "/ep" else path  # where that client was told the endpoint is
    async with open_client() as client:
        answer = await client.request(method, path, headers=headers, content=body)
    if b"candidate_labels" in body:  # zero-shot classification, which is not served here
        assert answer.status_code == 400
        assert isinstance(answer.json()["error"], str)
        return
    assert answer.status_code == 200
    wanted = json.loads(body)["parameters"]["top_k"] if body.startswith(b"{") else 5
    assert names(answer.json()) == [{"label": "str", "score": ANY_NUMBER}] * wanted
