"""What holds on every protocol: keys, limits, error forms, faults, metrics, and nothing that is not
JSON.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from mock_server.app import create_app
from mock_server.faults import FaultPlan
from mock_server.settings import Settings

pytestmark = pytest.mark.anyio

ENDPOINT = "/v1/projects/p/locations/l/endpoints/e"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def pictures_input(picture: bytes) -> dict[str, Any]:
    tensor = {"name": "pictures", "shape": [1], "datatype": "BYTES", "data": [b64(picture)]}
    return {"inputs": [tensor], "outputs": [{"name": "logits"}]}


def chat(picture: bytes) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(picture)}"}}
    return {"model": "vit", "messages": [{"role": "user", "content": [part]}]}


@dataclass(frozen=True)
class Way:
    """One way to send one image."""

    path: str
    content: Callable[[bytes], bytes]
    protocol: str
    bad_image: int = 400
    bad_json: int = 400
    unauthorized: int = 401
    method: str = "POST"

    async def send(
        self, client: httpx.AsyncClient, picture: bytes, **headers: str
    ) -> httpx.Response:
        return await client.request(
            self.method, self.path, content=self.content(picture), headers=headers
        )


def as_json(make: Callable[[bytes], Any]) -> Callable[[bytes], bytes]:
    return lambda picture: json.dumps(make(picture)).encode()


def raw(picture: bytes) -> bytes:
    return picture


WAYS = {
    "pgn": Way("/v1/classify", raw, "pgn", bad_image=422),
    "huggingface": Way("/", raw, "huggingface"),
    "zero-shot": Way(
        "/",
        as_json(lambda p: {"inputs": b64(p), "parameters": {"candidate_labels": ["cat", "dog"]}}),
        "huggingface",
    ),
    "features": Way("/pipeline/feature-extraction", raw, "huggingface"),
    "oip": Way("/v2/models/vit/infer", as_json(pictures_input), "oip"),
    "v1": Way("/v1/models/vit:predict", as_json(lambda p: {"instances": [{"b64": b64(p)}]}), "v1"),
    "vertex": Way(
        f"{ENDPOINT}:predict", as_json(lambda p: {"instances": [{"content": b64(p)}]}), "vertex"
    ),
    "sagemaker": Way("/invocations", raw, "sagemaker"),
    "sagemaker runtime": Way(
        "/endpoints/e/invocations",
        raw,
        "sagemaker_runtime",
        bad_image=424,
        bad_json=424,
        unauthorized=403,
    ),
    "torchserve": Way("/predictions/vit", raw, "torchserve", bad_image=503, bad_json=503),
    "torchserve put": Way(
        "/predictions/vit/1.0", raw, "torchserve", bad_image=503, bad_json=503, method="PUT"
    ),
    "chat": Way("/v1/chat/completions", as_json(chat), "openai"),
    "embeddings": Way("/v1/embeddings", as_json(chat), "openai"),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def message_of(protocol: str, answer: httpx.Response) -> str:
    """Return the message of an error where its protocol keeps it, and check that nothing else is
    there.
    """
    content = answer.json()
    if protocol in ("pgn", "vertex", "openai"):
        keys = {"pgn": {"code", "message", "request_id"}, "vertex": {"code", "message", "status"}}
        assert content["error"].keys() == keys.get(protocol, {"message", "type", "param", "code"})
        return content["error"]["message"]
    if protocol == "torchserve":
        assert content.keys() == {"code", "type", "message"}
        assert content["code"] == answer.status_code
        return content["message"]
    if protocol == "sagemaker_runtime":
        assert answer.headers["x-amzn-errortype"]
        return content.get("message") or content["Message"]
    assert content.keys() <= {"error", "estimated_time"}
    return content["error"]


@every_way
async def test_every_way_answers_a_picture(open_client, wire_served, png, way):
    async with open_client(wire_served) as client:
        answer = await way.send(client, png())
    assert answer.status_code == 200, answer.text


@every_way
async def test_no_content_type_is_needed(open_client, wire_served, png, way):
    async with open_client(wire_served) as client:
        request = client.build_request(way.method, way.path, content=way.content(png()))
        request.headers.pop("content-type", None)
        assert (await client.send(request)).status_code == 200


@every_way
async def test_a_key_is_wanted_and_never_repeated(open_client, wire_served, png, way):
    async with open_client(wire_served, api_key="s3cret") as client:
        for headers in (
            {},
            {"Authorization": "Bearer wr0ng"},
            {"X-API-Key": "wr0ng"},
            {"Authorization": "s3cret"},
        ):
            answer = await way.send(client, png(), **headers)
            assert answer.status_code == way.unauthorized
            assert not {"s3cret", "wr0ng"} & set(message_of(way.protocol, answer).split())


@every_way
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer s3cret"},
        {"authorization": "bearer  s3cret"},
        {"X-API-Key": "s3cret"},
    ],
)
async def test_the_key_opens_as_bearer_token_and_as_header(
    open_client, wire_served, png, way, headers
):
    async with open_client(wire_served, api_key="s3cret") as client:
        assert (await way.send(client, png(), **headers)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ping",
        "/health",
        "/readyz",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/vit/ready",
        "/v1/models",
        "/v1/models/vit",
        ENDPOINT,
    ],
)
async def test_health_and_readiness_are_free(open_client, wire_served, path):
    async with open_client(wire_served, api_key="s3cret") as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/vit", "/v1/model"])
async def test_what_describes_the_model_wants_the_key(open_client, wire_served, path):
    async with open_client(wire_served, api_key="s3cret") as client:
        assert (await client.get(path)).status_code == 401


@pytest.mark.parametrize(
    "path", ["/ping", "/v2/health/ready", "/v2/models/vit/ready", "/v1/models/vit"]
)
async def test_readiness_is_503_while_loading(wire_served, path):
    async with loading(wire_served) as client:
        assert (await client.get(path)).status_code == 503


def loading(served: Any) -> httpx.AsyncClient:
    """Return a client of a server whose lifespan has not begun."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(Settings(), served)), base_url="http://server"
    )


@every_way
async def test_a_loading_model_is_503_in_the_protocols_form(wire_served, png, way):
    async with loading(wire_served) as client:
        answer = await way.send(client, png())
    assert answer.status_code == 503
    assert "loading" in message_of(way.protocol, answer)
    assert answer.headers["retry-after"] == "1"


@every_way
async def test_a_bad_picture_is_refused_in_the_protocols_form(open_client, wire_served, way):
    async with open_client(wire_served) as client:
        answer = await way.send(client, b"no picture")
    assert answer.status_code == way.bad_image
    assert message_of(way.protocol, answer)


@every_way
async def test_bad_json_is_refused_in_the_protocols_form(open_client, wire_served, way):
    async with open_client(wire_served) as client:
        for body in (b"{", b'{"a": NaN}', b"[" * 10_000, b'{"inputs": "\xff"}'):
            headers = {"Content-Type": "application/json"}
            answer = await client.request(way.method, way.path, content=body, headers=headers)
            assert answer.status_code == way.bad_json
            assert len(answer.content) < 1000
            assert message_of(way.protocol, answer)


@every_way
async def test_a_body_over_the_limit_is_413(open_client, wire_served, png, way):
    async with open_client(wire_served, max_body_bytes=50) as client:
        answer = await way.send(client, png())
    assert answer.status_code == 413
    assert "50 bytes" in message_of(way.protocol, answer)


@every_way
async def test_a_body_over_the_limit_without_a_length_is_413(open_client, wire_served, png, way):
    async def chunks():
        for byte in way.content(png()):
            yield bytes([byte])

    async with open_client(wire_served, max_body_bytes=50) as client:
        assert (await client.request(way.method, way.path, content=chunks())).status_code == 413


@every_way
async def test_a_bomb_of_pixels_is_413(open_client, wire_served, bomb, way):
    async with open_client(wire_served) as client:
        answer = await way.send(client, bomb(20_000))
    assert answer.status_code == 413
    assert "pixels" in message_of(way.protocol, answer)


@every_way
@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_packed_body_is_unpacked(open_client, wire_served, png, way, encoding, pack):
    async with open_client(wire_served) as client:
        packed = pack(way.content(png()))
        answer = await client.request(
            way.method, way.path, content=packed, headers={"Content-Encoding": encoding}
        )
    assert answer.status_code == 200


@every_way
async def test_a_packed_bomb_is_413(open_client, wire_served, way):
    async with open_client(wire_served, max_body_bytes=10_000) as client:
        headers = {"Content-Encoding": "gzip"}
        answer = await client.request(
            way.method, way.path, content=gzip.compress(bytes(10**6)), headers=headers
        )
    assert answer.status_code == 413
    assert "unpacked" in message_of(way.protocol, answer)


@pytest.mark.parametrize(
    ("encoding", "spoil"),
    [
        ("gzip", lambda packed: packed[:-9]),
        ("gzip", lambda packed: packed + b"more"),
        ("gzip", lambda packed: b"plain" + packed),
        ("br", lambda packed: packed),
        ("gzip, gzip", lambda packed: packed),
    ],
)
async def test_a_body_that_cannot_be_unpacked_is_400(
    open_client, wire_served, png, encoding, spoil
):
    async with open_client(wire_served) as client:
        body, headers = spoil(gzip.compress(png())), {"Content-Encoding": encoding}
        assert (await client.post("/", content=body, headers=headers)).status_code == 400


@every_way
async def test_an_empty_body_is_refused(open_client, wire_served, way):
    async with open_client(wire_served) as client:
        assert (await client.request(way.method, way.path)).status_code == way.bad_json


@every_way
async def test_a_full_queue_is_503_in_the_protocols_form(open_client, wire_served, png, way):
    async with open_client(wire_served) as client:
        client._transport.app.state.service._batcher._max_queue = 0  # as if others had filled it
        answer = await way.send(client, png())
    assert answer.status_code == 503
    assert message_of(way.protocol, answer) == "the queue is full; try again later"


class NotFinite(torch.nn.Module):
    num_features = 24

    def forward(self, x):
        return torch.full((len(x), 7), torch.nan)

    def forward_features(self, x):
        return torch.full((len(x), 2, 24), torch.inf)

    def forward_head(self, x, pre_logits=False):
        return x[:, 0]


@every_way
async def test_what_is_not_finite_never_leaves(open_client, wire_served, png, way):
    async with open_client(replace(wire_served, network=NotFinite())) as client:
        answer = await way.send(client, png())
    assert answer.status_code in (500, 424, 503)
    assert message_of(way.protocol, answer)
    assert not {"nan", "inf", "infinity"} & set(answer.text.lower().replace(":", " ").split())


@every_way
async def test_a_mistake_of_the_server_has_the_protocols_form(open_client, wire_served, png, way):
    async with open_client(wire_served) as client:
        client._transport.app.state.service.ask = lambda *_: 1 / 0
        answer = await way.send(client, png())
    assert answer.status_code in (500, 424, 503)
    assert "division" not in answer.text
    assert message_of(way.protocol, answer)


@every_way
async def test_faults_reach_every_way(open_client, wire_served, png, way):
    rules = [
        {"kind": "status", "status": 429, "retry_after": "7", "count": 1},
        {"kind": "malformed_json", "first": 2},
    ]
    async with open_client(wire_served, faults=FaultPlan.parse({"rules": rules})) as client:
        limited = await way.send(client, png())
        cut = await way.send(client, png())
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "7")
    assert message_of(way.protocol, limited)
    with pytest.raises(json.JSONDecodeError):
        cut.json()


@every_way
async def test_the_metrics_count_every_way_under_its_protocol(open_client, wire_served, png, way):
    async with open_client(wire_served) as client:
        await way.send(client, png())
        lines = (await client.get("/metrics")).text.splitlines()
    assert f'pgn_requests_total{{protocol="{way.protocol}",status="200"}} 1.0' in lines
    assert "pgn_images_total 1.0" in lines


@every_way
async def test_a_request_id_comes_back(open_client, wire_served, png, way):
    async with open_client(wire_served) as client:
        answer = await way.send(client, png(), **{"X-Request-Id": "abc"})
    assert answer.headers["x-request-id"] == "abc"


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        ("/v2/nothing", "oip"),
        ("/v1/models/vit/nothing", "v1"),
        ("/v1/projects/p", "vertex"),
        ("/endpoints/x", "sagemaker_runtime"),
        ("/predictions/vit/1.0/x", "torchserve"),
        ("/v1/chat/x", "openai"),
        ("/models/x", "huggingface"),
        ("/nothing", "pgn"),
    ],
)
async def test_an_unknown_path_has_the_protocols_form(open_client, wire_served, path, protocol):
    async with open_client(wire_served) as client:
        answer = await client.get(path)
    assert answer.status_code in (404, 405)
    assert message_of(protocol, answer)


@every_way
async def test_a_wrong_method_has_the_protocols_form(open_client, wire_served, way):
    async with open_client(wire_served) as client:
        answer = await client.delete(way.path)
    assert answer.status_code == 405
    assert message_of(way.protocol, answer)


COMPLETE = {"features", "oip", "embeddings"}


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"output": "label"}], ids=["top-k", "label"])
@every_way
async def test_what_the_owner_keeps_back_stays(open_client, wire_served, png, way, settings):
    """At most two of the seven class names are in any answer; where there is no such form it is a
    400.
    """
    async with open_client(wire_served, **settings) as client:
        answer = await way.send(client, png())
    if way in [WAYS[name] for name in COMPLETE]:
        assert answer.status_code == 400
        assert "best labels only" in message_of(way.protocol, answer)
        return
    assert answer.status_code == 200
    named = [name for name in wire_served.classes if f'"{name}"' in answer.text.replace("\\", "")]
    assert 1 <= len(named) <= 2


EMBEDDING_WAYS = {
    "pgn",
    "huggingface",
    "features",
    "oip",
    "v1",
    "vertex",
    "sagemaker",
    "sagemaker runtime",
} | {
    "torchserve",
    "torchserve put",
    "embeddings",
}


def numbers(value: Any) -> list[float]:
    """Return every float of an answer, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for entry in value for number in numbers(entry)]
    return [value] if isinstance(value, float) else []


@every_way
async def test_an_embedding_server_answers_the_same_vector_everywhere(
    open_client, wire_served, png, way
):
    async with open_client(wire_served, output="embedding", decimals=3) as client:
        expected = (await WAYS["pgn"].send(client, png())).json()["predictions"][0]["scores"]
        picture = png()
        if way is WAYS["oip"]:
            tensor = pictures_input(picture) | {"outputs": [{"name": "embedding"}]}
            answer = await client.post(way.path, json=tensor)
        else:
            answer = await way.send(client, picture)
    if way not in [WAYS[name] for name in EMBEDDING_WAYS]:
        assert answer.status_code == 400
        return
    assert answer.status_code == 200
    assert np.allclose(numbers(answer.json()), expected)
    assert len(expected) == 24
