"""``huggingface-zero-shot`` and ``huggingface-features``."""

from __future__ import annotations

import base64
import json

import httpx
import pytest
from hypothesis import given

from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import MalformedAnswerError, Payload, WireResponse
from pgn_client.wire.protocols.huggingface_tasks import Features, ZeroShot
from tests.wire.exchanges import (
    ANYTHING,
    answer_of,
    captured,
    decodes_or_says_so,
    golden,
    ok,
    picture,
    sent,
)
from tests.wire.fakes import client
from tests.wire.fakes import picture as image

LABELS = ("cat", "dog")


def zero_shot(labels=LABELS, url: str = "http://h/m", **options) -> ZeroShot:
    return ZeroShot.of(Endpoint(url, "huggingface-zero-shot", labels=labels, options=options))


def features(url: str = "http://h/m") -> Features:
    return Features.of(Endpoint(url, "huggingface-features"))


# ---- zero-shot


def test_the_labels_are_sent_along_as_in_the_contract():
    theirs = golden("hf_zero_shot")["request"]["json"]
    request = zero_shot(hypothesis_template="a photo of {}").encode(
        [Payload(base64.b64decode(theirs["inputs"]), "image/png")]
    )
    assert (request.url, json.loads(request.body)) == ("http://h/m", theirs)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "options"),
    [("zeroshot", {}), ("zeroshot_hyp", {"hypothesis_template": "a photo of {}"})],
)
def test_the_hubs_client_sends_the_same(name, options):
    _, theirs = sent(f"hf_hub_2.4.0__{name}")
    document = json.loads(theirs)
    labels = document["parameters"]["candidate_labels"]
    options = {k: document["parameters"][k] for k in options}
    request = zero_shot(labels, **options).encode(
        [Payload(base64.b64decode(document["inputs"]), "image/png")]
    )
    assert json.loads(request.body) == document


@pytest.mark.parametrize("name", ["hf_zero_shot", "hf_zero_shot_object"])
def test_zero_shot_answers_of_the_contract_are_understood(name):
    (answer,) = zero_shot(golden(name)["request"]["json"]["parameters"]["candidate_labels"]).decode(
        answer_of(name)
    )
    assert (answer.labels[0], answer.kind) == ("cat", "probabilities")


def test_a_label_that_was_not_sent_is_refused():
    with pytest.raises(MalformedAnswerError, match="the label lynx"):
        zero_shot().decode(ok([{"label": "cat", "score": 0.6}, {"label": "lynx", "score": 0.4}]))


@pytest.mark.shared
def test_a_real_zero_shot_server_is_understood():
    (answer,) = zero_shot(("a cat", "a dog")).decode(captured("resp_hfit_zeroshot__py_form"))
    assert answer.labels == ("a cat", "a dog")
    with pytest.raises(MalformedAnswerError):
        zero_shot().decode(captured("resp_hfit_zeroshot__raw"))


@pytest.mark.parametrize("labels", [(), ("cat",), ("cat", "cat", "dog")])
def test_labels_are_needed_and_differ(labels):
    with pytest.raises(ConfigurationError, match="labels="):
        client(lambda _: httpx.Response(404), protocol="huggingface-zero-shot", labels=labels)


def test_other_labels_and_words_are_other_dialects():
    assert (
        len(
            {
                zero_shot().dialect,
                zero_shot(("a", "b")).dialect,
                zero_shot(hypothesis_template="a {}").dialect,
            }
        )
        == 3
    )


def test_the_answer_is_in_the_labels_of_the_task():
    def server(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)["parameters"]["candidate_labels"]
        return httpx.Response(
            200, json=[{"label": label, "score": 1 / len(asked)} for label in asked]
        )

    with client(server, protocol="huggingface-zero-shot", labels=["x", "y", "z"]) as c:
        assert set(c.classify(image()).scores) == {"x", "y", "z"}


# ---- features


def test_pooled_features_are_asked_for_as_in_the_contract():
    theirs = golden("hf_features_pool")["request"]
    request = features(f"http://h{theirs['path']}").encode(
        [Payload(base64.b64decode(theirs["json"]["inputs"]), "image/png")]
    )
    assert (request.url, json.loads(request.body)) == (f"http://h{theirs['path']}", theirs["json"])


@pytest.mark.parametrize(
    "name", ["hf_features_pool", "hf_features_tokens", "hf_features_endpoint_json"]
)
def test_features_of_the_contract_are_understood(name):
    (answer,) = features().decode(answer_of(name))
    assert (answer.kind, len(answer.scores)) == ("embedding", 24)


@pytest.mark.parametrize(
    "document", [[1, 2], [[1, 2]], [[[1, 2], [3, 4], [5, 6]]], [[1, 2], [3, 4]]]
)
def test_the_class_token_is_the_picture(document):
    assert features().decode(ok(document))[0].scores == (1.0, 2.0)


@pytest.mark.parametrize(
    "document",
    [b"", None, {}, [], [[]], [[[]]], [[[[1]]]], ["a"], [None], [{"label": "a", "score": 1}]],
)
def test_what_is_no_embedding_is_refused(document):
    with pytest.raises(MalformedAnswerError):
        features().decode(ok(document))


@pytest.mark.shared
def test_a_real_feature_server_is_understood():
    (answer,) = features().decode(captured("resp_hfit_imgfeat__b64_pool"))
    assert len(answer.scores) == 192


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/hf-inference/models/m/pipeline/feature-extraction", None]
)
def test_features_are_told_by_the_url_and_parameters_are_left_out_where_refused(url):
    def server(request: httpx.Request) -> httpx.Response:
        refused = "parameters" in json.loads(request.content)
        return (
            httpx.Response(400, json={"error": "pool"})
            if refused
            else httpx.Response(200, json=[[[1.0], [2.0]]])
        )

    options = {"url": url} if url else {"protocol": "huggingface-features"}
    with client(server, **options) as c:
        assert [c.answer(image(i)).scores for i in range(2)] == [(1.0,), (1.0,)]
        assert c.usage.requests == 3
        assert c.protocol == "huggingface-features plain"


# ---- both


@given(ANYTHING)
def test_no_json_makes_them_fail_otherwise(document):
    for make in (zero_shot, features):
        decodes_or_says_so(make, document)


@pytest.mark.parametrize("make", [zero_shot, features])
def test_a_loading_model_says_for_how_long(make):
    assert make().wait(WireResponse(503, {}, b'{"error": "loading", "estimated_time": 20.0}')) == 20
    assert make().encode([picture()]).headers == {
        "content-type": "application/json",
        "accept": "application/json",
    }


def test_unknown_options_are_refused():
    with pytest.raises(ConfigurationError, match="hypothesis_template"):
        zero_shot(template="x")
