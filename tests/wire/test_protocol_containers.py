"""``sagemaker`` and ``torchserve``."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json

import httpx
import pytest
from hypothesis import given

from pgn_client.errors import ConfigurationError, InvalidRequestError, ServerError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import MalformedAnswerError, Payload
from pgn_client.wire.protocols.base import explain
from pgn_client.wire.protocols.sagemaker import SageMaker
from pgn_client.wire.protocols.torchserve import TorchServe
from tests.wire.exchanges import (
    ANYTHING,
    answer_of,
    body,
    captured,
    decodes_or_says_so,
    golden,
    ok,
    picture,
    sent,
)
from tests.wire.fakes import async_client, client
from tests.wire.fakes import picture as image

ANSWER = [{"label": "cat", "score": 0.6}, {"label": "dog", "score": 0.4}]


def sagemaker(url: str = "http://h", model: str | None = None, **endpoint) -> SageMaker:
    return SageMaker.of(Endpoint(url, "sagemaker", model, **endpoint))


def torchserve(url: str = "http://h", model: str | None = "vit", **endpoint) -> TorchServe:
    return TorchServe.of(Endpoint(url, "torchserve", model, **endpoint))


# ---- SageMaker


@pytest.mark.parametrize(
    ("name", "model"), [("sagemaker_raw", "vit"), ("sagemaker_container", None)]
)
def test_sagemaker_posts_the_raw_picture_of_the_contract(name, model):
    request = golden(name)["request"]
    made = sagemaker(model=model).encode(
        [Payload(body(request), request["headers"]["Content-Type"])]
    )
    assert made.url == f"http://h{request['path']}"
    assert (made.body, made.headers["content-type"]) == (
        body(request),
        request["headers"]["Content-Type"],
    )


def test_sagemaker_with_parameters_posts_the_json_of_the_contract():
    request = golden("sagemaker_json")["request"]
    protocol = sagemaker("http://h/endpoints/vit/invocations", options={"parameters": {"top_k": 2}})
    made = protocol.encode([Payload(base64.b64decode(request["json"]["inputs"]), "image/png")])
    assert (made.url, json.loads(made.body)) == (f"http://h{request['path']}", request["json"])


@pytest.mark.shared
def test_boto3_sends_the_same():
    headers, theirs = sent("boto3_1.44.5__invoke_jpeg")
    made = sagemaker(model="vit").encode([Payload(theirs, "image/jpeg")])
    assert made.url == f"http://h{headers[':path']}"
    assert (made.body, made.headers["content-type"], made.headers["accept"]) == (
        theirs,
        headers["content-type"],
        headers["accept"],
    )


@pytest.mark.parametrize("name", ["sagemaker_raw", "sagemaker_json", "sagemaker_container"])
def test_sagemaker_answers_of_the_contract_are_understood(name):
    assert sagemaker().decode(answer_of(name))[0].labels[0] == "cat"


def test_sagemaker_embeddings_of_the_contract_are_understood():
    (answer,) = sagemaker(options={"output": "embedding"}).decode(answer_of("sagemaker_embedding"))
    assert (answer.kind, len(answer.scores)) == ("embedding", 24)


@pytest.mark.parametrize(
    ("response", "retry"),
    [
        (answer_of("sagemaker_error_424"), False),
        (ok({"OriginalStatusCode": 503}, 424), True),
        (ok({"OriginalStatusCode": 500}, 424), False),
        (ok({"OriginalStatusCode": "503"}, 424), False),
        (ok(b"", 424), False),
        (
            ok({"message": "Rate exceeded"}, 400, x_amzn_errortype="ThrottlingException:http://x"),
            True,
        ),
        (ok({"__type": "com.amazonaws#ProvisionedThroughputExceededException"}, 400), True),
        (ok({"message": "bad"}, 400, x_amzn_errortype="ValidationError"), None),
        (ok([], 400), None),
        (ok({}, 530), True),
        (ok({}, 503), None),
    ],
)
def test_sagemaker_says_what_is_worth_a_retry(response, retry):
    assert sagemaker().retryable(response) is retry


def test_throttling_with_400_is_waited_for():
    steps = [
        httpx.Response(400, json={"__type": "ThrottlingException"}),
        httpx.Response(200, json=ANSWER),
    ]
    with client(
        lambda request: steps.pop(0), url="http://127.0.0.1:9/invocations", protocol="sagemaker"
    ) as c:
        assert c.classify(image()).attempts == 2


def test_a_broken_picture_in_the_container_is_told_with_its_own_words():
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(424, json={"Message": "from primary", "OriginalStatusCode": 400})

    with (
        client(server, protocol="sagemaker") as c,
        pytest.raises(InvalidRequestError, match="from primary") as caught,
    ):
        c.classify(image())
    assert caught.value.attempts == 1


@pytest.mark.parametrize("protocol", ["auto", "sagemaker"])
def test_sagemaker_is_told_by_its_url(protocol):
    with client(
        lambda _: httpx.Response(200, json=ANSWER),
        url="http://127.0.0.1:9/invocations",
        protocol=protocol,
    ) as c:
        assert c.classify(image()).label == "cat"
        assert c.protocol == "sagemaker raw"


class Signature(httpx.Auth):
    requires_request_body = True

    def auth_flow(self, request):
        request.headers["authorization"] = (
            f"AWS4-HMAC-SHA256 {hashlib.sha256(request.content).hexdigest()}"
        )
        yield request


def test_the_callers_signature_covers_each_request():
    seen = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append((request.headers["authorization"], hashlib.sha256(request.content).hexdigest()))
        return httpx.Response(200, json=ANSWER)

    with client(
        server, url="http://127.0.0.1:9/endpoints/vit/invocations", http={"auth": Signature()}
    ) as c:
        c.classify(image())

    async def alike() -> None:
        async with async_client(server, protocol="sagemaker", http={"auth": Signature()}) as c:
            await c.classify(image(1))

    asyncio.run(alike())
    assert [said for said, _ in seen] == [f"AWS4-HMAC-SHA256 {digest}" for _, digest in seen]
    assert len({digest for _, digest in seen}) == 2


# ---- TorchServe


def test_torchserve_posts_the_raw_picture_of_the_contract():
    request = golden("torchserve_raw")["request"]
    made = torchserve().encode([Payload(body(request), "image/png")])
    assert (made.method, made.url, made.body) == (
        request["method"],
        f"http://h{request['path']}",
        body(request),
    )
    assert made.headers["content-type"] == request["headers"]["Content-Type"]


@pytest.mark.parametrize(
    "url", ["http://h/predictions/vit", "http://h/predictions/vit/2.0", "http://h/predictions/vit/"]
)
def test_torchserves_model_may_be_in_the_url(url):
    assert torchserve(url, None).encode([picture()]).url == url.rstrip("/")


def test_torchserve_by_name_asks_for_a_model_before_any_picture():
    with pytest.raises(ConfigurationError, match="expected the name of a model; give model="):
        torchserve(model=None)
    found = TorchServe.of(Endpoint("http://h", "auto"))
    with pytest.raises(ConfigurationError, match="expected the name of a model; give model="):
        found.encode([picture()])


@pytest.mark.parametrize(
    "name", ["torchserve_raw", "torchserve_json", "torchserve_multipart", "torchserve_label"]
)
def test_torchserve_answers_of_the_contract_are_understood(name):
    (answer,) = torchserve().decode(answer_of(name))
    assert (answer.labels[0], answer.kind) == ("cat", "probabilities")


def test_torchserve_embeddings_of_the_contract_are_understood():
    (answer,) = torchserve(options={"output": "embedding"}).decode(
        answer_of("torchserve_embedding")
    )
    assert (answer.kind, len(answer.scores)) == ("embedding", 24)


def test_a_failed_prediction_is_not_sent_again():
    assert torchserve().retryable(answer_of("torchserve_error_bad_image")) is False
    assert torchserve().retryable(answer_of("torchserve_error_503")) is None


def test_a_failed_prediction_is_one_attempt():
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"code": 503, "message": "Prediction failed"})

    with (
        client(server, protocol="torchserve", model="vit") as c,
        pytest.raises(ServerError, match="failed") as caught,
    ):
        c.classify(image())
    assert caught.value.attempts == 1


@pytest.mark.shared
def test_a_real_torchserve_is_understood():
    (answer,) = torchserve().decode(captured("resp_torchserve0.12.0__predict_raw"))
    assert answer.labels[:2] == ("class_9", "class_7")
    assert torchserve().described(captured("resp_torchserve0.12.0__ping")) is not None
    assert torchserve().retryable(captured("resp_torchserve0.12.0__bad_image")) is False
    assert explain(captured("resp_torchserve0.12.0__404model")) == "Model not found: nope"


def healthy(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/ping":
        return httpx.Response(200, text='{\n  "status": "Healthy"\n}')
    return httpx.Response(
        200 if request.url.path == "/predictions/vit" else 404, text='{"cat": 0.7, "dog": 0.3}'
    )


@pytest.mark.parametrize(
    "options", [{"model": "vit"}, {"url": "http://127.0.0.1:9/predictions/vit"}]
)
def test_torchserve_is_found(options):
    with client(healthy, **options) as c:
        assert c.classify(image()).label == "cat"
        assert c.protocol == "torchserve"


def test_torchserve_without_a_model_says_so():
    with client(healthy) as c, pytest.raises(ConfigurationError, match="give model="):
        c.classify(image())


# ---- both


@pytest.mark.parametrize("make", [sagemaker, torchserve])
@pytest.mark.parametrize(
    "document", [b"", b"Ok", None, [], {}, "cat", [None], {"cat": None}, {"cat": "0.5"}, [[]], 3]
)
def test_what_is_not_their_form_is_refused(make, document):
    with pytest.raises(MalformedAnswerError):
        make().decode(ok(document))


@given(ANYTHING)
def test_no_json_makes_them_fail_otherwise(document):
    for make in (sagemaker, torchserve):
        decodes_or_says_so(make, document)


@pytest.mark.parametrize("make", [sagemaker, torchserve])
def test_wrong_options_are_refused(make):
    with pytest.raises(ConfigurationError, match="options"):
        make(options={"timeout": 3})
    with pytest.raises(ConfigurationError, match="output"):
        make(options={"output": "votes"})


def test_other_forms_are_other_dialects():
    kinds = [
        {},
        {"options": {"parameters": {"top_k": 2}}},
        {"labels": ("a", "b")},
        {"options": {"output": "logits"}},
    ]
    assert len({sagemaker(**kind).dialect for kind in kinds}) == len(kinds)
