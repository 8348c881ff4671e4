"""Embeddings: the Hugging Face route, our own protocol, and a server that answers nothing else."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from mock_server.errors import ConfigurationError
from mock_server.model import Asked
from mock_server.settings import Settings

pytestmark = pytest.mark.anyio

PATHS = [
    "/pipeline/feature-extraction",
    "/models/a/b/pipeline/feature-extraction",
    "/hf-inference/models/a/b/pipeline/feature-extraction",
]
EXTRACT = PATHS[0]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
async def client(open_client):
    async with open_client() as client:
        yield client


@pytest.fixture
def features(served, picture):
    """Return a function from an image's seed to its tokens (N, D) and pooled features (D,), by the
    plain model.
    """

    def ask(seed=0):
        pixels = torch.from_numpy(np.asarray(picture(seed)).copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            tokens = served.network.forward_features((pixels / 255 - 0.5) / 0.5)
            pooled = served.network.forward_head(tokens, pre_logits=True)
        return tokens[0].double().numpy(), pooled[0].double().numpy()

    return ask


@pytest.mark.parametrize("path", PATHS)
async def test_pool_gives_one_row_of_pooled_features(client, png, features, path):
    answer = await client.post(path, json={"inputs": b64(png()), "parameters": {"pool": True}})
    assert np.allclose(answer.json(), features()[1][None], atol=1e-4)


@pytest.mark.parametrize("parameters", [{}, {"pool": False}])
@pytest.mark.parametrize("path", PATHS)
async def test_without_pool_it_is_the_last_hidden_state(client, png, features, path, parameters):
    answer = await client.post(path, json={"inputs": b64(png()), "parameters": parameters})
    assert np.array(answer.json()).shape == (1, 17, 24)
    assert np.allclose(answer.json(), features()[0][None], atol=1e-4)


@pytest.mark.parametrize("inputs", ["text", "object", "data URL", "raw"])
async def test_every_form_of_a_picture_is_accepted(client, png, inputs):
    text = b64(png())
    forms = {"text": text, "object": {"image": text}, "data URL": f"data:image/png;base64,{text}"}
    if inputs == "raw":
        answer = await client.post(f"{EXTRACT}?pool=true", content=png())
    else:
        answer = await client.post(
            EXTRACT, json={"inputs": forms[inputs], "parameters": {"pool": True}}
        )
    assert np.array(answer.json()).shape == (1, 24)


async def test_a_list_gives_a_list_in_order(client, png, features):
    request = {"inputs": [b64(png(i)) for i in range(3)], "parameters": {"pool": True}}
    answer = (await client.post(EXTRACT, json=request)).json()
    assert np.allclose(answer, [[features(i)[1]] for i in range(3)], atol=1e-4)


@pytest.mark.parametrize(
    "content",
    [
        {"inputs": "hello"},
        {"inputs": "aGk="},
        {"inputs": []},
        {"inputs": None},
        {},
        {"inputs": "aGk=", "parameters": {"pool": "yes"}},
        {"inputs": "aGk=", "parameters": {"pool": [True]}},
        {"inputs": "aGk=", "parameters": {"top_k": 1}},
        {"inputs": "aGk=", "parameters": {"candidate_labels": ["hen"]}},
    ],
)
async def test_a_wrong_request_is_400(client, content):
    answer = await client.post(EXTRACT, json=content)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"output": "label"}])
@pytest.mark.parametrize("pool", [True, False])
async def test_features_are_refused_where_the_owner_keeps_scores_back(
    open_client, png, settings, pool
):
    async with open_client(**settings) as client:
        answer = await client.post(
            EXTRACT, json={"inputs": b64(png()), "parameters": {"pool": pool}}
        )
    assert answer.status_code == 400


async def test_the_owners_rounding_holds(open_client, png):
    async with open_client(decimals=1) as client:
        [row] = (await client.post(f"{EXTRACT}?pool=true", content=png())).json()
    assert row == [round(number, 1) for number in row]


# ---- a server that answers nothing but embeddings


@pytest.mark.parametrize("path", ["/", "/models/x", "/hf-inference/models/x", *PATHS])
async def test_every_hugging_face_path_of_an_embedding_server_is_pooled_features(
    open_client, png, features, path
):
    async with open_client(output="embedding") as client:
        raw = await client.post(path, content=png())
        packed = await client.post(path, json={"inputs": b64(png()), "parameters": {"pool": True}})
    assert np.allclose(raw.json(), features()[1][None], atol=1e-4)
    assert np.allclose(packed.json(), raw.json(), atol=1e-6)


@pytest.mark.parametrize(
    "parameters", [{"pool": False}, {"top_k": 2}, {"candidate_labels": ["hen"]}]
)
async def test_an_embedding_server_has_no_tokens_and_no_labels(open_client, png, parameters):
    async with open_client(output="embedding") as client:
        assert (
            await client.post("/", json={"inputs": b64(png()), "parameters": parameters})
        ).status_code == 400


async def test_our_own_protocol_names_the_places_of_an_embedding(open_client, png, features):
    async with open_client(output="embedding") as client:
        answer = (await client.post("/v1/classify", content=png())).json()
        card = (await client.get("/v1/model")).json()
    [prediction] = answer["predictions"]
    assert answer["output"] == card["output"] == "embedding"
    assert prediction["labels"] == card["classes"] == [str(place) for place in range(24)]
    assert np.allclose(prediction["scores"], features()[1], atol=1e-4)


async def test_a_bad_picture_among_embeddings_has_its_error_in_its_place(open_client, png):
    async with open_client(output="embedding") as client:
        answer = await client.post("/v1/classify", json={"images": [b64(png()), "aGk="]})
    good, bad = answer.json()["predictions"]
    assert len(good["scores"]) == 24
    assert bad["error"]["code"] == "invalid_image"


@pytest.mark.parametrize("form", ["query", "json"])
async def test_an_embedding_has_no_top_k(open_client, png, form):
    async with open_client(output="embedding") as client:
        if form == "query":
            answer = await client.post("/v1/classify?top_k=3", content=png())
        else:
            answer = await client.post("/v1/classify", json={"images": [b64(png())], "top_k": 3})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_an_embedding_and_a_limit_on_labels_do_not_go_together():
    with pytest.raises(ConfigurationError, match="--top-k limits labels"):
        Settings.from_arguments(["--output", "embedding", "--top-k", "3"])


# ---- one pass


def test_what_is_asked_together_shares_one_pass(make_served):
    served = make_served()
    passes = []
    served.network.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    pixels = np.zeros((3, 32, 32), np.float32)
    logits, embedding, tokens = served.run(
        [Asked(pixels, want) for want in ("logits", "embedding", "tokens")]
    )
    assert len(passes) == 1
    assert (logits.shape, embedding.shape, tokens.shape) == ((7,), (24,), (17, 24))
    assert np.allclose(logits, served.run([Asked(pixels)])[0], atol=1e-5)


def test_asking_for_logits_alone_is_the_plain_network(served):
    pixels = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        assert np.array_equal(
            served.run([Asked(pixels)])[0],
            served.network(torch.from_numpy(pixels[None]))[0].numpy(),
        )


def test_the_width_is_that_of_an_embedding(served):
    assert served.width == len(
        served.run([Asked(np.zeros((3, 32, 32), np.float32), "embedding")])[0]
    )
