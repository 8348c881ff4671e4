"""``openai`` and ``openai-embeddings``."""

from __future__ import annotations

import base64
import json
import math

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgn_client.errors import ConfigurationError, ProtocolMismatchError, RateLimitedError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import MalformedAnswerError, Payload, WireResponse
from pgn_client.wire.protocols.base import explain
from pgn_client.wire.protocols.openai import Chat, Embeddings
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

LABELS = ("cat", "dog", "lynx")


def chat(url: str = "http://h", model: str | None = "vit", labels=LABELS, **endpoint) -> Chat:
    return Chat.of(Endpoint(url, "openai", model, labels=labels, **endpoint))


def embeddings(url: str = "http://h", model: str | None = "vit", **endpoint) -> Embeddings:
    return Embeddings.of(Endpoint(url, "openai-embeddings", model, **endpoint))


def token(text: str, p: float, **others: float) -> dict:
    told = [{"token": t, "logprob": math.log(q)} for t, q in {text: p, **others}.items()]
    return {"token": text, "logprob": math.log(p), "top_logprobs": told}


def said(content: object, *tokens: dict, **message: object) -> dict:
    logprobs = {"content": list(tokens)} if tokens else None
    return {"choices": [{"message": {"content": content, **message}, "logprobs": logprobs}]}


def as_json(label: str, *parts: dict) -> dict:
    """Return an answer whose label is spelled by ``parts`` inside the JSON of the closed set."""
    around = [token('{"', 1.0), token("label", 1.0), token('":"', 1.0), *parts, token('"}', 1.0)]
    return said(json.dumps({"label": label}, separators=(",", ":")), *around)


# ---- what is sent


def test_the_closed_set_and_the_picture_are_sent_as_in_the_contract():
    theirs = golden("openai_chat_schema")["request"]["json"]
    url = theirs["messages"][-1]["content"][-1]["image_url"]["url"]
    payload = Payload(base64.b64decode(url.partition(",")[2]), "image/png")
    ours = json.loads(chat(options={"prompt": "cat or dog? {labels}"}).encode([payload]).body)
    same = ("model", "response_format", "temperature", "logprobs", "top_logprobs")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours["messages"][-1]["content"][1] == theirs["messages"][-1]["content"][1]
    assert ours["messages"][-1]["content"][0]["text"] == "cat or dog? cat; dog; lynx"


@pytest.mark.shared
def test_openais_client_sends_the_same_fields():
    headers, theirs = sent("openai_3.52.0__chat_json_schema")
    request = chat().encode([picture()])
    ours, document = json.loads(request.body), json.loads(theirs)
    assert request.url == f"http://h{headers[':path']}"
    assert request.headers["content-type"] == headers["content-type"]
    assert ours.keys() <= document.keys() | {
        "max_tokens",
        "temperature",
        "logprobs",
        "top_logprobs",
    }
    assert ours["response_format"].keys() == document["response_format"].keys()
    assert ours["messages"][0]["content"][1].keys() == document["messages"][1]["content"][1].keys()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h", "/v1/chat/completions"),
        ("http://h/api/v1/", "/api/v1/chat/completions"),
        ("http://h/v1/chat/completions", "/v1/chat/completions"),
        (
            "http://h/deployments/d/chat/completions?api-version=1",
            "/deployments/d/chat/completions?api-version=1",
        ),
    ],
)
def test_the_address_may_be_that_of_the_server_or_the_method(url, path):
    assert chat(url).encode([picture()]).url == f"http://h{path}"


def test_a_parameter_can_be_added_and_taken_away():
    made = json.loads(
        chat(options={"parameters": {"max_tokens": None, "seed": 1}}).encode([picture()]).body
    )
    assert "max_tokens" not in made
    assert made["seed"] == 1


def test_what_a_server_may_refuse_is_left_out_in_the_plainer_form():
    plain = chat().fallback(WireResponse(400, {})).fallback(WireResponse(400, {}))
    assert (
        not {"logprobs", "top_logprobs", "response_format"}
        & json.loads(plain.encode([picture()]).body).keys()
    )
    assert plain.fallback(WireResponse(400, {})) is None
    assert plain.dialect != chat().dialect


@pytest.mark.parametrize("labels", [(), ("cat",), ("cat", "cat")])
def test_labels_are_needed(labels):
    with pytest.raises(ConfigurationError, match="labels="):
        chat(labels=labels)


def test_other_labels_and_words_are_other_dialects():
    kinds = [{}, {"labels": LABELS[:2]}, {"options": {"prompt": "which? {labels}"}}]
    assert len({chat(**kind).dialect for kind in kinds}) == len(kinds)


# ---- which label


@pytest.mark.parametrize(
    "content",
    [
        "cat",
        '{"label": "cat"}',
        '{"label":"Cat"}',
        '"cat"',
        "Cat.",
        " cat\n",
        "`cat`",
        '{"label": "cat" }',
    ],
)
def test_a_label_is_understood(content):
    (answer,) = chat().decode(ok(said(content)))
    assert (answer.labels, answer.scores, answer.kind) == (("cat",), (1.0,), "label")


@pytest.mark.parametrize(
    "content", ["a cat", "bird", "", '{"label": "bird"}', '{"label": 3}', '{"x": "cat"}', None, 3]
)
def test_what_is_none_of_the_labels_is_refused_and_told(content):
    with pytest.raises(MalformedAnswerError) as caught:
        chat().decode(ok(said(content)))
    assert "cat" in str(caught.value) or content is None or content == 3


def test_a_refusal_is_told():
    with pytest.raises(MalformedAnswerError, match="refusal: I cannot help"):
        chat().decode(ok(said(None, refusal="I cannot help with that")))


def test_what_was_said_instead_of_a_label_reaches_the_caller():
    with (
        client(
            lambda _: httpx.Response(200, json=said("a bird")),
            protocol="openai",
            model="m",
            labels=LABELS,
        ) as c,
        pytest.raises(ProtocolMismatchError, match="a bird"),
    ):
        c.classify(image())


# ---- probabilities


@pytest.mark.parametrize("name", ["openai_chat", "openai_chat_enum", "openai_chat_schema"])
def test_one_token_that_is_the_label_gives_probabilities(name):
    labels = ("goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay")
    (answer,) = chat(labels=labels).decode(answer_of(name))
    alternatives = golden(name)["response"]["json"]["choices"][0]["logprobs"]
    assert answer.labels[0] == "cat"
    assert answer.kind == ("probabilities" if alternatives else "label")
    if alternatives:
        assert sum(answer.scores) == pytest.approx(1, abs=1e-3)


def test_a_label_without_logprobs_is_the_kind_label():
    assert chat().decode(answer_of("openai_chat_label"))[0].kind == "label"


def test_the_first_token_decides_where_it_leaves_one_label():
    document = as_json("lynx", token("ly", 0.6, ca=0.3, d=0.05), token("nx", 1.0))
    (answer,) = chat().decode(ok(document))
    assert answer.kind == "probabilities"
    assert dict(zip(answer.labels, answer.scores, strict=True)) == pytest.approx(
        {"lynx": 0.6, "cat": 0.3, "dog": 0.05}
    )


def test_spellings_of_one_label_are_added_up():
    (answer,) = chat().decode(ok(as_json("cat", token("cat", 0.5, ca=0.2, dog=0.3))))
    assert dict(zip(answer.labels, answer.scores, strict=True)) == pytest.approx(
        {"cat": 0.7, "dog": 0.3}
    )


def test_a_token_may_begin_before_the_label():
    document = said(
        '{"label":"dog"}',
        token('{"label":', 1.0),
        token('"dog', 0.8, **{'"cat': 0.2}),
        token('"}', 1.0),
    )
    (answer,) = chat().decode(ok(document))
    assert answer.scores == pytest.approx((0.8, 0.2))


def test_a_token_that_leaves_several_labels_gives_the_label_alone():
    labels = ("cat", "cattle", "dog")
    (answer,) = chat(labels=labels).decode(ok(as_json("cat", token("cat", 0.7, dog=0.3))))
    assert (answer.kind, answer.labels) == ("label", ("cat",))
    (answer,) = chat(labels=labels).decode(ok(said("cat", token("cat", 0.7, dog=0.3))))
    assert answer.kind == "label"


def test_tokens_that_are_no_label_are_left_out():
    (answer,) = chat().decode(ok(said("cat", token("cat", 0.5, dog=0.2, The=0.2, do=0.05))))
    assert dict(zip(answer.labels, answer.scores, strict=True)) == pytest.approx(
        {"cat": 0.5, "dog": 0.2}
    )


def test_a_token_of_no_probability_worth_the_name_is_none():
    document = said(
        "cat",
        {"token": "cat", "logprob": 0, "top_logprobs": [{"token": "dog", "logprob": -(10**400)}]},
    )
    (answer,) = chat().decode(ok(document))
    assert dict(zip(answer.labels, answer.scores, strict=True)) == {"cat": 1.0, "dog": 0.0}


def test_several_tokens_of_a_plain_text_give_the_label_alone():
    assert (
        chat().decode(ok(said("lynx", token("ly", 0.6, cat=0.4), token("nx", 1.0))))[0].kind
        == "label"
    )


def test_probabilities_that_contradict_what_was_said_are_not_used():
    assert chat().decode(ok(said("cat", token("cat", 0.3, dog=0.6))))[0].kind == "label"


def test_a_label_is_found_in_json_with_its_own_signs():
    labels = ('a "b"', "é")
    document = as_json(labels[0], token('a \\"b\\"', 0.9, é=0.1))
    (answer,) = chat(labels=labels).decode(ok(document))
    assert answer.labels == labels


# ---- whatever comes


@pytest.mark.parametrize(
    "document", [b"", [], {}, {"choices": []}, {"choices": [None]}, {"choices": [{"message": 1}]}]
)
def test_what_is_no_chat_is_refused(document):
    with pytest.raises(MalformedAnswerError):
        chat().decode(ok(document))


@given(ANYTHING, st.sampled_from(["cat", '{"label":"cat"}']))
def test_no_json_makes_it_fail_otherwise(document, content):
    decodes_or_says_so(chat, document)
    decodes_or_says_so(
        chat, {"choices": [{"message": {"content": content}, "logprobs": {"content": document}}]}
    )
    decodes_or_says_so(embeddings, {"data": [document]})


@pytest.mark.parametrize(
    "name", ["openai_error_401", "openai_error_404", "openai_error_503", "openai_error_bad_image"]
)
def test_an_error_of_the_contract_is_told(name):
    assert explain(answer_of(name)) == golden(name)["response"]["json"]["error"]["message"]


def test_an_empty_account_is_not_asked_again():
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(
            429, json={"error": {"message": "no money", "code": "insufficient_quota"}}
        )

    with (
        client(server, protocol="openai", model="m", labels=LABELS) as c,
        pytest.raises(RateLimitedError) as caught,
    ):
        c.classify(image())
    assert caught.value.attempts == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1m30.5s", 90.5),
        ("1h2m", 3720),
        ("", None),
        ("x", None),
        ("0s", None),
    ],
)
def test_the_time_until_requests_are_allowed_is_read(text, seconds):
    assert chat().wait(WireResponse(429, {"x-ratelimit-reset-requests": text})) == seconds
    assert chat().wait(WireResponse(503, {"x-ratelimit-reset-requests": text})) is None


# ---- embeddings


def test_a_picture_is_embedded_as_in_the_contract():
    theirs = golden("openai_embeddings")["request"]["json"]
    payload = Payload(base64.b64decode(theirs["input"][0].partition(",")[2]), "image/png")
    request = embeddings().encode([payload])
    assert request.url == "http://h/v1/embeddings"
    assert json.loads(request.body) == {**theirs, "input": theirs["input"][:1]}


@pytest.mark.shared
def test_openais_client_sends_the_same_embedding_request():
    _, theirs = sent("openai_3.52.0__emb_infinity_modality")
    assert json.loads(theirs).keys() >= json.loads(embeddings().encode([picture()]).body).keys() - {
        "encoding_format"
    }


def test_infinitys_own_address_has_no_v1():
    assert (
        embeddings("http://h:7997/embeddings").encode([picture()]).url == "http://h:7997/embeddings"
    )
    assert embeddings("http://h:7997/embeddings", None).describe().url == "http://h:7997/models"


def test_numbers_and_base64_are_the_same_embedding():
    numbers, packed = (
        embeddings().decode(answer_of(f"openai_embeddings{form}")) for form in ("", "_base64")
    )
    assert numbers[0].kind == "embedding"
    assert packed[0].scores == pytest.approx(numbers[0].scores)


@pytest.mark.parametrize("value", [None, "", "x", "AAA=", [], ["x"], [None], [math.nan], {"a": 1}])
def test_what_is_no_embedding_is_refused(value):
    with pytest.raises(MalformedAnswerError):
        embeddings().decode(ok({"data": [{"embedding": value}]}))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["emb_img", "emb_img_b64"])
def test_real_infinity_is_understood(name):
    assert all(
        answer.kind == "embedding"
        for answer in embeddings().decode(captured(f"resp_infinity0.0.78__{name}"))
    )
    found = embeddings("http://h/embeddings", None).described(
        captured("resp_infinity0.0.78__models")
    )
    assert found.protocol.model == "clip"


# ---- finding the model


class OpenAI:
    def __init__(self, *models: str, **card: object) -> None:
        self.models, self.card = models, card

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(
                200, json={"object": "list", "data": [{"id": m, **self.card} for m in self.models]}
            )
        if request.url.path == "/v1/chat/completions":
            return httpx.Response(200, json=said('{"label":"dog"}'))
        if request.url.path == "/v1/embeddings":
            return httpx.Response(200, json={"data": [{"embedding": [1.0, -2.0]}]})
        return httpx.Response(404, json={"error": {"message": f"no {request.url.path}"}})


@pytest.mark.parametrize("options", [{}, {"model": "m"}, {"protocol": "openai"}])
def test_a_chat_is_found(options):
    with client(OpenAI("m"), labels=LABELS, **options) as c:
        assert c.classify(image()).label == "dog"
        assert c.protocol.startswith("openai closed")


def test_a_chat_that_was_found_says_that_it_needs_labels():
    with client(OpenAI("m")) as c, pytest.raises(ConfigurationError, match="give labels="):
        c.classify(image())


def test_a_server_that_embeds_pictures_is_found():
    with client(OpenAI("clip", capabilities=["embed", "image_embed"])) as c:
        assert c.answer(image()).scores == (1.0, -2.0)
        assert c.protocol == "openai-embeddings"


@pytest.mark.parametrize("capabilities", [5, True, {"image_embed": 1}, "image_embed"])
def test_capabilities_in_another_form_are_those_of_a_chat(capabilities):
    card = {"id": "vit", "capabilities": capabilities}
    assert isinstance(chat().described(ok({"object": "list", "data": [card]})).protocol, Chat)


def test_several_models_are_named():
    with (
        client(OpenAI("a", "b"), labels=LABELS) as c,
        pytest.raises(ConfigurationError, match="hosts a, b"),
    ):
        c.classify(image())


@pytest.mark.parametrize("options", [{"prompt": "which?"}, {"prompt": 3}, {"modle": "x"}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigurationError, match="options of openai"):
        chat(options=options)
