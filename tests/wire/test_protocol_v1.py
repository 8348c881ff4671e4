"""``kserve-v1`` and ``vertex``."""

from __future__ import annotations

import base64
import json

import httpx
import pytest
from hypothesis import given

from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import MalformedAnswerError, Payload, WireResponse
from pgn_client.wire.protocols.base import explain
from pgn_client.wire.protocols.kserve_v1 import V1, Vertex
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

CLASSES = ("goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay")
VERTEX = "http://h/v1/projects/p/locations/us-central1/endpoints/42:predict"


def v1(url: str = "http://h", model: str | None = "vit", **endpoint) -> V1:
    return V1.of(Endpoint(url, "kserve-v1", model, **endpoint))


def vertex(**endpoint) -> Vertex:
    return Vertex.of(Endpoint(VERTEX, "vertex", **endpoint))


def of_golden(name: str) -> tuple[Payload, dict]:
    """Return the image in a golden request, and the request."""
    request = golden(name)["request"]
    instance = request["json"]["instances"][0]
    while isinstance(instance, dict):
        instance = next(value for key, value in instance.items() if key != "key")
    return Payload(base64.b64decode(instance), "image/png"), request


# ---- what is sent


@pytest.mark.parametrize(
    ("name", "form"),
    [("v1_predict_top_k", "b64"), ("v1_predict_label", "b64"), ("v1_predict_plain", "text")],
)
def test_instances_are_those_of_the_contract(name, form):
    payload, request = of_golden(name)
    made = v1(options={"instance": form}).encode([payload])
    assert made.url == f"http://h{request['path']}"
    assert json.loads(made.body)["instances"] == request["json"]["instances"][:1]


def test_a_template_makes_any_instance():
    made = v1(options={"instance": {"img": {"b64": "{base64}"}, "key": "1"}}).encode([picture()])
    encoded = base64.b64encode(picture().data).decode()
    assert json.loads(made.body) == {"instances": [{"img": {"b64": encoded}, "key": "1"}]}


def test_vertex_sends_the_body_of_the_contract():
    payload, request = of_golden("vertex_predict")
    made = vertex().encode([payload])
    assert made.url == f"http://h{request['path']}"
    assert json.loads(made.body) == request["json"]


def test_vertex_sends_its_parameters_along():
    payload, request = of_golden("vertex_predict_parameters")
    made = json.loads(
        vertex(options={"parameters": request["json"]["parameters"]}).encode([payload]).body
    )
    assert made["parameters"] == request["json"]["parameters"]


@pytest.mark.shared
def test_googles_client_sends_the_same_body():
    headers, theirs = sent("vertex_2.7.0__gapic_predict")
    document = json.loads(theirs)
    payload = Payload(base64.b64decode(document["instances"][0]["content"]), "image/jpeg")
    made = vertex(options={"parameters": document["parameters"]}).encode([payload])
    assert json.loads(made.body) == document
    assert headers[":path"].startswith(made.url.removeprefix("http://h"))


@pytest.mark.parametrize(
    "url",
    ["http://h/a", "http://h/a/", "http://h/a/v1/models/vit", "http://h/a/v1/models/vit:predict"],
)
def test_the_address_may_be_that_of_the_server_or_the_model(url):
    assert v1(url).encode([picture()]).url == "http://h/a/v1/models/vit:predict"


def test_a_version_in_the_address_is_kept():
    assert (
        v1("http://h/v1/models/vit/versions/3:predict")
        .encode([picture()])
        .url.endswith("/vit/versions/3:predict")
    )


# ---- what comes back


def test_bare_numbers_get_the_given_names():
    answers = v1(labels=CLASSES).decode(answer_of("v1_predict"))
    assert [answer.labels[0] for answer in answers] == ["cat", "cat"]
    assert {answer.kind for answer in answers} == {"probabilities"}


def test_bare_numbers_that_do_not_sum_to_1_are_logits():
    (answer,) = v1(labels=CLASSES).decode(answer_of("v1_predict_logits"))
    assert answer.kind == "logits"
    (answer,) = v1().decode(ok({"predictions": [[0.1, 0.2, 1.3]]}))
    assert answer.kind == "logits"
    (answer,) = v1().decode(ok({"predictions": [[0.1, 0.2, 0.3]]}))
    assert answer.kind == "unknown"


def test_another_number_of_scores_than_labels_is_refused():
    with pytest.raises(MalformedAnswerError, match="got 7 scores, expected 2"):
        v1(labels=("a", "b")).decode(answer_of("v1_predict_logits"))


@pytest.mark.parametrize("name", ["v1_predict_top_k", "v1_predict_label"])
def test_named_scores_need_no_names(name):
    (answer,) = v1().decode(answer_of(name))
    assert answer.labels[0] == "cat"


def test_an_embedding_is_one_where_the_option_says_so():
    for answer in v1(options={"output": "embedding"}).decode(answer_of("v1_predict_embedding")):
        assert (answer.kind, answer.labels[0]) == ("embedding", "dim 0")
    for answer in vertex(options={"output": "embedding"}).decode(
        answer_of("vertex_predict_embedding")
    ):
        assert answer.kind == "embedding"


@pytest.mark.parametrize(
    "name", ["vertex_predict", "vertex_predict_label", "vertex_predict_parameters"]
)
def test_vertex_answers_of_the_contract_are_understood(name):
    assert all(answer.labels[0] == "cat" for answer in vertex().decode(answer_of(name)))


@pytest.mark.parametrize(
    "prediction",
    [
        {"cat": 0.7, "dog": 0.3},
        [{"label": "dog", "score": 0.3}, {"label": "cat", "score": 0.7}],
        {"labels": ["cat", "dog"], "scores": [0.7, 0.3]},
        {"classes": ["cat", "dog"], "scores": [0.7, 0.3]},
        {"ids": ["1", "2"], "displayNames": ["cat", "dog"], "confidences": [0.7, 0.3]},
        [0.7, 0.3],
        [[0.7, 0.3]],
    ],
    ids=str,
)
def test_every_form_of_a_prediction_is_understood(prediction):
    (answer,) = v1(labels=("cat", "dog")).decode(ok({"predictions": [prediction]}))
    assert (answer.labels, answer.scores, answer.kind) == (
        ("cat", "dog"),
        (0.7, 0.3),
        "probabilities",
    )


BAD = [
    b"",
    b"<html>",
    [],
    {},
    {"predictions": []},
    {"predictions": {}},
    b'{"predictions":[[NaN,1]]}',
]
BAD_ONES = [None, [], {}, "cat", [True, 0.5], [["x"], 1], {"labels": ["a"], "scores": [1, 2]}]


@pytest.mark.parametrize("document", [*BAD, *({"predictions": [one]} for one in BAD_ONES)], ids=str)
def test_what_is_not_its_form_is_refused(document):
    with pytest.raises(MalformedAnswerError):
        v1().decode(ok(document))


@given(ANYTHING)
def test_no_json_makes_it_fail_otherwise(document):
    decodes_or_says_so(v1, {"predictions": [document]})
    decodes_or_says_so(vertex, document)


def test_an_error_of_the_contract_is_told():
    assert explain(answer_of("vertex_error_400"))
    assert "{" not in explain(answer_of("vertex_error_401"))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["kserve0.21.0_v1__predict", "hfit_vertex__instances_dict"])
def test_real_servers_are_understood(name):
    (answer,) = v1().decode(captured(f"resp_{name}"))
    assert answer.labels[0].startswith("class_")


# ---- finding the model


class KServe:
    def __init__(self, *models: str) -> None:
        self.models = models

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(200, json={"models": list(self.models)})
        if path == "/v1/models/vit":
            return httpx.Response(200, json={"name": "vit", "ready": True})
        if path == "/v1/models/vit:predict":
            return httpx.Response(200, json={"predictions": [[0.25, 0.75]]})
        return httpx.Response(404, json={"error": f"Model with name {path} does not exist."})


@pytest.mark.parametrize("options", [{}, {"model": "vit"}, {"protocol": "kserve-v1"}])
def test_a_kserve_server_is_found(options):
    with client(KServe("vit"), labels=["cat", "dog"], **options) as c:
        assert c.classify(image()).label == "dog"
        assert c.protocol.startswith("kserve-v1")


def test_the_list_and_the_word_about_one_model_are_the_contracts():
    assert v1(model=None).described(answer_of("v1_models")).info.name == "vit"
    assert v1().described(answer_of("v1_model")).info.name == "vit"


def test_tensorflow_serving_is_recognised():
    assert (
        v1().described(ok({"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}))
        is not None
    )


def test_several_models_are_named():
    with client(KServe("a", "b")) as c, pytest.raises(ConfigurationError, match="hosts a, b"):
        c.classify(image())


@pytest.mark.parametrize("protocol", ["auto", "vertex"])
def test_vertex_is_told_by_its_url(protocol):
    def server(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/projects/p/locations/us-central1/endpoints/42:predict"
        return httpx.Response(200, json=golden("vertex_predict")["response"]["json"])

    with client(
        server, url=VERTEX.replace("http://h", "http://127.0.0.1:9"), protocol=protocol
    ) as c:
        assert c.classify(image()).label == "cat"
        assert c.protocol.startswith("vertex")


def test_vertex_wants_the_url_of_a_method():
    with pytest.raises(ConfigurationError, match=":predict"):
        client(KServe(), protocol="vertex")


@pytest.mark.parametrize(
    "options", [{"instance": "png"}, {"instance": {"b64": "x"}}, {"instance": 3}, {"inst": "b64"}]
)
def test_wrong_options_are_refused_at_once(options):
    with pytest.raises(ConfigurationError, match="options"):
        v1(options=options)


def test_other_instances_parameters_and_labels_are_other_dialects():
    kinds = [
        {},
        {"options": {"instance": "text"}},
        {"options": {"parameters": {"k": 1}}},
        {"labels": CLASSES},
    ]
    assert len({v1(**kind).dialect for kind in kinds}) == len(kinds)


def test_a_plain_text_answer_is_no_description():
    assert v1().described(WireResponse(404, {}, b"Not Found")) is None
