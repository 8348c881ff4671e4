"""What ``auto`` finds, and what every wire format promises."""

from __future__ import annotations

import contextlib
import json
import logging

import httpx
import pytest

from pgn_client.errors import AuthenticationError, ConfigurationError
from pgn_client.wire.endpoint import Credential, Endpoint
from pgn_client.wire.protocols import (
    ASKED,
    PROTOCOLS,
    TOLD,
    Described,
    MalformedAnswerError,
    open_protocol,
    possible,
)
from pgn_client.wire.protocols.base import excerpt
from tests.wire.exchanges import CAPTURED, CONTRACT, answer_of, captured, ok, picture
from tests.wire.fakes import URL, Server, client
from tests.wire.fakes import picture as image

KEY = "sk-secret-123"
LABELS = ("cat", "dog")
HF_ANSWER = [{"label": "cat", "score": 0.6}, {"label": "dog", "score": 0.4}]
URLS = {"vertex": "https://h/v1/projects/p/locations/l/endpoints/e:predict"}


def endpoint(name: str, **fields) -> Endpoint:
    return Endpoint(
        URLS.get(name, "https://h"), name, "m", credential=Credential(KEY), labels=LABELS, **fields
    )


# ---- paths


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/classify", "pgn"),
        ("/hf-inference/models/google/vit", "huggingface"),
        ("/hf-inference/models/google/vit/pipeline/feature-extraction", "huggingface-features"),
        ("/v2/models/vit/infer", "oip"),
        ("/v2/models/vit/versions/1", "oip"),
        ("/v2", "oip"),
        ("/v1/models/vit:predict", "kserve-v1"),
        ("/v1/models/vit/versions/1:predict", "kserve-v1"),
        ("/v1/projects/p/locations/l/endpoints/e:predict", "vertex"),
        ("/endpoints/vit/invocations", "sagemaker"),
        ("/invocations", "sagemaker"),
        ("/predictions/vit", "torchserve"),
        ("/v1/chat/completions", "openai"),
        ("/v1/embeddings", "openai-embeddings"),
    ],
)
def test_a_path_tells_its_protocol(path, name):
    (found,), otherwise = possible(Endpoint(f"http://h{path}", labels=LABELS))
    assert found.name == otherwise.name == name


@pytest.mark.parametrize(
    "path", ["", "/", "/models/vit", "/predictions", "/predict", "/score", "/v1", "/v2/users/u/x"]
)
def test_any_other_path_is_asked_about(path):
    candidates, otherwise = possible(Endpoint(f"http://h{path}"))
    assert [each.name for each in candidates] == list(ASKED)
    assert otherwise.name == "huggingface"


def test_a_named_protocol_is_not_questioned():
    (found,), _ = possible(Endpoint("http://h/v1/classify", "huggingface"))
    assert found.name == "huggingface"


# ---- servers


def hub(request: httpx.Request) -> httpx.Response:
    """Answer as the community's server does: 200 to whatever is asked."""
    return httpx.Response(200, json={"ok": "ok"} if request.method == "GET" else HF_ANSWER)


def toolkit(request: httpx.Request) -> httpx.Response:
    """Answer as the Endpoints' server does."""
    return (
        httpx.Response(404, text="Not Found")
        if request.method == "GET"
        else httpx.Response(200, json=HF_ANSWER)
    )


def plain(request: httpx.Request) -> httpx.Response:
    return (
        httpx.Response(200, text="Ok")
        if request.method == "GET"
        else httpx.Response(200, json=HF_ANSWER)
    )


def lists(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=[] if request.method == "GET" else HF_ANSWER)


@pytest.mark.parametrize("server", [hub, toolkit, plain, lists])
@pytest.mark.parametrize("options", [{}, {"model": "vit"}, {"labels": LABELS}])
def test_what_nobody_recognises_is_hugging_faces(server, options):
    with client(server, **options) as c:
        assert c.classify(image()).label == "cat"
        assert c.protocol == "huggingface top_k=100000"


def test_each_question_is_asked_once_and_carries_no_picture():
    seen = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.path, len(request.content)))
        return toolkit(request)

    with client(server) as c:
        c.classify(image())
        c.classify(image(1))
    assert seen[:-2] == [("GET", path, 0) for path in ("/v1/model", "/v2", "/v1/models", "/ping")]
    assert {method for method, _, _ in seen[-2:]} == {"POST"}


@pytest.mark.parametrize("options", [{}, {"model": "vit"}])
def test_a_model_of_kserve_without_tensors_speaks_its_first_version(options):
    told = {
        "/v2": {"name": "kserve", "version": "0.21.0", "extensions": []},
        "/v1/models": {"models": ["vit"]},
        "/v2/models/vit": {"name": "vit", "versions": None, "inputs": [], "outputs": []},
    }

    def server(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models/vit:predict":
            return httpx.Response(200, json={"predictions": [HF_ANSWER]})
        return httpx.Response(
            200 if request.url.path in told else 404, json=told.get(request.url.path, {})
        )

    with client(server, **options) as c:
        assert c.classify(image()).label == "cat"
        assert c.protocol.startswith("kserve-v1")


@pytest.mark.parametrize("name", ["oip", "kserve-v1", "torchserve"])
def test_a_models_name_is_spelled_for_a_url(name):
    question = open_protocol(Endpoint("http://h", name, "a b/c"))
    question = question.encode([picture()]) if name == "torchserve" else question.describe()
    assert question.url.endswith("/a%20b%2Fc")


def test_a_refused_key_ends_the_search():
    with client(lambda _: httpx.Response(401)) as c, pytest.raises(AuthenticationError):
        c.classify(image())
    assert c.usage.requests == 1


def test_the_protocol_is_told_once_it_is_known(caplog):
    with client(Server()) as c, caplog.at_level(logging.INFO, "pgn_client"):
        assert c.protocol is None
        c.classify(image())
        assert c.protocol == "pgn"
    assert "127.0.0.1:9 uses pgn" in caplog.text


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ConfigurationError,
        match="oip, openai, openai-embeddings, pgn, sagemaker, torchserve, vertex",
    ):
        client(Server(), protocol="grpc")


# ---- every wire format


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_name_is_the_one_in_the_registry(name):
    protocol = open_protocol(endpoint(name))
    assert protocol.name == name
    assert protocol.dialect.startswith(name)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_protocol_shows_or_places_the_key(name):
    protocol = open_protocol(endpoint(name))
    asked = [protocol.describe()]
    if protocol.complete:
        asked.append(protocol.encode([picture()]))
    assert KEY not in f"{protocol!r}{protocol.dialect}{asked}"
    assert not any("authorization" in request.headers for request in asked if request is not None)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_unknown_options_are_refused_with_the_known_ones(name):
    with pytest.raises(
        ConfigurationError, match=f"options of {name}: got 'nonsense', expected .*key_header"
    ):
        open_protocol(endpoint(name, options={"nonsense": 1}))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_sends_the_key_in_any_header(name):
    assert open_protocol(endpoint(name, options={"key_header": "X-API-Key: {key}"})).name == name


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize(
    "document", [None, {}, [], {"ok": "ok"}, "Ok", 3, [[]], {"object": "list"}, {"name": "x"}]
)
def test_no_protocol_mistakes_another_answer_for_a_description(name, document):
    protocol = open_protocol(endpoint(name))
    if protocol.describe() is not None:
        assert not isinstance(protocol.described(ok(document)), Described)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_error_becomes_a_description(name):
    protocol = open_protocol(endpoint(name))
    try:
        assert (
            protocol.described(
                ok({"name": "m", "inputs": [], "ready": True, "status": "Healthy"}, 500)
            )
            is None
        )
    except MalformedAnswerError:
        pytest.fail("an error is no answer of this protocol")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_plainer_dialect_has_another_name(name):
    protocol = open_protocol(endpoint(name))
    plainer = protocol.plainer()
    assert plainer is None or plainer.dialect != protocol.dialect


CAPTURES = sorted(
    path.stem for path in CAPTURED.glob("resp_*.txt") if path.read_bytes().startswith(b"HTTP")
)


@pytest.mark.shared
@pytest.mark.parametrize("name", CAPTURES or ["none"])
def test_no_real_answer_makes_a_protocol_fail_otherwise(name):
    response = captured(name)
    for protocol in map(open_protocol, map(endpoint, PROTOCOLS)):
        if not response.ok:
            assert len(excerpt(protocol.explain(response))) > 1
            assert protocol.retryable(response) in (None, False)
            continue
        with contextlib.suppress(MalformedAnswerError):
            assert all(answer.labels for answer in protocol.decode(response))


@pytest.mark.parametrize(
    "path", sorted(CONTRACT.glob("*_error_*.json")), ids=lambda path: path.stem
)
def test_every_error_of_the_contract_is_told_in_words(path):
    response = answer_of(path.stem)
    for protocol in map(open_protocol, map(endpoint, PROTOCOLS)):
        said = excerpt(protocol.explain(response))
        assert len(said) > 5
        assert not said.startswith(("{", "["))


def test_lists_of_protocols_are_of_known_ones():
    assert set(TOLD) | set(ASKED) <= set(PROTOCOLS)


def test_options_of_another_protocol_do_not_end_a_search(tmp_path):
    path = tmp_path / "endpoint.json"
    path.write_text(
        json.dumps({"url": URL, "options": {"prompt": "which? {labels}", "mean": [0.5]}})
    )
    with client(toolkit, url=path) as c:
        assert c.classify(image()).label == "cat"
