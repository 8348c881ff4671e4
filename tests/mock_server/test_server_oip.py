from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
import torch

from mock_server.preprocess import Jpeg, Profile

pytestmark = pytest.mark.anyio

INFER = "/v2/models/vit/infer"
TENSOR = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)
PIXELS = np.arange(0, 240, 5, dtype=np.uint8).reshape(1, 3, 4, 4)
SIZE = {"binary_data_size": 192}


def images(**changes):
    """Return a JSON request for the logits of `TENSOR`; None removes a field of its input."""
    tensor = {
        "name": "images",
        "shape": [1, 3, 4, 4],
        "datatype": "FP32",
        "data": TENSOR.ravel().tolist(),
    } | changes
    tensor = {name: value for name, value in tensor.items() if value is not None}
    return {"inputs": [tensor], "outputs": [{"name": "logits"}]}


def pictures(*data, shape=None, **changes):
    tensor = {
        "name": "pictures",
        "shape": shape or [len(data)],
        "datatype": "BYTES",
        "data": list(data),
    } | changes
    return {"inputs": [tensor], "outputs": [{"name": "logits"}]}


def binary(content, tail):
    header = json.dumps(content).encode()
    return {
        "content": header + tail,
        "headers": {"Inference-Header-Content-Length": str(len(header))},
    }


def elements(*files):
    return b"".join(struct.pack("<I", len(file)) + file for file in files)


def b64(data):
    return base64.b64encode(data).decode()


def output(answer, name="logits"):
    assert answer.status_code == 200, answer.text
    [found] = [tensor for tensor in answer.json()["outputs"] if tensor["name"] == name]
    return np.array(found["data"]).reshape(found["shape"])


def plain(network, values):
    with torch.no_grad():
        return network(torch.from_numpy(np.array(values)).float()).double().numpy()


@pytest.fixture
async def client(open_client, wire_served):
    async with open_client(wire_served) as client:
        yield client


# ---- what goes in


@pytest.mark.parametrize("data", [TENSOR.ravel().tolist(), TENSOR.tolist()], ids=["flat", "nested"])
async def test_a_tensor_is_what_the_model_sees(client, wire_served, data):
    found = output(await client.post(INFER, json=images(data=data)))
    assert np.abs(found - plain(wire_served.network, TENSOR)).max() < 1e-4


async def test_neither_profile_nor_jpeg_touches_a_tensor(open_client, wire_served):
    switches = {"profile": Profile("resize_crop", 8, 4), "jpeg": Jpeg(10)}
    async with open_client(wire_served, **switches) as client:
        found = output(await client.post(INFER, json=images()))
    assert np.abs(found - plain(wire_served.network, TENSOR)).max() < 1e-4


@pytest.mark.parametrize("form", ["json", "binary"])
async def test_uint8_pixels_are_normalised_and_nothing_else(client, wire_served, form):
    if form == "json":
        request = {"json": images(datatype="UINT8", data=PIXELS.tolist())}
    else:
        request = binary(
            images(datatype="UINT8", data=None, parameters={"binary_data_size": 48}),
            PIXELS.tobytes(),
        )
    found = output(await client.post(INFER, **request))
    assert np.abs(found - plain(wire_served.network, (PIXELS / 255 - 0.5) / 0.5)).max() < 1e-4


@pytest.mark.parametrize("form", ["json", "nested json", "binary"])
async def test_pictures_go_through_the_servers_preprocessing(client, png, form):
    files = [png(i, (9, 7)) for i in range(3)]
    requests = {
        "json": {"json": pictures(*map(b64, files))},
        "nested json": {"json": pictures(*[[b64(file)] for file in files], shape=[3, 1])},
        "binary": binary(
            {
                "inputs": [
                    {
                        "name": "pictures",
                        "shape": [3],
                        "datatype": "BYTES",
                        "parameters": {"binary_data_size": len(elements(*files))},
                    }
                ],
                "outputs": [{"name": "logits"}],
            },
            elements(*files),
        ),
    }
    found = output(await client.post(INFER, **requests[form]))
    labels = ["goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay"]
    for row, file in zip(found, files, strict=True):
        alone = await client.post("/?function_to_apply=none&top_k=9", content=file)
        scores = {entry["label"]: entry["score"] for entry in alone.json()}
        assert row.tolist() == pytest.approx([scores[label] for label in labels], abs=1e-4)


async def test_a_batch_keeps_its_order(client, wire_served):
    batch = np.concatenate([TENSOR, -TENSOR, TENSOR * 0.5])
    found = output(
        await client.post(INFER, json=images(shape=[3, 3, 4, 4], data=batch.ravel().tolist()))
    )
    assert np.abs(found - plain(wire_served.network, batch)).max() < 1e-4


async def test_a_shortest_edge_server_takes_tensors_that_are_not_square(make_served, open_client):
    served = make_served(dynamic_img_size=True, dynamic_img_pad=True)
    async with open_client(served, profile=Profile("shortest_edge", 32)) as client:
        wide = images(shape=[1, 3, 32, 40], data=[0.0] * (3 * 32 * 40))
        assert output(await client.post("/v2/models/tiny/infer", json=wide)).shape == (1, 7)
        long = images(shape=[1, 3, 32, 129], data=[0.0] * (3 * 32 * 129))
        assert (await client.post("/v2/models/tiny/infer", json=long)).status_code == 400
        assert (await client.get("/v2/models/tiny")).json()["inputs"][0]["shape"] == [-1, 3, -1, -1]


# ---- what comes out


async def test_probabilities_are_the_softmax_of_the_logits(client):
    request = images() | {"outputs": []}
    answer = await client.post(INFER, json=request)
    logits, probabilities = output(answer, "logits"), output(answer, "probabilities")
    assert np.abs(np.exp(logits) / np.exp(logits).sum() - probabilities).max() < 1e-6


@pytest.mark.parametrize(("chosen", "first"), [("probs", "probabilities"), ("logits", "logits")])
async def test_the_owners_output_is_listed_and_answered_first(
    open_client, wire_served, chosen, first
):
    async with open_client(wire_served, output=chosen) as client:
        listed = (await client.get("/v2/models/vit")).json()["outputs"]
        answered = (await client.post(INFER, json={"inputs": images()["inputs"]})).json()["outputs"]
    assert listed[0] == {"name": first, "datatype": "FP32", "shape": [-1, 7]}
    assert [tensor["name"] for tensor in answered] == [tensor["name"] for tensor in listed]


async def test_outputs_come_in_the_order_that_is_asked_for_with_json_and_binary_mixed(client):
    mixed = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    answer = await client.post(INFER, json=images() | {"outputs": mixed})
    length = int(answer.headers["inference-header-content-length"])
    first, second = json.loads(answer.content[:length])["outputs"]
    assert np.frombuffer(answer.content[length:], "<f4").shape == (7,)
    assert first["parameters"] == {"binary_data_size": 28}
    assert len(second["data"]) == 7


async def test_json_and_binary_say_the_same(client):
    asked = images()
    asked["outputs"][0]["parameters"] = {"binary_data": True}
    packed = await client.post(INFER, json=asked)
    length = int(packed.headers["inference-header-content-length"])
    plain_json = output(await client.post(INFER, json=images()))
    assert np.array_equal(
        np.frombuffer(packed.content[length:], "<f4"), plain_json[0].astype(np.float32)
    )


async def test_the_owners_rounding_holds(open_client, wire_served):
    async with open_client(wire_served, decimals=1) as client:
        found = output(await client.post(INFER, json=images()))
    assert np.array_equal(found, np.round(found, 1))


async def test_a_raw_request_is_the_tensor_alone_and_answered_in_binary(client, wire_served):
    two = np.concatenate([TENSOR, -TENSOR])
    answer = await client.post(
        INFER, content=two.tobytes(), headers={"Inference-Header-Content-Length": "0"}
    )
    length = int(answer.headers["inference-header-content-length"])
    outputs = json.loads(answer.content[:length])["outputs"]
    logits = np.frombuffer(answer.content[length + 56 :], "<f4").reshape(2, 7)
    assert [tensor["name"] for tensor in outputs] == ["probabilities", "logits"]
    assert np.abs(logits - plain(wire_served.network, two)).max() < 1e-4


@pytest.mark.parametrize("identity", ["a", "", "é", "\ud800"])
async def test_an_id_comes_back(client, identity):
    answer = await client.post(INFER, content=json.dumps(images() | {"id": identity}))
    assert answer.json()["id"] == identity.encode("utf-8", "replace").decode()


async def test_no_id_is_none(client):
    assert "id" not in (await client.post(INFER, json=images())).json()


async def test_classification_is_value_index_and_label_best_first(client):
    asked = images() | {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}
    rows = output(await client.post(INFER, json=asked))
    logits = output(await client.post(INFER, json=images()))[0]
    best = np.argsort(-logits)[:3]
    names = ["goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay"]
    assert rows.tolist() == [[f"{logits[i]:f}:{i}:{names[i]}" for i in best]]


@pytest.mark.parametrize(
    ("settings", "asked", "given"),
    [({}, 100, 7), ({"top_k": 2}, 5, 2), ({"top_k": 5}, 2, 2), ({"output": "label"}, 5, 1)],
)
async def test_classification_holds_the_owners_limit(
    open_client, wire_served, settings, asked, given
):
    request = images() | {
        "outputs": [{"name": "probabilities", "parameters": {"classification": asked}}]
    }
    async with open_client(wire_served, **settings) as client:
        assert output(await client.post(INFER, json=request), "probabilities").shape == (1, given)


async def test_the_metadata_hold_what_a_client_needs_to_make_tensors(open_client, wire_served):
    async with open_client(wire_served, top_k=3) as client:
        parameters = (await client.get("/v2/models/vit/versions/1")).json()["parameters"]
    assert parameters["mean"] == parameters["std"] == [0.5, 0.5, 0.5]
    assert parameters["classes"][3] == "cat"
    assert parameters["top_k"] == 3
    assert parameters["profile"] == "direct"


# ---- what is refused

WRONG = {
    "no inputs": {},
    "inputs are no list": {"inputs": {}},
    "an input is no object": {"inputs": ["images"]},
    "no input at all": {"inputs": []},
    "two inputs": {"inputs": [images()["inputs"][0]] * 2},
    "unknown input": images(name="image"),
    "unhashable name": images(name=["images"]),
    "no name": images(name=None),
    "FP16 in JSON": images(datatype="FP16"),
    "unknown datatype": images(datatype="FP128"),
    "unhashable datatype": images(datatype=["FP32"]),
    "no shape": images(shape=None),
    "a shape that is no list": images(shape=48),
    "three dimensions": images(shape=[3, 4, 4]),
    "NHWC": images(shape=[1, 4, 4, 3]),
    "another size": images(shape=[1, 3, 2, 2], data=[0.0] * 12),
    "empty batch": images(shape=[0, 3, 4, 4], data=[]),
    "negative side": images(shape=[-1, 3, 4, 4]),
    "a side that is a truth value": images(shape=[True, 3, 4, 4]),
    "a side that is a float": images(shape=[1.0, 3, 4, 4]),
    "enormous": images(shape=[2**30, 3, 4, 4]),
    "beyond enormous": images(shape=[2**70, 3, 4, 4]),
    "too little data": images(data=[0.0] * 47),
    "too much data": images(data=[0.0] * 49),
    "no data": images(data=None),
    "data are an object": images(data={}),
    "data are text": images(data="0" * 48),
    "texts in the data": images(data=["0"] * 48),
    "truth values in the data": images(data=[True] * 48),
    "nulls in the data": images(data=[None] * 48),
    "ragged data": images(data=[[0.0] * 47, 0.0]),
    "nested otherwise": images(data=TENSOR.reshape(4, 4, 3).tolist()),
    "too deep": images(data=json.loads("[" * 90 + "0" + "]" * 90)),
    "more than a float32 holds": images(data=[1e39] * 48),
    "more than an int64 holds": images(data=[10**30] * 48),
    "pixels over 255": images(datatype="UINT8", data=[256] * 48),
    "pixels below 0": images(datatype="UINT8", data=[-1] * 48),
    "pixels that are floats": images(datatype="UINT8", data=[0.5] * 48),
    "a binary size without bytes": images(data=None, parameters=SIZE),
    "data and a binary size": images(parameters=SIZE),
    "images of another datatype": pictures("aGk=", datatype="FP32"),
    "images that are numbers": pictures(1),
    "images that are no base64": pictures("ä"),
    "images that are a path": pictures("/etc/passwd"),
    "images that are a URL": pictures("http://localhost/a.png"),
    "more images than the shape says": pictures("aGk=", "aGk=", shape=[1]),
    "images of shape [B, 2]": pictures("aGk=", "aGk=", shape=[1, 2]),
    "images of no shape": pictures("aGk=", shape=[1, 1, 1]),
    "unknown output": images() | {"outputs": [{"name": "labels"}]},
    "embedding of a classifier": images() | {"outputs": [{"name": "embedding"}]},
    "outputs are an object": images() | {"outputs": {"name": "logits"}},
    "an output is a text": images() | {"outputs": ["logits"]},
    "parameters are a list": images() | {"parameters": [1]},
    "classification is negative": images()
    | {"outputs": [{"name": "logits", "parameters": {"classification": -1}}]},
    "classification is a truth value": images()
    | {"outputs": [{"name": "logits", "parameters": {"classification": True}}]},
    "binary_data is a text": images()
    | {"outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]},
    "output parameters are a list": images() | {"outputs": [{"name": "logits", "parameters": [1]}]},
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
async def test_a_wrong_request_is_400_with_a_text(client, content):
    answer = await client.post(INFER, json=content)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert isinstance(answer.json()["error"], str)


BINARY = images(data=None, parameters=SIZE)
BODY, TAIL = json.dumps(BINARY).encode(), TENSOR.tobytes()


def with_length(content, length):
    return {"content": content, "headers": {"Inference-Header-Content-Length": length}}


def of_files(data, count=1):
    tensor = {
        "name": "pictures",
        "shape": [count],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    return binary({"inputs": [tensor]}, data)


WRONG_BYTES = {
    "bytes are missing": binary(BINARY, TAIL[:-1]),
    "bytes are left": binary(BINARY, TAIL + b"x"),
    "bytes that nobody announced": binary(images(), TAIL),
    "a size that is a text": binary(
        images(data=None, parameters={"binary_data_size": "192"}), TAIL
    ),
    "a shape of other bytes": binary(images(data=None, shape=[2, 3, 4, 4], parameters=SIZE), TAIL),
    "not a number": binary(BINARY, np.full(48, np.nan, np.float32).tobytes()),
    "length beyond the body": with_length(BODY + TAIL, "99999"),
    "length that is no number": with_length(BODY + TAIL, "x"),
    "negative length": with_length(BODY + TAIL, "-1"),
    "length with too many digits": with_length(BODY + TAIL, "9" * 5000),
    "length that cuts the JSON": with_length(BODY + TAIL, "20"),
    "no length": {"content": BODY + TAIL},
    "raw bytes of no whole image": with_length(TAIL + b"x", "0"),
    "an element beyond its tensor": of_files(struct.pack("<I", 9) + b"abc"),
    "half a length": of_files(b"\x01\x00"),
    "fewer elements than the shape says": of_files(elements(b"a"), 2),
    "an empty element": of_files(elements(b"")),
}


@pytest.mark.parametrize("request_", WRONG_BYTES.values(), ids=WRONG_BYTES)
async def test_wrong_bytes_are_400_with_a_text(client, request_):
    answer = await client.post(INFER, **request_)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)
    assert len(answer.content) < 500


async def test_one_bad_picture_refuses_the_request(client, png):
    answer = await client.post(INFER, json=pictures(b64(png()), b64(b"none")))
    assert answer.status_code == 400


async def test_more_pictures_than_the_queue_holds_are_400(open_client, wire_served):
    async with open_client(wire_served, max_queue=2) as client:
        answer = await client.post(INFER, json=images(shape=[3, 3, 4, 4], data=[0.0] * 144))
    assert answer.status_code == 400
    assert "at most 2" in answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/x/infer",
        "/v2/models/vit/versions/2/infer",
        "/v2/models/VIT/infer",
        "/v2/models//infer",
    ],
)
async def test_an_unknown_model_or_version_is_404_and_not_repeated(client, path):
    answer = await client.post(path, json=images())
    assert answer.status_code == 404
    assert "x" not in answer.json()["error"].split()


@pytest.mark.parametrize("settings", [{"top_k": 3}, {"output": "label"}])
@pytest.mark.parametrize("outputs", [[], [{"name": "probabilities"}], [{"name": "logits"}]])
async def test_complete_tensors_are_refused_where_the_owner_keeps_scores_back(
    open_client, wire_served, settings, outputs
):
    async with open_client(wire_served, **settings) as client:
        answer = await client.post(INFER, json=images() | {"outputs": outputs})
    assert answer.status_code == 400
    assert "best labels only" in answer.json()["error"]


async def test_an_embedding_server_answers_the_pooled_features(open_client, wire_served):
    async with open_client(wire_served, output="embedding") as client:
        found = output(await client.post(INFER, json={"inputs": images()["inputs"]}), "embedding")
        listed = (await client.get("/v2/models/vit")).json()["outputs"]
        logits = await client.post(INFER, json=images())
        one = {"name": "embedding", "parameters": {"classification": 2}}
        ranked = await client.post(INFER, json=images() | {"outputs": [one]})
    with torch.no_grad():
        network = wire_served.network
        expected = network.forward_head(
            network.forward_features(torch.from_numpy(TENSOR)), pre_logits=True
        ).numpy()
    assert np.abs(found - expected).max() < 1e-5
    assert listed == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 24]}]
    assert [logits.status_code, ranked.status_code] == [400, 400]
