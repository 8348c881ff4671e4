from __future__ import annotations

import base64

import pytest

pytestmark = pytest.mark.anyio

PREDICT = "/v1/models/vit:predict"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
async def client(open_client, wire_served):
    async with open_client(wire_served) as client:
        yield client


async def scores(client, served, picture):
    """Return the scores of ``picture`` in the model's order, as the other protocol says them."""
    ranked = (await client.post("/v1/classify", content=picture)).json()["predictions"][0]
    found = dict(zip(ranked["labels"], ranked["scores"], strict=True))
    return [found[label] for label in served.classes]


async def test_a_prediction_is_every_score_in_the_models_order(client, wire_served, png):
    answer = await client.post(
        PREDICT, json={"instances": [{"b64": b64(png(i))} for i in range(3)]}
    )
    expected = [await scores(client, wire_served, png(i)) for i in range(3)]
    for found, row in zip(answer.json()["predictions"], expected, strict=True):
        assert found == pytest.approx(row, abs=1e-5)


FORMS = [
    lambda text: text,
    lambda text: f"data:image/png;base64,{text}",
    lambda text: {"b64": text},
    lambda text: {"content": text},
    lambda text: {"image_bytes": {"b64": text}},
    lambda text: {"image": {"b64": text}, "key": "7"},
    lambda text: {"bytes": text},
    lambda text: {"content": text, "mimeType": "image/png"},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "path", [PREDICT, "/v1/models/vit/versions/1:predict", "/v1/models/vit/labels/stable:predict"]
)
async def test_every_form_of_an_instance_is_one_picture(client, wire_served, png, form, path):
    answer = await client.post(
        path, json={"instances": [form(b64(png()))], "signature_name": "any"}
    )
    assert answer.json()["predictions"][0] == pytest.approx(
        await scores(client, wire_served, png()), abs=1e-5
    )


@pytest.mark.parametrize("named", [True, False])
async def test_columns_are_answered_as_columns(client, png, named):
    column = [{"b64": b64(png(i))} for i in range(2)]
    columns = await client.post(
        PREDICT, json={"inputs": {"image_bytes": column} if named else column}
    )
    rows = await client.post(PREDICT, json={"instances": column})
    assert columns.json() == {"outputs": rows.json()["predictions"]}


@pytest.mark.parametrize(("settings", "count"), [({"top_k": 2}, 2), ({"output": "label"}, 1)])
async def test_where_scores_are_kept_back_a_prediction_names_its_labels(
    open_client, wire_served, png, settings, count
):
    async with open_client(wire_served, **settings) as client:
        [prediction] = (await client.post(PREDICT, json={"instances": [b64(png())]})).json()[
            "predictions"
        ]
        own = (await client.post("/v1/classify", content=png())).json()["predictions"][0]
    assert prediction == own
    assert len(prediction["labels"]) == count


async def test_the_owners_output_and_rounding_hold(open_client, wire_served, png):
    async with open_client(wire_served, output="logits", decimals=2) as client:
        [found] = (await client.post(PREDICT, json={"instances": [b64(png())]})).json()[
            "predictions"
        ]
        assert found == await scores(client, wire_served, png())
    assert sum(found) != pytest.approx(1)
    assert found == [round(score, 2) for score in found]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"instances": []},
        {"instances": {}},
        {"instances": "aGk="},
        {"instances": None},
        {"instances": [1]},
        {"instances": [None]},
        {"instances": [[0.0]]},
        {"instances": [{}]},
        {"instances": [{"key": "1"}]},
        {"instances": [{"b64": "aGk=", "image": "aGk="}]},
        {"instances": [{"b64": 3}]},
        {"instances": [{"image": {"bytes": "aGk="}}]},
        {"instances": [{"image": {"b64": {"b64": "aGk="}}}]},
        {"instances": [{"url": "http://localhost/a.png"}]},
        {"instances": ["http://localhost/a.png"]},
        {"instances": ["/etc/passwd"]},
        {"instances": ["aGk="]},
        {"instances": ["not base64"]},
        {"instances": ["aGk="], "inputs": ["aGk="]},
        {"instances": ["aGk="], "parameters": {"top_k": 1}},
        {"inputs": {"b64": "aGk="}},
        {"inputs": {"image": ["aGk="], "bytes": ["aGk="]}},
        {"inputs": {}},
        {"inputs": {"else": ["aGk="]}},
        {"inputs": None},
    ],
)
async def test_a_wrong_request_is_400_with_a_text(client, content):
    answer = await client.post(PREDICT, json=content)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert isinstance(answer.json()["error"], str)


async def test_one_bad_picture_refuses_the_request(client, png):
    assert (await client.post(PREDICT, json={"instances": [b64(png()), "aGk="]})).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/x:predict",
        "/v1/models/vit/versions/2:predict",
        "/v1/models/vit/labels/canary:predict",
    ],
)
async def test_an_unknown_model_version_or_label_is_404(client, png, path):
    answer = await client.post(path, json={"instances": [b64(png())]})
    assert answer.status_code == 404
    assert isinstance(answer.json()["error"], str)


async def test_the_list_of_models_suits_kserve_and_openai(client):
    answer = (await client.get("/v1/models")).json()
    assert answer["models"] == [entry["id"] for entry in answer["data"]] == ["vit"]
    assert answer["object"] == "list"


async def test_a_model_is_ready_by_its_name_only(client):
    known, unknown = await client.get("/v1/models/vit"), await client.get("/v1/models/x")
    assert known.json()["ready"] is True
    assert known.json()["model_version_status"][0]["state"] == "AVAILABLE"
    assert unknown.status_code == 404
