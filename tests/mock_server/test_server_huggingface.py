from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest
import torch

from mock_server.app import create_app
from mock_server.settings import Settings

pytestmark = pytest.mark.anyio

FUNCTIONS = {
    "softmax": lambda x: torch.softmax(x, 0),
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("path", ["/", "/models/any/name", "/hf-inference/models/any/name"])
async def test_the_default_is_the_top_five_by_softmax(open_client, png, direct_logits, path):
    async with open_client() as client:
        answer = (
            await client.post(path, content=png(3), headers={"Content-Type": "image/png"})
        ).json()
    expected = torch.softmax(torch.from_numpy(direct_logits(3)), 0).sort(descending=True).values[:5]
    assert [entry.keys() for entry in answer] == [{"label", "score"}] * 5
    assert [entry["score"] for entry in answer] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("form", ["query", "json"])
async def test_the_parameters_choose_function_and_count(
    open_client, png, direct_logits, function, form
):
    parameters = {"top_k": 6, "function_to_apply": function}
    async with open_client() as client:
        if form == "query":
            answer = (await client.post("/", params=parameters, content=png(3))).json()
        else:
            answer = (
                await client.post("/", json={"inputs": b64(png(3)), "parameters": parameters})
            ).json()
    expected = (
        FUNCTIONS[function](torch.from_numpy(direct_logits(3))).sort(descending=True).values[:6]
    )
    assert [entry["score"] for entry in answer] == pytest.approx(expected.tolist(), abs=1e-5)


async def test_the_servers_top_k_caps_the_requests(open_client, png):
    async with open_client(top_k=2) as client:
        assert len((await client.post("/?top_k=6", content=png())).json()) == 2


async def test_a_list_of_inputs_gives_a_list_of_answers_in_order(open_client, png):
    async with open_client() as client:
        batch = (await client.post("/", json={"inputs": [b64(png(i)) for i in range(3)]})).json()
        alone = [(await client.post("/", content=png(i))).json() for i in range(3)]
    for together, single in zip(batch, alone, strict=True):
        assert [entry["label"] for entry in together] == [entry["label"] for entry in single]
        scores = np.array([[entry["score"] for entry in answer] for answer in (together, single)])
        assert np.abs(scores[0] - scores[1]).max() < 1e-5


async def test_every_spelling_of_one_picture_is_accepted(open_client, png):
    picture = b64(png())
    async with open_client() as client:
        answers = [
            (await client.post("/", json={"inputs": inputs})).json()
            for inputs in (picture, {"image": picture}, f"data:image/png;base64,{picture}")
        ]
    assert answers[0] == answers[1] == answers[2]


async def test_the_label_output_is_one_entry_with_score_one(open_client, png):
    async with open_client(output="label") as client:
        [entry] = (await client.post("/", content=png())).json()
    assert entry["score"] == 1.0


@pytest.mark.parametrize(
    "content",
    [
        {"inputs": "images/cat.png"},
        {"inputs": "http://localhost/cat.png"},
        {"inputs": "data:image/png,raw"},
        {"inputs": []},
        {"inputs": None},
        {"inputs": 3},
        {"inputs": {"url": "x"}},
        {},
        {"inputs": "aGk="},
        {"inputs": "aGk=", "parameters": {"foo": 1}},
        {"inputs": "aGk=", "parameters": {"top_k": 0}},
        {"inputs": "aGk=", "parameters": {"function_to_apply": "tanh"}},
        {"inputs": "aGk=", "parameters": {"function_to_apply": ["softmax"]}},
        {"inputs": "aGk=", "parameters": [1]},
    ],
)
async def test_a_request_that_cannot_be_answered_is_400_in_their_form(open_client, content):
    async with open_client() as client:
        answer = await client.post("/", json=content)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert isinstance(answer.json()["error"], str)


async def test_one_bad_picture_refuses_the_whole_list(open_client, png):
    async with open_client() as client:
        assert (await client.post("/", json={"inputs": [b64(png()), "aGk="]})).status_code == 400


async def test_an_unknown_query_parameter_is_400(open_client, png):
    async with open_client() as client:
        assert (await client.post("/?foo=1", content=png())).status_code == 400


@pytest.mark.parametrize("path", ["/", "/models/{model}", "/hf-inference/models/{model}"])
async def test_openapi_describes_the_answers_to_one_picture_and_to_a_list(open_client, path):
    async with open_client() as client:
        operation = (await client.get("/openapi.json")).json()["paths"][path]["post"]
    one, several = operation["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert (
        one
        == several["items"]
        == {"type": "array", "items": {"$ref": "#/components/schemas/LabelScore"}}
    )
    assert several["type"] == "array"


async def test_a_bomb_is_413_in_their_form(open_client, bomb):
    async with open_client() as client:
        answer = await client.post("/", content=bomb(20_000))
    assert answer.status_code == 413
    assert answer.json().keys() == {"error"}


async def test_the_key_is_wanted_here_too(open_client, png):
    async with open_client(api_key="s3cret") as client:
        answer = await client.post("/models/x", content=png())
    assert answer.status_code == 401
    assert answer.json().keys() == {"error"}


async def test_a_wrong_method_has_their_form(open_client):
    async with open_client() as client:
        answer = await client.get("/models/x")
    assert answer.status_code == 405
    assert answer.json().keys() == {"error"}


async def test_a_loading_model_is_503_with_an_estimate(served, png):
    app = create_app(Settings(), served)  # its lifespan has not begun
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        answer = await client.post("/", content=png())
    assert answer.status_code == 503
    assert answer.json()["estimated_time"] == 20.0
    assert answer.headers["retry-after"] == "1"
