from __future__ import annotations

import base64
import json

import numpy as np
import pytest

pytestmark = pytest.mark.anyio

CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(data: bytes) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url(data), "detail": "low"}}


def request(*parts, **fields):
    return {"model": "tiny", "messages": [{"role": "user", "content": list(parts)}], **fields}


def enum(*labels, name="label"):
    value = {"type": "string", "enum": list(labels)}
    schema = {
        "type": "object",
        "properties": {name: value},
        "required": [name],
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": schema},
    }


def plain_enum(*labels):
    schema = {"type": "string", "enum": list(labels)}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.fixture
async def client(open_client):
    async with open_client() as client:
        yield client


async def content_of(client, *parts, **fields):
    answer = await client.post(CHAT, json=request(*parts, **fields))
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


async def ranked(client, picture):
    [prediction] = (await client.post("/v1/classify", content=picture)).json()["predictions"]
    return prediction["labels"]


# ---- chat


async def test_without_a_closed_set_the_answer_is_the_best_class(client, png):
    assert await content_of(client, image(png(3))) == (await ranked(client, png(3)))[0]


async def test_the_answer_is_the_best_of_the_closed_set(client, png):
    best, *others = await ranked(client, png(3))
    assert json.loads(await content_of(client, image(png(3)), response_format=enum(*others))) == {
        "label": others[0]
    }
    assert (
        await content_of(client, image(png(3)), response_format=plain_enum(*others[1:]))
        == others[1]
    )
    assert best not in others


async def test_the_key_of_the_object_is_the_schemas(client, png):
    content = await content_of(client, image(png()), response_format=enum("hen", name="animal é"))
    assert json.loads(content) == {"animal é": "hen"}


@pytest.mark.parametrize("kind", ["text", "json_object", None])
async def test_the_other_response_formats_hold_every_class(client, png, kind):
    content = await content_of(client, image(png()), response_format=kind and {"type": kind})
    label = json.loads(content)["label"] if kind == "json_object" else content
    assert label == (await ranked(client, png()))[0]


async def test_the_logarithms_are_of_the_softmax_over_the_closed_set(
    client, png, direct_logits, served
):
    labels = ["hen", "jay", "lynx"]
    fields = {"response_format": enum(*labels), "logprobs": True, "top_logprobs": 20}
    answer = (await client.post(CHAT, json=request(image(png(3)), **fields))).json()
    [token] = answer["choices"][0]["logprobs"]["content"]
    logits = direct_logits(3)[[served.classes.index(label) for label in labels]]
    expected = dict(zip(labels, logits - np.log(np.exp(logits).sum()), strict=True))
    found = {entry["token"]: entry["logprob"] for entry in token["top_logprobs"]}
    assert found == pytest.approx(expected, abs=1e-4)
    assert token["token"] == max(expected, key=expected.__getitem__)
    assert token["logprob"] == found[token["token"]]
    assert bytes(token["bytes"]).decode() == token["token"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"top_logprobs": 2}, 2),
        ({"top_logprobs": 0}, 0),
        ({}, 0),
        ({"top_logprobs": None}, 0),
        ({"top_logprobs": 20}, 7),
    ],
)
async def test_top_logprobs_are_as_many_as_asked_for(client, png, fields, count):
    answer = (await client.post(CHAT, json=request(image(png()), logprobs=True, **fields))).json()
    [token] = answer["choices"][0]["logprobs"]["content"]
    assert len(token["top_logprobs"]) == count


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": None}])
async def test_nobody_gets_logprobs_unasked(client, png, fields):
    answer = (await client.post(CHAT, json=request(image(png()), **fields))).json()
    assert answer["choices"][0]["logprobs"] is None


async def test_the_owners_top_k_holds_for_logprobs(open_client, png):
    async with open_client(top_k=2) as client:
        answer = (
            await client.post(CHAT, json=request(image(png()), logprobs=True, top_logprobs=20))
        ).json()
    assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2


async def test_a_server_of_labels_has_no_logprobs(open_client, png):
    async with open_client(output="label") as client:
        answer = (
            await client.post(CHAT, json=request(image(png()), logprobs=True, top_logprobs=3))
        ).json()
    assert answer["choices"][0]["logprobs"] is None
    assert answer["choices"][0]["message"]["content"]


async def test_the_usage_counts_words_and_patches(client, png):
    text = {"type": "text", "text": "which of these is it"}
    messages = [
        {"role": "system", "content": "one label"},
        *request(text, image(png()))["messages"],
    ]
    answer = (await client.post(CHAT, json={"model": "tiny", "messages": messages})).json()
    assert answer["usage"] == {
        "prompt_tokens": 2 + 5 + 16,
        "completion_tokens": 1,
        "total_tokens": 24,
    }


async def test_parameters_of_sampling_change_nothing(client, png):
    steered = await content_of(
        client, image(png()), temperature=1.5, max_tokens=1, seed=3, top_p=0.1, user="me", n=1
    )
    assert steered == await content_of(client, image(png()))


@pytest.mark.parametrize("form", ["a text as the url", "webp"])
async def test_other_forms_of_a_picture_are_read(client, png, form):
    part = {
        "type": "image_url",
        "image_url": url(png()) if form != "webp" else {"url": url(png(), "image/webp")},
    }
    assert await content_of(client, part) == await content_of(client, image(png()))


WRONG_SCHEMAS = {
    "no schema": {"type": "json_schema"},
    "a schema that is a list": {"type": "json_schema", "json_schema": {"schema": []}},
    "two properties": {
        "type": "json_schema",
        "json_schema": {
            "schema": {
                "type": "object",
                "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
            }
        },
    },
    "no property": {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "object", "properties": {}}},
    },
    "properties are a list": {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "object", "properties": []}},
    },
    "a number": {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    },
    "an unknown label": enum("hen", "unicorn"),
    "an empty enum": enum(),
    "an enum of numbers": enum(1, 2),
    "a label twice": plain_enum("hen", "hen"),
    "an enum that is a text": {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "string", "enum": "hen"}},
    },
    "an unknown type": {"type": "grammar"},
    "a text": "json",
    "a list": ["hen"],
}


@pytest.mark.parametrize("response_format", WRONG_SCHEMAS.values(), ids=WRONG_SCHEMAS)
async def test_a_closed_set_that_cannot_be_read_is_400(client, png, response_format):
    answer = await client.post(CHAT, json=request(image(png()), response_format=response_format))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "unicorn" not in answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True},
        {"n": 2},
        {"n": "1"},
        {"top_logprobs": 3},
        {"logprobs": False, "top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 21},
        {"logprobs": True, "top_logprobs": -1},
        {"logprobs": True, "top_logprobs": True},
        {"logprobs": True, "top_logprobs": 1.5},
        {"logprobs": 3},
        {"messages": []},
        {"messages": None},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"messages": [{"role": "user", "content": "no image"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": ["text"]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 3}}]}
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "http://h/a.png"}}],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:text/html,x"}}],
                }
            ]
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}],
                }
            ]
        },
    ],
)
async def test_a_wrong_request_is_400_in_their_form(client, png, fields):
    answer = await client.post(CHAT, json=request(image(png())) | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert isinstance(answer.json()["error"]["message"], str)


async def test_two_pictures_are_400(client, png):
    answer = await client.post(CHAT, json=request(image(png()), image(png(1))))
    assert answer.status_code == 400
    assert "got 2" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, EMBED])
@pytest.mark.parametrize("model", ["gpt-5", None, 3, ["tiny"]])
async def test_an_unknown_model_is_404_with_its_code(client, png, path, model):
    answer = await client.post(path, json=request(image(png())) | {"model": model})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_a_bad_picture_has_its_code(client):
    answer = await client.post(CHAT, json=request(image(b"no picture")))
    assert answer.json()["error"]["code"] == "invalid_image"


async def test_an_embedding_server_does_not_chat(open_client, png):
    async with open_client(output="embedding") as client:
        assert (await client.post(CHAT, json=request(image(png())))).status_code == 400


# ---- embeddings


@pytest.mark.parametrize("path", [EMBED, "/embeddings"])
async def test_embeddings_are_the_pooled_features_in_order(client, png, path):
    answer = (
        await client.post(path, json={"model": "tiny", "input": [url(png(0)), url(png(1))]})
    ).json()
    assert [row["index"] for row in answer["data"]] == [0, 1]
    for seed, row in enumerate(answer["data"]):
        [expected] = (
            await client.post("/pipeline/feature-extraction?pool=true", content=png(seed))
        ).json()
        assert row["embedding"] == pytest.approx(expected, abs=1e-5)
    assert answer["usage"] == {"prompt_tokens": 32, "total_tokens": 32}


async def test_base64_is_little_endian_float32(client, png):
    fields = {"model": "tiny", "input": url(png())}
    floats, packed = [
        (await client.post(EMBED, json=fields | {"encoding_format": name})).json()["data"][0][
            "embedding"
        ]
        for name in ("float", "base64")
    ]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == floats


async def test_messages_and_modality_are_two_dialects_of_the_same(client, png):
    forms = [
        {"input": url(png())},
        {"input": [url(png())], "modality": "image", "dimensions": 24},
        {"messages": request(image(png()))["messages"], "input": "x"},
    ]
    answers = [
        (await client.post(EMBED, json={"model": "tiny", **form})).json()["data"] for form in forms
    ]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input": []},
        {"input": "a cat"},
        {"input": ["a cat"]},
        {"input": [1, 2]},
        {"input": {"image": "aGk="}},
        {"input": "aGk="},
        {"input": "http://localhost/a.png"},
        {"input": "data:image/png;base64,aGk="},
        {"input": "data:image/png;base64,aGk=", "modality": "text"},
        {"input": "data:image/png;base64,aGk=", "encoding_format": "int8"},
        {"input": "data:image/png;base64,aGk=", "encoding_format": ["float"]},
        {"input": "data:image/png;base64,aGk=", "dimensions": 8},
        {"messages": []},
    ],
)
async def test_wrong_embeddings_are_400(client, fields):
    answer = await client.post(EMBED, json={"model": "tiny", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"output": "label"}])
async def test_embeddings_are_refused_where_the_owner_keeps_scores_back(open_client, png, settings):
    async with open_client(**settings) as client:
        assert (
            await client.post(EMBED, json={"model": "tiny", "input": url(png())})
        ).status_code == 400
