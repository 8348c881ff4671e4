"""The ready endpoint files send what the services' own clients send, and read what they answer."""

from __future__ import annotations

import json
import sys
import tomllib
from email.parser import BytesParser

import httpx
import pytest

from pgn_client.cli import main
from pgn_client.errors import ConfigurationError, MissingDependencyError
from pgn_client.wire.aws import HOST, SigV4
from pgn_client.wire.endpoint import READY, Credential, Endpoint
from pgn_client.wire.protocols import MalformedAnswerError, WireResponse, open_protocol
from tests.wire.exchanges import ok, picture, sent

NAMES = sorted(file.stem for file in READY.glob("*.toml"))
FILLED = {
    "RESOURCE": "r",
    "PROJECT_ID": "11111111-2222-3333-4444-555555555555",
    "ITERATION": "Iteration1",
    "REGION": "us-east-1",
}


def filled(name: str, folder) -> Endpoint:
    """The endpoint of a ready file whose places are filled in."""
    text = (READY / f"{name}.toml").read_text(encoding="utf-8")
    for place, value in FILLED.items():
        text = text.replace(place, value)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return Endpoint.open(str(path))


def shape(value):
    """JSON with every number and text replaced by its type."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


def path_of(url: str) -> str:
    return httpx.URL(url).path


def test_there_are_three():
    assert NAMES == ["amazon-rekognition", "azure-custom-vision", "google-vision"]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_lists_and_shows_each(name, capsys):
    assert main(["endpoints"]) == 0
    assert any(line.startswith(f"{name}  ") for line in capsys.readouterr().out.splitlines())
    assert main(["endpoints", "show", name]) == 0
    shown = capsys.readouterr().out
    assert tomllib.loads(shown)["protocol"] == "custom"
    # What remains to be filled in is told in the comments.
    comments = [line for line in shown.splitlines() if line.startswith("#")]
    for place in FILLED:
        if place in tomllib.loads(shown)["url"]:
            assert any(place in line for line in comments)


@pytest.mark.parametrize("words", [["show"], ["show", "aws"], ["show", "../endpoint"]])
def test_a_name_that_is_none_of_them_is_refused(words, capsys):
    assert main(["endpoints", *words]) == 2
    assert "google-vision" in capsys.readouterr().err


def test_a_name_may_stand_for_the_url():
    assert Endpoint.open("google-vision") == Endpoint.open(READY / "google-vision.toml")
    with pytest.raises(ConfigurationError, match="expected http"):
        Endpoint.open("no-such-service")


# ---- what is sent


def test_google_gets_what_its_own_client_sends(tmp_path):
    headers, body = sent("gvision_3.16.0__label_detection")
    request = open_protocol(filled("google-vision", tmp_path)).encode([picture()])
    assert request.method == "POST"
    assert path_of(request.url) == headers[":path"].partition("?")[0]
    assert request.headers["content-type"] == headers["content-type"]
    theirs = json.loads(body)
    # Google's client spells the enum LABEL_DETECTION by its number.
    assert theirs["requests"][0]["features"][0]["type"] == 4
    theirs["requests"][0]["features"][0]["type"] = "LABEL_DETECTION"
    ours = json.loads(request.body)
    assert shape(ours) == shape(theirs)
    assert ours["requests"][0]["features"][0]["type"] == "LABEL_DETECTION"


def test_azure_gets_what_its_own_client_sends(tmp_path):
    headers, body = sent("azure_customvision_3.1.1__classify_image")
    endpoint = filled("azure-custom-vision", tmp_path)
    request = open_protocol(endpoint).encode([picture()])
    assert request.method == "POST"
    assert path_of(request.url) == headers[":path"]

    def form(content_type, content):
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        (part,) = BytesParser().parsebytes(head + content).get_payload()
        return part.get_param("name", header="content-disposition"), part.get_payload(decode=True)

    assert headers["content-type"].startswith("multipart/form-data; boundary=")
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert form(request.headers["content-type"], request.body) == ("imageData", picture().data)
    assert form(headers["content-type"], body)[0] == "imageData"
    assert Credential("KEY").headers(endpoint.options["key_header"]) == {
        "prediction-key": headers["prediction-key"]
    }


def test_amazon_gets_what_its_own_client_sends(tmp_path):
    headers, body = sent("boto3_1.44.5__detect_labels")
    request = open_protocol(filled("amazon-rekognition", tmp_path)).encode([picture()])
    assert (request.method, path_of(request.url)) == ("POST", headers[":path"])
    for name in ("content-type", "x-amz-target"):
        assert request.headers[name] == headers[name]
    assert shape(json.loads(request.body)) == shape(json.loads(body))


# ---- what comes back

ANSWERS = {
    "google-vision": {
        "responses": [
            {
                "labelAnnotations": [
                    {"mid": "/m/01yrx", "description": "Cat", "score": 0.97, "topicality": 0.97},
                    {"mid": "/m/0307l", "description": "Felidae", "score": 0.91, "topicality": 0.9},
                ]
            }
        ]
    },
    "azure-custom-vision": {
        "id": "1",
        "project": "2",
        "iteration": "3",
        "created": "2026-01-01T00:00:00.000Z",
        "predictions": [
            {"probability": 0.97, "tagId": "a", "tagName": "Cat", "tagType": "Regular"},
            {"probability": 0.03, "tagId": "b", "tagName": "Felidae", "tagType": "Regular"},
        ],
    },
    "amazon-rekognition": {
        "Labels": [
            {"Name": "Cat", "Confidence": 100.0, "Instances": [], "Parents": []},
            {"Name": "Felidae", "Confidence": 91.5, "Instances": [], "Parents": []},
        ],
        "LabelModelVersion": "3.0",
    },
}
FAILURES = {
    "google-vision": ({"responses": [{"error": {"code": 3, "message": "Bad image"}}]}, "Bad image"),
    "azure-custom-vision": ({"predictions": []}, "0 labels"),
    "amazon-rekognition": ({"Labels": []}, "0 labels"),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_read(name, tmp_path):
    (answer,) = open_protocol(filled(name, tmp_path)).decode(ok(ANSWERS[name]))
    assert answer.labels == ("Cat", "Felidae")
    assert answer.kind == ("probabilities" if name.startswith("azure") else "logits")


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_is_told(name, tmp_path):
    document, words = FAILURES[name]
    with pytest.raises(MalformedAnswerError, match=words):
        open_protocol(filled(name, tmp_path)).decode(ok(document))


def test_a_throttled_request_to_amazon_is_sent_again(tmp_path):
    protocol = open_protocol(filled("amazon-rekognition", tmp_path))
    throttled = {"__type": "ProvisionedThroughputExceededException", "message": "slow down"}
    assert protocol.retryable(WireResponse(400, {}, json.dumps(throttled).encode())) is True
    assert protocol.retryable(WireResponse(400, {}, b'{"__type": "InvalidImage"}')) is None


# ---- the signature


@pytest.mark.parametrize(
    ("host", "service", "region"),
    [
        ("rekognition.us-east-1.amazonaws.com", "rekognition", "us-east-1"),
        ("rekognition-fips.us-gov-west-1.amazonaws.com", "rekognition", "us-gov-west-1"),
        ("rekognition.cn-north-1.amazonaws.com.cn", "rekognition", "cn-north-1"),
        ("runtime.sagemaker.eu-west-3.amazonaws.com", "sagemaker", "eu-west-3"),
    ],
)
def test_service_and_region_are_in_the_host(host, service, region):
    match = HOST.fullmatch(host)
    assert (match["service"], match["region"]) == (service, region)


@pytest.fixture
def signature(monkeypatch):
    pytest.importorskip("botocore")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return SigV4()


def test_the_signature_covers_what_amazons_own_client_signs(signature, tmp_path):
    headers, _ = sent("boto3_1.44.5__detect_labels")
    request = open_protocol(filled("amazon-rekognition", tmp_path)).encode([picture()])
    signed = signature(
        httpx.Request(request.method, request.url, headers=request.headers, content=request.body)
    )

    def parts(text):
        scheme, _, rest = text.partition(" ")
        fields = dict(part.split("=", 1) for part in rest.split(", "))
        key, _, *scope = fields["Credential"].split("/")
        return scheme, key, scope, fields["SignedHeaders"]

    assert parts(signed.headers["authorization"]) == parts(headers["authorization"])
    assert len(signed.headers["x-amz-date"]) == len(headers["x-amz-date"])
    assert "secret" not in repr(signature)


def test_a_host_that_is_not_amazons_needs_service_and_region(signature):
    request = httpx.Request("POST", "https://proxy.example/", content=b"x")
    with pytest.raises(ConfigurationError, match=r"got the host proxy\.example"):
        signature(request)
    explicit = SigV4("rekognition", "us-east-1")
    assert "authorization" in explicit(request).headers


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(MissingDependencyError, match=r"pgn-client\[aws\]"):
        SigV4()
