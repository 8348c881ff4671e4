"""Rule 23: what is missing is told by the constructor; ``check`` asks the endpoint."""

from __future__ import annotations

import asyncio
import importlib.util

import httpx
import pytest
from wire.fakes import CARD, Server, ToyAdapter, async_client, client

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.checkpoint import write
from pgn_client.errors import (
    AuthenticationError,
    CheckpointError,
    ConfigurationError,
    ConnectionFailedError,
    MissingDependencyError,
)

both = pytest.mark.parametrize("kind", [AdaptedClient, AsyncAdaptedClient])


@both
def test_a_missing_checkpoint_is_told_by_the_constructor(kind, tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        kind("http://127.0.0.1:9", tmp_path / "none.safetensors")


@both
def test_a_file_that_is_no_checkpoint_is_told_by_the_constructor(kind, tmp_path):
    (tmp_path / "no.safetensors").write_text("no")
    with pytest.raises(CheckpointError):
        kind("http://127.0.0.1:9", tmp_path / "no.safetensors")


@both
@pytest.mark.parametrize("thing", [3, object(), ["a.safetensors"]])
def test_a_thing_that_is_no_adapter_is_told_by_the_constructor(kind, thing):
    with pytest.raises(ConfigurationError, match="pgn_ckpt: got"):
        kind("http://127.0.0.1:9", thing)


def without_torch(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else found(name, *a)
    )


def test_missing_torch_is_told_by_the_constructor(tmp_path, monkeypatch):
    write(tmp_path / "a.safetensors", {"method": "pgn", "classes": ["a", "b"]}, {})
    without_torch(monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pgn-client\[train\]'"):
        AdaptedClient("http://127.0.0.1:9", tmp_path / "a.safetensors")


def test_a_label_mapping_needs_no_torch(tmp_path, monkeypatch):
    write(tmp_path / "a.safetensors", {"method": "raw", "classes": ["a", "b"]}, {})
    without_torch(monkeypatch)
    AdaptedClient("http://127.0.0.1:9", tmp_path / "a.safetensors").close()


def test_check_returns_the_description_and_sends_no_image():
    server = Server()
    with client(server, ToyAdapter()) as c:
        assert c.check().name == "toy"
    assert server.requests == []


def test_check_of_asyncio_too():
    async def ask() -> str:
        async with async_client(Server(), ToyAdapter()) as c:
            return (await c.check()).name

    assert asyncio.run(ask()) == "toy"


@pytest.mark.parametrize(
    ("card", "error"),
    [
        ({**CARD, "input_size": 16}, CheckpointError),
        (httpx.Response(401), AuthenticationError),
        (httpx.ConnectError("down"), ConnectionFailedError),
    ],
)
def test_check_tells_what_the_first_image_would_meet(card, error):
    with client(Server(card=card), ToyAdapter()) as c, pytest.raises(error):
        c.check()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.ConnectError("down"), ConnectionFailedError),
        (httpx.Response(403), AuthenticationError),
        # Many endpoints take POST alone.
        (httpx.Response(405), None),
    ],
)
def test_check_reaches_an_endpoint_that_describes_no_model(answer, error):
    def server(request: httpx.Request) -> httpx.Response:
        assert request.method == "GET"
        if isinstance(answer, Exception):
            raise answer
        return answer

    with client(server, protocol="huggingface", max_retries=0) as c:
        if error is None:
            assert c.check() is None
            return
        with pytest.raises(error):
            c.check()
