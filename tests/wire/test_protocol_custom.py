from __future__ import annotations

import base64
import json
from email.parser import BytesParser

import httpx
import pytest
from hypothesis import given

from pgn_client.errors import AuthenticationError, ConfigurationError, ProtocolMismatchError
from pgn_client.wire.endpoint import Credential, Endpoint
from pgn_client.wire.protocols import MalformedAnswerError
from pgn_client.wire.protocols.custom import Custom
from tests.wire.exchanges import ANYTHING, captured, decodes_or_says_so, ok, picture, sent
from tests.wire.fakes import client
from tests.wire.fakes import picture as image

KEY = "sk-secret-123"
B64 = base64.b64encode(picture().data).decode()


def custom(url: str = "http://h", model: str | None = None, names=(), **options) -> Custom:
    return Custom.of(Endpoint(url, "custom", model, labels=names, options=options))


AZURE = {
    "multipart": "imageData",
    "key_header": "Prediction-Key: {key}",
    "labels": "predictions[*].tagName",
    "scores": "predictions[*].probability",
}
GOOGLE = {
    "path": "/v1/images:annotate",
    "key_header": "x-goog-api-key: {key}",
    "body": {
        "requests": [{"image": {"content": "{base64}"}, "features": [{"type": "LABEL_DETECTION"}]}]
    },
    "labels": "responses[0].labelAnnotations[*].description",
    "scores": "responses[0].labelAnnotations[*].score",
    "error": "responses[0].error.message",
    "output": "probabilities",
}
REKOGNITION = {
    "headers": {
        "X-Amz-Target": "RekognitionService.DetectLabels",
        "Content-Type": "application/x-amz-json-1.1",
    },
    "body": {"Image": {"Bytes": "{base64}"}, "MaxLabels": 1000, "MinConfidence": 0},
    "labels": "Labels[*].Name",
    "scores": "Labels[*].Confidence",
    "scale": 0.01,
    "output": "probabilities",
}
COG = {
    "path": "/predictions",
    "body": {"input": {"image": "{data_url}"}},
    "labels": "output[*].label",
    "scores": "output[*].score",
    "error": "status != 'succeeded' && (error || status)",
}
LITSERVE = {
    "path": "/predict",
    "body": {"image_b64": "{base64}"},
    "labels": "output[*].label",
    "scores": "output[*].score",
    "key_header": "X-API-Key: {key}",
}
CLARIFAI = {
    "path": "/v2/models/{model}/outputs",
    "key_header": "Authorization: Key {key}",
    "body": {"inputs": [{"data": {"image": {"base64": "{base64}"}}}]},
    "labels": "outputs[0].data.concepts[*].name",
    "scores": "outputs[0].data.concepts[*].value",
    "error": "status.code != `10000` && status",
    "output": "probabilities",
}

ANSWERS = {
    "azure": (
        AZURE,
        {
            "predictions": [
                {"tagName": "dog", "probability": 0.3},
                {"tagName": "cat", "probability": 0.7},
            ]
        },
    ),
    "google": (
        GOOGLE,
        {
            "responses": [
                {
                    "labelAnnotations": [
                        {"description": "cat", "score": 0.98},
                        {"description": "dog", "score": 0.42},
                    ]
                }
            ]
        },
    ),
    "rekognition": (
        REKOGNITION,
        {"Labels": [{"Name": "cat", "Confidence": 98.0}, {"Name": "dog", "Confidence": 42}]},
    ),
    "cog": (
        COG,
        {
            "status": "succeeded",
            "output": [{"label": "cat", "score": 0.7}, {"label": "dog", "score": 0.3}],
        },
    ),
    "litserve": (
        LITSERVE,
        {"output": [{"label": "cat", "score": 0.7}, {"label": "dog", "score": 0.3}]},
    ),
    "clarifai": (
        CLARIFAI,
        {
            "status": {"code": 10000},
            "outputs": [
                {
                    "data": {
                        "concepts": [{"name": "cat", "value": 0.7}, {"name": "dog", "value": 0.3}]
                    }
                }
            ],
        },
    ),
}


# ---- managed services


@pytest.mark.parametrize("name", ANSWERS)
def test_a_managed_services_answer_is_understood(name):
    options, document = ANSWERS[name]
    (answer,) = custom(**options).decode(ok(document))
    assert (answer.labels, answer.kind) == (("cat", "dog"), "probabilities")
    assert answer.scores == pytest.approx((0.7, 0.3))


@pytest.mark.parametrize(
    ("options", "document", "words"),
    [
        (
            GOOGLE,
            {"responses": [{"error": {"code": 3, "message": "Bad image data."}}]},
            "failure: .*Bad image data",
        ),
        (
            COG,
            {"status": "failed", "error": "cannot identify image", "output": None},
            "failure: .*cannot identify",
        ),
        (COG, {"status": "canceled", "error": None}, "failure: .*canceled"),
        (CLARIFAI, {"status": {"code": 11005, "description": "throttled"}}, "throttled"),
    ],
)
def test_a_failure_inside_a_success_is_told(options, document, words):
    with pytest.raises(MalformedAnswerError, match=words):
        custom(**options).decode(ok(document))


def test_a_failure_inside_a_success_reaches_the_caller(tmp_path):
    path = tmp_path / "cog.json"
    Endpoint("http://127.0.0.1:9", "custom", options=COG).write(path)
    with (
        client(
            lambda _: httpx.Response(200, json={"status": "failed", "error": "no image"}),
            url=path,
        ) as c,
        pytest.raises(ProtocolMismatchError, match="no image"),
    ):
        c.classify(image())


@pytest.mark.shared
def test_a_form_is_the_one_of_azures_client():
    headers, theirs = sent("azure_customvision_3.1.1__classify_image")
    request = custom(**AZURE).encode([picture()])
    ours = BytesParser().parsebytes(
        (f"Content-Type: {request.headers['content-type']}\r\n\r\n").encode() + request.body
    )
    other = BytesParser().parsebytes(
        (f"Content-Type: {headers['content-type']}\r\n\r\n").encode() + theirs
    )
    (part,), (reference,) = ours.get_payload(), other.get_payload()
    assert part.get_param("name", header="content-disposition") == "imageData"
    assert reference.get_param("name", header="content-disposition") == "imageData"
    assert picture().data in request.body


@pytest.mark.shared
def test_googles_and_amazons_bodies_are_those_of_their_clients():
    for name, options in (
        ("gvision_3.16.0__label_detection", GOOGLE),
        ("boto3_1.44.5__detect_labels", REKOGNITION),
    ):
        headers, theirs = sent(name)
        request = custom(**options).encode([picture()])
        assert shape(json.loads(request.body)) >= shape(json.loads(theirs)) - {
            "maxResults",
            "MaxLabels",
        }
        assert request.headers["content-type"] == headers["content-type"]
        assert request.headers.get("x-amz-target") == headers.get("x-amz-target")


def shape(document: object) -> set[str]:
    if isinstance(document, dict):
        return set(document).union(*map(shape, document.values()))
    return set().union(*map(shape, document)) if isinstance(document, list) else set()


@pytest.mark.shared
def test_real_litserve_is_understood():
    (answer,) = custom(**LITSERVE).decode(captured("resp_litserve0.2.19__predict"))
    assert answer.labels[0] == "class_9"


# ---- what is sent


def test_without_options_it_is_the_raw_picture_and_any_usual_answer():
    request = custom("http://h/score").encode([picture()])
    assert (request.method, request.url, request.body) == ("POST", "http://h/score", picture().data)
    assert request.headers["content-type"] == "image/png"
    (answer,) = custom().decode(ok({"cat": 0.7, "dog": 0.3}))
    assert answer.labels == ("cat", "dog")


def test_a_template_is_filled_wherever_a_placeholder_stands():
    body = {"m": "{model}", "x": ["{base64}", 3, None], "u": "<{data_url}>"}
    made = json.loads(custom(model="vit", body=body).encode([picture()]).body)
    assert made == {"m": "vit", "x": [B64, 3, None], "u": f"<data:image/png;base64,{B64}>"}


def test_a_text_is_sent_as_text():
    request = custom(
        body="img={base64}", headers={"Content-Type": "application/x-www-form-urlencoded"}
    ).encode([picture()])
    assert request.body == f"img={B64}".encode()
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"


def test_path_and_method_are_the_callers():
    request = custom("http://h/a?v=1", "vit", path="/models/{model}", method="PUT").encode(
        [picture()]
    )
    assert (request.method, request.url) == ("PUT", "http://h/a/models/vit?v=1")


def test_a_retry_sends_the_same_form():
    assert custom(multipart="file").encode([picture()]) == custom(multipart="file").encode(
        [picture()]
    )


@pytest.mark.parametrize(
    ("form", "header", "value"),
    [
        ("Prediction-Key: {key}", "prediction-key", KEY),
        ("X-API-Key:{key}", "x-api-key", KEY),
        ("Authorization: Key {key}", "authorization", f"Key {KEY}"),
        (None, "authorization", f"Bearer {KEY}"),
    ],
)
def test_the_key_goes_into_the_header_that_the_service_wants(form, header, value, tmp_path):
    seen = {}

    def server(request: httpx.Request) -> httpx.Response:
        seen.update(request.headers)
        return httpx.Response(200, json={"cat": 1.0})

    path = tmp_path / "endpoint.json"
    Endpoint("http://127.0.0.1:9", "custom", options={"key_header": form} if form else {}).write(
        path
    )
    with client(server, url=path, api_key=KEY) as c:
        c.classify(image())
    assert seen[header] == value
    assert header == "authorization" or "authorization" not in seen


@pytest.mark.parametrize(
    "form", [f"X-API-Key: {KEY}", KEY, "X Key: {key}", "{key}", "X-Key: {key}\nY: z", 3]
)
def test_a_key_header_without_its_placeholder_is_refused_and_not_shown(form):
    with pytest.raises(ConfigurationError, match=r"key_header.*\{key\}") as caught:
        Endpoint("http://h", "custom", options={"key_header": form})
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_error_and_no_repr(tmp_path):
    def server(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": f"wrong key {request.headers['x-api-key']}"})

    path = tmp_path / "endpoint.json"
    Endpoint("http://127.0.0.1:9", "custom", options={"key_header": "X-API-Key: {key}"}).write(path)
    with client(server, url=path, api_key=KEY) as c, pytest.raises(AuthenticationError) as caught:
        c.classify(image())
    protocol = c._session.remote.accepted.protocol
    assert KEY not in f"{caught.value}{c!r}{c.endpoint!r}{c.protocol}{protocol!r}"


# ---- what comes back


BAD = [b"", b"Ok", None, [], {}, {"predictions": None}, {"predictions": []}, {"predictions": [{}]}]
BAD_ONES = [
    {"tagName": "cat"},
    {"tagName": 1, "probability": 0.5},
    {"tagName": "cat", "probability": "0.5"},
]


@pytest.mark.parametrize("document", [*BAD, *({"predictions": [one]} for one in BAD_ONES)], ids=str)
def test_what_does_not_fit_the_paths_is_refused(document):
    with pytest.raises(MalformedAnswerError):
        custom(**AZURE).decode(ok(document))


def test_a_path_that_cannot_be_followed_is_refused():
    with pytest.raises(MalformedAnswerError, match="scores"):
        custom(scores="sum(x)").decode(ok({"x": ["a"]}))


def test_bare_scores_get_the_given_labels():
    (answer,) = custom(names=("a", "b"), scores="out[0]").decode(ok({"out": [[0.25, 0.75]]}))
    assert (answer.labels, answer.scores) == (("b", "a"), (0.75, 0.25))


def test_an_embedding_is_read_by_its_path():
    (answer,) = custom(scores="data[0].vector", output="embedding").decode(
        ok({"data": [{"vector": [1, -2]}]})
    )
    assert (answer.kind, answer.scores) == ("embedding", (1.0, -2.0))


@given(ANYTHING)
def test_no_json_makes_it_fail_otherwise(document):
    for options in (AZURE, GOOGLE, REKOGNITION, COG, CLARIFAI, {}):
        decodes_or_says_so(lambda options=options: custom(**options), document)


# ---- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bodi": "raw"}, "bodi"),
        ({"body": 3}, "body"),
        ({"body": {"image": "x"}}, "no place for the image"),
        ({"body": "raw", "multipart": "f"}, "one of them"),
        ({"multipart": ""}, "multipart"),
        ({"multipart": 'a"b'}, "multipart"),
        ({"method": "GET"}, "method"),
        ({"path": "predict"}, "slash"),
        ({"scores": "a[", "labels": "b"}, "JMESPath"),
        ({"labels": "a"}, "without scores"),
        ({"scale": 0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": True}, "scale"),
        ({"output": "votes"}, "output"),
        ({"headers": {"X-Y": 3}}, "headers"),
        ({"headers": {"X-Y": "a\nb"}}, "headers"),
        ({"headers": {"X Y": "a"}}, "headers"),
    ],
)
def test_wrong_options_are_refused_with_what_is_right(options, words):
    with pytest.raises(ConfigurationError, match=words):
        custom(**options)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "X-API-Key",
        "Prediction-key",
        "x-auth-token",
        "X-Auth",
        "X-Password",
        "Cookie",
    ],
)
def test_a_key_among_the_headers_is_refused_and_not_shown(name):
    with pytest.raises(ConfigurationError, match="api_key=") as caught:
        custom(headers={name: f"Bearer {KEY}"})
    assert KEY not in str(caught.value)


def test_every_option_makes_another_dialect():
    kinds = [{}, AZURE, GOOGLE, {"names": ("a", "b")}, {"scores": "a"}]
    assert len({custom(**kind).dialect for kind in kinds}) == len(kinds)


def test_a_key_in_a_header_of_ones_own_travels_over_http_no_more_than_any_other():
    with pytest.raises(ConfigurationError, match="https"):
        Endpoint("http://h", "custom", credential=Credential(KEY), options=AZURE)


@pytest.mark.parametrize(
    "body", [{"{base64}": "x"}, {"a": [{"{data_url}": 1}]}, {"{base64}": {"b": "{model}"}}]
)
def test_a_place_for_the_image_in_a_key_is_refused(body):
    with pytest.raises(ConfigurationError, match="no key"):
        custom(body=body)
