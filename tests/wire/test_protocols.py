from __future__ import annotations

import base64
import json
import math
from email.parser import BytesHeaderParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import (
    PGN,
    PROTOCOLS,
    HuggingFace,
    MalformedAnswerError,
    Payload,
    WireResponse,
    open_protocol,
)
from pgn_client.wire.protocols.base import excerpt, explain
from pgn_client.wire.protocols.huggingface import ALL
from pgn_client.wire.protocols.pgn import decode_model, join

ROOT = Path(__file__).parents[2]
CONTRACT = sorted(
    file
    # classification by the two protocols that are tested here
    for pattern in ("pgn_[!e]*", "pgn_error_*", "hf_[!fz]*")
    for file in (ROOT / "tests/contract/wire").glob(f"{pattern}.json")
)
CAPTURED = ROOT.parent / "shared/golden/wire"
# decode with a fresh one: they learn
HF, RAW = HuggingFace("http://h/m"), HuggingFace("http://h/m", top_k=None)
PNG = Payload(b"\x89PNG...", "image/png")


def ok(document: object) -> WireResponse:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return WireResponse(200, {"content-type": "application/json"}, body)


# ---- encoding


@pytest.mark.parametrize("media_type", ["image/png", "image/webp"])
def test_pgn_posts_the_raw_bytes_of_one_picture(media_type):
    request = PGN("http://h:1/base/").encode([Payload(b"abc", media_type)])
    assert (request.method, request.url, request.body) == (
        "POST",
        "http://h:1/base/v1/classify",
        b"abc",
    )
    assert request.headers == {"content-type": media_type, "accept": "application/json"}


@pytest.mark.parametrize("url", ["http://h", "http://h/", "http://h/v1/classify"])
def test_pgn_finds_its_routes_from_any_spelling_of_the_address(url):
    assert join(url, "/v1/model") == "http://h/v1/model"


def test_a_query_string_stays_at_the_end_of_the_url():
    assert join("http://h/a?k=1", "/v1/classify") == "http://h/a/v1/classify?k=1"


def test_huggingface_asks_for_all_labels_at_the_url_verbatim():
    request = HuggingFace("http://h/m/?x=1").encode([PNG])
    assert request.url == "http://h/m/?x=1"
    assert request.headers == {"content-type": "application/json", "accept": "application/json"}
    assert json.loads(request.body) == {
        "inputs": base64.b64encode(PNG.data).decode(),
        "parameters": {"top_k": ALL},
    }


def test_huggingface_without_parameters_is_the_raw_form():
    request = RAW.encode([PNG])
    assert request.body == PNG.data
    assert request.headers["content-type"] == "image/png"


@pytest.mark.parametrize("status", [400, 415, 422])
def test_huggingface_falls_back_to_the_raw_form_once(status):
    assert HF.fallback(WireResponse(status, {})) == RAW
    assert RAW.fallback(WireResponse(status, {})) is None


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_huggingface_does_not_fall_back_for_other_reasons(status):
    assert HF.fallback(WireResponse(status, {})) is None


def test_an_unknown_protocol_is_refused_with_the_known_names():
    with pytest.raises(ConfigurationError, match=r"auto, custom, huggingface, .*, pgn"):
        open_protocol(Endpoint("http://h", "grpc"))


# ---- decoding


def test_pgn_answers_are_sorted_best_first():
    (answer,) = PGN("http://h").decode(
        ok({"output": "logits", "predictions": [{"labels": ["a", "b"], "scores": [-1, 2.5]}]})
    )
    assert (answer.labels, answer.scores, answer.kind) == (("b", "a"), (2.5, -1.0), "logits")


PGN_BAD = [
    b"",
    b"<html>",
    [],
    {},
    {"output": "probs"},
    {"output": "votes", "predictions": [{"labels": ["a"], "scores": [1]}]},
    {"output": [], "predictions": [{"labels": ["a"], "scores": [1]}]},
    {"output": "probs", "predictions": []},
    {"output": "probs", "predictions": [None]},
    {"output": "probs", "predictions": [{"error": {"code": "invalid_image"}}]},
    {"output": "probs", "predictions": [{"labels": ["a"], "scores": [1, 2]}]},
    {"output": "probs", "predictions": [{"labels": [], "scores": []}]},
    {"output": "probs", "predictions": [{"labels": ["a", "a"], "scores": [0.5, 0.1]}]},
    b'{"output":"probs","predictions":[{"labels":["a"],"scores":[NaN]}]}',
    b'{"output":"probs","predictions":[{"labels":["a"],"scores":[1e999]}]}',
]


@pytest.mark.parametrize("document", PGN_BAD)
def test_pgn_refuses_what_is_not_its_form(document):
    with pytest.raises(MalformedAnswerError):
        PGN("http://h").decode(ok(document))


HF_BAD = [
    None,
    {},
    [],
    3,
    "x",
    [[]],
    [None],
    [{"label": "a"}],
    [{"score": 1}],
    [{"label": "a", "score": None}],
    [{"label": "a", "score": "0.5"}],
    [{"label": "a", "score": True}],
    [{"label": 3, "score": 0.5}],
    [{"label": "a", "score": [0.5]}],
    [[{"label": "a", "score": 0.5}], {"label": "b", "score": 0.1}],
    [[[{"label": "a", "score": 0.5}]]],
    b'[{"label":"a","score":NaN}]',
    b'[{"label":"a","score":-Infinity}]',
    b'[{"label":"a","score":1' + b"0" * 400 + b"}]",
    b'[{"label":"a","score":0.5',
    b"[" * 100_000,
    b"\xff\xfe",
]


@pytest.mark.parametrize("document", HF_BAD, ids=range(len(HF_BAD)))
def test_huggingface_refuses_what_is_not_its_form_in_few_words(document):
    with pytest.raises(MalformedAnswerError) as caught:
        HuggingFace("http://h/m").decode(ok(document))
    assert len(str(caught.value)) < 330
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["label", "score", "x"]), inner)
        ),
        max_leaves=12,
    )
)
def test_no_json_makes_a_decoder_fail_otherwise(document):
    for protocol in (HuggingFace("http://h"), PGN("http://h")):
        try:
            protocol.decode(ok(document))
        except MalformedAnswerError:
            continue


@pytest.mark.parametrize(
    ("scores", "crane"),
    [([0.25, 0.5, 0.25], 0.5), ([1.0, 2.0, 3.0], math.log(math.exp(1) + math.exp(3)))],
)
def test_classes_of_one_name_are_added_up(scores, crane):
    document = [
        {"label": label, "score": s}
        for label, s in zip(["crane", "crow", "crane"], scores, strict=True)
    ]
    (answer,) = HuggingFace("http://h/m").decode(ok(document))
    assert answer.labels == ("crane", "crow")
    assert answer.scores == pytest.approx((crane, scores[1]))


def test_scores_whose_sum_no_float_holds_are_logits():
    (answer,) = HuggingFace("http://h").decode(
        ok([{"label": each, "score": 1e308} for each in ("a", "b")])
    )
    assert (answer.kind, answer.scores) == ("logits", (1e308, 1e308))


def test_a_label_that_no_file_takes_is_refused():
    with pytest.raises(MalformedAnswerError, match="the label"):
        HuggingFace("http://h").decode(ok([{"label": "\ud800", "score": 1.0}]))


def test_a_batch_of_lists_is_one_answer_each():
    answers = HuggingFace("http://h/m").decode(
        ok([[{"label": "a", "score": 0.9}], [{"label": "b", "score": 0.8}]])
    )
    assert [answer.labels for answer in answers] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ([0.7, 0.2], "probabilities"),
        ([0.6004, 0.4004], "probabilities"),
        ([0.7, 0.4], "unknown"),
        ([0.5, -0.1], "logits"),
        ([4.0], "logits"),
    ],
)
def test_huggingface_scores_are_probabilities_unless_they_cannot_be(scores, kind):
    document = [{"label": str(i), "score": s} for i, s in enumerate(scores)]
    assert HuggingFace("http://h/m").decode(ok(document))[0].kind == kind


@pytest.mark.parametrize(
    ("time", "seconds"), [(20.0, 20.0), (3, 3.0), ("20", None), (-1, None), (None, None)]
)
def test_huggingface_reads_the_time_until_a_model_is_loaded(time, seconds):
    assert HF.wait(ok({"error": "loading", "estimated_time": time})) == seconds
    assert HF.wait(ok(b"busy")) is None
    assert HF.wait(ok([1])) is None


# ---- error texts


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": "bad image"}, "bad image"),
        ({"error": ["one", "two"], "warnings": ["w"]}, "one; two"),
        ({"error": {"code": "x", "message": "too large", "request_id": "r"}}, "too large"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"msg": "field required", "loc": ["body"]}]}, "field required"),
        ("just text", "just text"),
        (b"plain text\nin two lines", "plain text in two lines"),
        (b"", "an empty body"),
        (
            b"<html><head><style>x{}</style></head><body><h1>502 Bad&nbsp;Gateway</h1>",
            "502 Bad Gateway",
        ),
        ({"error": None}, '{"error": null}'),
        (b"\x00\x1b[31mred", "[31mred"),
    ],
)
def test_the_message_is_found_in_any_error_body(body, text):
    assert excerpt(explain(ok(body))) == text


@given(st.binary(max_size=1000))
def test_an_excerpt_is_one_short_printable_line(data):
    assert len(excerpt(data)) <= 200
    assert excerpt(data).isprintable()


# ---- the model's description


@pytest.mark.parametrize("card", [{"classes": ["a"]}, {"input_size": 64}, {"profile": "direct"}])
def test_a_model_card_may_lack_the_patch_embedding(card):
    info, _ = decode_model(ok(card))
    assert info.patch_embedding_sha256 is None


def test_a_description_of_no_model_is_not_our_protocol():
    assert decode_model(ok({"ok": "ok"})) is None
    assert decode_model(ok(b"Ok")) is None
    assert decode_model(WireResponse(404, {}, b'{"patch_embedding_sha256": "x"}')) is None


def test_fields_of_a_wrong_type_are_left_out():
    info, limits = decode_model(
        ok(
            {
                "patch_embedding_sha256": "x",
                "name": 3,
                "input_size": "64",
                "classes": [1],
                "limits": {"pixels": -1},
            }
        )
    )
    assert (info.name, info.input_size, info.classes, limits) == ("unnamed", None, None, {})


# ---- exchanges of other people


def headers_of(exchange: dict) -> dict[str, str]:
    return {name.lower(): value for name, value in exchange["request"].get("headers", {}).items()}


@pytest.mark.parametrize("path", CONTRACT, ids=lambda path: path.name)
def test_every_exchange_of_the_contract_is_understood(path):
    exchange = json.loads(path.read_text())
    protocol = HuggingFace("http://h") if path.name.startswith("hf") else PGN("http://h")
    response = WireResponse(
        exchange["response"]["status"], {}, json.dumps(exchange["response"]["json"]).encode()
    )
    if exchange["request"]["path"].endswith("/v1/model") and response.ok:
        assert decode_model(response) is not None
    elif not response.ok:
        assert len(protocol.explain(response)) > 3
    elif b'"error"' in response.body:
        with pytest.raises(MalformedAnswerError):
            protocol.decode(response)
    elif "predictions" in exchange["response"]["json"] or isinstance(
        exchange["response"]["json"], list
    ):
        assert all(answer.labels for answer in protocol.decode(response))


def test_the_contract_has_exchanges():
    assert CONTRACT


@pytest.mark.parametrize("path", CONTRACT, ids=lambda path: path.name)
def test_requests_are_those_of_the_contract(path):
    request = json.loads(path.read_text())["request"]
    if "body_base64" not in request or request["method"] != "POST" or request.get("query"):
        pytest.skip("not a form that the client sends")
    media_type = headers_of({"request": request}).get("content-type")
    if media_type not in ("image/png", "image/webp"):
        pytest.skip("not a form that the client sends")
    image = Payload(base64.b64decode(request["body_base64"]), media_type)
    base = request["path"].removesuffix("/v1/classify")
    made = (RAW if path.name.startswith("hf") else PGN(f"http://h{base}")).encode([image])
    assert made.body == image.data
    assert made.headers["content-type"] == media_type
    if not path.name.startswith("hf"):
        assert made.url == f"http://h{request['path']}"


def captured(name: str) -> WireResponse:
    head, _, body = (CAPTURED / name).read_bytes().replace(b"\r\n", b"\n").partition(b"\n\n")
    status, _, fields = head.partition(b"\n")
    headers = {k.lower(): v for k, v in BytesHeaderParser().parsebytes(fields).items()}
    return WireResponse(int(status.split()[1]), headers, body)


NAMES = sorted(path.name for path in CAPTURED.glob("resp_hf_*.txt"))
NO_CAPTURES = pytest.mark.skipif(not NAMES, reason="captured answers lie outside the repository")


@pytest.mark.shared
@NO_CAPTURES
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_real_servers_answers_are_understood_or_explained(name):
    response = captured(name)
    if not response.ok:
        assert len(excerpt(HF.explain(response))) > 1
    elif response.body.startswith(b"["):
        for answer in HuggingFace("http://h/m").decode(response):
            assert all(label.startswith("class_") for label in answer.labels)
            kinds = {"json_fn": "logits", "sigmoid": "unknown"}
            expected = [kind for part, kind in kinds.items() if part in name]
            assert [answer.kind] == (expected or ["probabilities"])
    else:
        with pytest.raises(MalformedAnswerError):
            HuggingFace("http://h/m").decode(response)


@pytest.mark.shared
@NO_CAPTURES
def test_the_community_servers_refusal_of_top_k_leads_to_the_raw_form():
    response = captured("resp_hf_api_inference_community_timm__json_topk.txt")
    assert "unexpected keyword argument 'top_k'" in HF.explain(response)
    assert HF.fallback(response) == RAW


def test_an_embedding_keeps_its_order_and_is_not_ranked():
    document = {
        "output": "embedding",
        "predictions": [{"labels": ["0", "1"], "scores": [-1.5, 2.0]}],
    }
    (answer,) = PGN("http://h").decode(ok(document))
    assert (answer.labels, answer.scores, answer.kind) == (
        ("dim 0", "dim 1"),
        (-1.5, 2.0),
        "embedding",
    )


VERTEX = "http://h/v1/projects/p/locations/l/endpoints/1:predict"
BODIES = {
    "custom": '{"l": ["a", "b"], "s": [0.1, %s]}',
    "huggingface": '[{"label": "a", "score": 0.1}, {"label": "b", "score": %s}]',
    "huggingface-features": "[0.1, %s]",
    "huggingface-zero-shot": '[{"label": "a", "score": 0.1}, {"label": "b", "score": %s}]',
    "kserve-v1": '{"predictions": [[0.1, %s]]}',
    "oip": '{"outputs": [{"name": "o", "datatype": "FP32", "shape": [2], "data": [0.1, %s]}]}',
    "openai-embeddings": '{"data": [{"embedding": [0.1, %s]}]}',
    "pgn": '{"output": "probs", "predictions": [{"labels": ["a", "b"], "scores": [0.1, %s]}]}',
    "sagemaker": '{"labels": ["a", "b"], "scores": [0.1, %s]}',
    "torchserve": '{"a": 0.1, "b": %s}',
    "vertex": '{"predictions": [{"displayNames": ["a", "b"], "confidences": [0.1, %s]}]}',
}
DEEP = "[" * 900 + "]" * 900
ODD = {
    "infinite": "1e999",
    "NaN": "NaN",
    "a list": "[[0.5]]",
    "an object": "{}",
    "a text": '"0.5"',
    "a bool": "true",
    "null": "null",
    "too large": "1" + "0" * 400,
    "too many digits": "1" + "0" * 5000,
    "deep": DEEP,
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("number", ODD.values(), ids=list(ODD))
@pytest.mark.parametrize("meaning", [None, "probs", "logits", "sigmoid"])
@pytest.mark.parametrize("name", sorted(PROTOCOLS.keys() - {"openai"}))
def test_a_score_that_is_no_number_is_refused_alike(name, meaning, number):
    fixed = {"labels": "l", "scores": "s"} if name == "custom" else {}
    has_meaning = name not in ("pgn", "huggingface-features", "openai-embeddings")
    options = fixed | ({"output": meaning} if meaning and has_meaning else {})
    url = VERTEX if name == "vertex" else "http://h"
    bound = PROTOCOLS[name].of(Endpoint(url, name, "m", labels=("a", "b"), options=options))
    with pytest.raises(MalformedAnswerError) as caught:
        bound.decode(WireResponse(200, {}, (BODIES[name] % number).encode()))
    assert len(caught.value.tell()) < 1000


def test_deep_json_is_no_answer():
    for levels in (65, 900, 100_000):
        with pytest.raises(MalformedAnswerError):
            WireResponse(200, {}, b"[" * levels + b"]" * levels).json()
    assert WireResponse(200, {}, b"[" * 64 + b"]" * 64).json()
