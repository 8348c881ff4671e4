from __future__ import annotations

import base64

import pytest

from mock_server.faults import FaultPlan

pytestmark = pytest.mark.anyio

ENDPOINT = "/v1/projects/p/locations/us-central1/endpoints/42"


def request(*pictures: bytes, **parameters: float) -> dict[str, object]:
    instances = [{"content": base64.b64encode(picture).decode()} for picture in pictures]
    return {"instances": instances, "parameters": parameters}


@pytest.fixture
async def client(open_client, wire_served):
    async with open_client(wire_served) as client:
        yield client


async def predict(client, *pictures, **parameters):
    answer = await client.post(
        f"{ENDPOINT}:predict?$alt=json", json=request(*pictures, **parameters)
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_prediction_is_ids_names_and_confidences_best_first(client, wire_served, png):
    own = (await client.post("/v1/classify", content=png())).json()["predictions"][0]
    [prediction] = (await predict(client, png()))["predictions"]
    assert prediction["displayNames"] == own["labels"]
    assert prediction["confidences"] == pytest.approx(own["scores"])
    assert [wire_served.classes[int(place)] for place in prediction["ids"]] == own["labels"]


async def test_several_pictures_keep_their_order(client, png):
    alone = [(await predict(client, png(i)))["predictions"][0]["ids"] for i in range(3)]
    together = (await predict(client, *(png(i) for i in range(3))))["predictions"]
    assert [prediction["ids"] for prediction in together] == alone


@pytest.mark.parametrize(("most", "count"), [(1, 1), (2.0, 2), (5, 5), (100.0, 7)])
async def test_max_predictions_is_the_most_also_as_a_float(client, png, most, count):
    [prediction] = (await predict(client, png(), maxPredictions=most))["predictions"]
    assert [len(values) for values in prediction.values()] == [count] * 3


async def test_the_threshold_keeps_what_reaches_it(client, png):
    [complete] = (await predict(client, png()))["predictions"]
    third = complete["confidences"][2]
    [kept] = (await predict(client, png(), confidenceThreshold=third))["predictions"]
    assert kept["confidences"] == complete["confidences"][:3]


async def test_a_threshold_that_nothing_reaches_leaves_empty_lists(client, png):
    [prediction] = (await predict(client, png(), confidenceThreshold=1.5))["predictions"]
    assert prediction == {"ids": [], "displayNames": [], "confidences": []}


async def test_the_owners_top_k_holds(open_client, wire_served, png):
    async with open_client(wire_served, top_k=2) as client:
        [prediction] = (await predict(client, png(), maxPredictions=5))["predictions"]
    assert len(prediction["ids"]) == 2


async def test_the_answer_names_the_model(client, png):
    answer = await predict(client, png())
    assert answer["model"] == "projects/p/locations/us-central1/models/vit"
    assert answer["modelDisplayName"] == "vit"
    assert answer["deployedModelId"]


async def test_the_endpoint_describes_itself(client):
    answer = (await client.get(ENDPOINT)).json()
    assert answer == {"name": "projects/p/locations/us-central1/endpoints/42", "displayName": "vit"}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"instances": []},
        {"instances": [{"content": "aGk="}]},
        {"instances": [{"content": None}]},
        {"instances": [{"gcsUri": "gs://a/b"}]},
        {"instances": ["aGk="], "parameters": [1]},
        {"instances": ["aGk="], "parameters": {"maxPredictions": 0}},
        {"instances": ["aGk="], "parameters": {"maxPredictions": 1.5}},
        {"instances": ["aGk="], "parameters": {"maxPredictions": "5"}},
        {"instances": ["aGk="], "parameters": {"maxPredictions": True}},
        {"instances": ["aGk="], "parameters": {"confidenceThreshold": "high"}},
        {"instances": ["aGk="], "parameters": {"top_k": 1}},
        {"instances": ["aGk="], "labels": {}},
    ],
)
async def test_a_wrong_request_is_an_invalid_argument(client, content):
    answer = await client.post(f"{ENDPOINT}:predict", json=content)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["status"]) == (400, "INVALID_ARGUMENT")
    assert isinstance(error["message"], str)


async def test_an_infinite_limit_is_refused(client, png):
    body = b'{"instances": ["aGk="], "parameters": {"maxPredictions": 1e999}}'
    assert (await client.post(f"{ENDPOINT}:predict", content=body)).status_code == 400


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (401, "UNAUTHENTICATED"),
        (404, "NOT_FOUND"),
        (418, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (502, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
async def test_every_status_has_googles_name(open_client, wire_served, png, status, name):
    faults = FaultPlan.parse({"rules": [{"kind": "status", "status": status}]})
    async with open_client(wire_served, faults=faults) as client:
        answer = await client.post(f"{ENDPOINT}:predict", json=request(png()))
    assert answer.status_code == answer.json()["error"]["code"] == status
    assert answer.json()["error"]["status"] == name
