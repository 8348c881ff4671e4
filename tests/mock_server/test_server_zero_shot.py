from __future__ import annotations

import base64

import numpy as np
import pytest

pytestmark = pytest.mark.anyio


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def request(inputs, *labels, **parameters):
    return {"inputs": inputs, "parameters": {"candidate_labels": list(labels), **parameters}}


@pytest.fixture
async def client(open_client):
    async with open_client() as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/", "/models/any/name", "/hf-inference/models/any/name", "/invocations"]
)
async def test_the_scores_are_the_softmax_over_the_candidates_alone(
    client, png, direct_logits, served, path
):
    labels = ["tabby", "hen", "crane (2)"]
    answer = (await client.post(path, json=request(b64(png(3)), *labels))).json()
    logits = direct_logits(3)[[served.classes.index(label) for label in labels]]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(
        dict(zip(labels, expected, strict=True)), abs=1e-5
    )
    assert [entry["score"] for entry in answer] == sorted(
        (entry["score"] for entry in answer), reverse=True
    )


async def test_every_spelling_of_the_picture_and_a_template_change_nothing(client, png):
    picture = b64(png())
    forms = [picture, {"image": picture}, f"data:image/png;base64,{picture}"]
    answers = [(await client.post("/", json=request(form, "hen", "jay"))).json() for form in forms]
    answers.append(
        (
            await client.post(
                "/", json=request(picture, "hen", "jay", hypothesis_template="a bad photo of {}")
            )
        ).json()
    )
    assert all(answer == answers[0] for answer in answers)


async def test_the_order_of_the_candidates_changes_nothing(client, png):
    one = (await client.post("/", json=request(b64(png()), "hen", "jay"))).json()
    other = (await client.post("/", json=request(b64(png()), "jay", "hen"))).json()
    assert one == other


async def test_a_list_of_pictures_gives_a_list_of_answers(client, png):
    together = (
        await client.post("/", json=request([b64(png(i)) for i in range(2)], "hen", "jay"))
    ).json()
    for i, answer in enumerate(together):
        alone = (await client.post("/", json=request(b64(png(i)), "hen", "jay"))).json()
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in alone]


async def test_more_than_five_candidates_are_all_answered(client, png, served):
    answer = (await client.post("/", json=request(b64(png()), *served.classes))).json()
    assert len(answer) == len(served.classes) == 7


async def test_one_candidate_has_all_the_probability(client, png):
    assert (await client.post("/", json=request(b64(png()), "hen"))).json() == [
        {"label": "hen", "score": 1.0}
    ]


@pytest.mark.parametrize(("settings", "count"), [({"top_k": 2}, 2), ({"output": "label"}, 1)])
async def test_the_owners_limit_holds(open_client, png, settings, count):
    async with open_client(**settings) as client:
        answer = (await client.post("/", json=request(b64(png()), "hen", "jay", "lynx"))).json()
    assert len(answer) == count
    assert {entry["label"] for entry in answer} <= {"hen", "jay", "lynx"}


async def test_the_scores_stay_probabilities_on_a_server_of_logits(open_client, png):
    async with open_client(output="logits") as client:
        answer = (await client.post("/", json=request(b64(png()), "hen", "jay"))).json()
    assert sum(entry["score"] for entry in answer) == pytest.approx(1)


@pytest.mark.parametrize("unknown", ["unicorn", "Hen", "hen ", "", "class_0"])
async def test_an_unknown_candidate_is_400_and_says_so_without_repeating_it(client, png, unknown):
    answer = await client.post("/", json=request(b64(png()), "hen", unknown))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("1 of the candidate labels are unknown")
    assert "unicorn" not in answer.text


@pytest.mark.parametrize(
    "parameters",
    [
        {"candidate_labels": []},
        {"candidate_labels": "hen"},
        {"candidate_labels": "hen,jay"},
        {"candidate_labels": {"hen": 1}},
        {"candidate_labels": ["hen", 3]},
        {"candidate_labels": ["hen", None]},
        {"candidate_labels": [["hen"]]},
        {"candidate_labels": ["hen", "hen"]},
        {"candidate_labels": ["hen"], "hypothesis_template": 3},
        {"candidate_labels": ["hen"], "function_to_apply": "sigmoid"},
        {"candidate_labels": ["hen"], "top_k": 0},
        {"candidate_labels": ["hen"], "multi_label": True},
        {"hypothesis_template": "a photo of {}"},
    ],
)
async def test_wrong_candidates_are_400(client, png, parameters):
    answer = await client.post("/", json={"inputs": b64(png()), "parameters": parameters})
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


async def test_candidates_are_no_query_parameter(client, png):
    assert (await client.post("/?candidate_labels=hen", content=png())).status_code == 400
