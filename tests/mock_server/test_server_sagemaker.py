from __future__ import annotations

import base64
import json

import pytest

from mock_server.faults import FaultPlan

pytestmark = pytest.mark.anyio

RUNTIME = "/endpoints/any-name/invocations"
both = pytest.mark.parametrize("path", [RUNTIME, "/invocations"])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
async def client(open_client):
    async with open_client() as client:
        yield client


@both
async def test_the_answer_is_hugging_faces(client, png, path):
    requests = [
        {"content": png(), "headers": {"Content-Type": "image/png"}},
        {"content": png(), "headers": {"Content-Type": "application/x-image"}},
        {"json": {"inputs": b64(png()), "parameters": {"top_k": 3}}},
        {"json": {"inputs": [b64(png()), b64(png(1))]}},
        {"json": {"inputs": b64(png()), "parameters": {"candidate_labels": ["hen", "jay"]}}},
    ]
    for request in requests:
        assert (await client.post(path, **request)).json() == (
            await client.post("/", **request)
        ).json()


async def test_the_runtime_adds_its_headers(client, png):
    headers = {
        "X-Amzn-SageMaker-Custom-Attributes": "trace=1",
        "X-Amzn-SageMaker-Target-Variant": "v1",
    }
    answer = await client.post(RUNTIME, content=png(), headers=headers)
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "trace=1"
    assert answer.headers["x-amzn-requestid"] == answer.headers["x-request-id"]
    assert answer.headers["x-amzn-invoked-production-variant"]


async def test_long_attributes_are_cut(client, png):
    answer = await client.post(
        RUNTIME, content=png(), headers={"X-Amzn-SageMaker-Custom-Attributes": "x" * 5000}
    )
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "x" * 1024


@pytest.mark.parametrize(
    "body", [b"no picture", b"{", b'{"inputs": "aGk="}', b'{"inputs": "x", "parameters": [1]}']
)
async def test_the_runtime_wraps_the_containers_errors(client, body):
    inside = await client.post("/invocations", content=body)
    outside = await client.post(RUNTIME, content=body)
    assert (inside.status_code, outside.status_code) == (400, 424)
    content = outside.json()
    assert content["OriginalStatusCode"] == 400
    assert json.loads(content["OriginalMessage"]) == inside.json()
    assert content["OriginalMessage"] in content["Message"]
    assert outside.headers["x-amzn-errortype"] == "ModelError"
    assert "x-amzn-errortype" not in inside.headers


async def test_a_model_that_fails_is_a_model_error_of_500(open_client, png):
    faults = FaultPlan.parse({"rules": [{"kind": "status", "status": 500}]})
    async with open_client(faults=faults) as client:
        answer = await client.post(RUNTIME, content=png())
    assert answer.json()["OriginalStatusCode"] == 500


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "ModelError"),
        (429, "ThrottlingException"),
        (503, "ServiceUnavailable"),
        (401, "AccessDeniedException"),
    ],
)
async def test_a_fault_has_amazons_name(open_client, png, status, kind):
    faults = FaultPlan.parse({"rules": [{"kind": "status", "status": status}]})
    async with open_client(faults=faults) as client:
        answer = await client.post(RUNTIME, content=png())
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (status, kind)


async def test_a_signature_is_no_key(open_client, png):
    signed = {
        "Authorization": "AWS4-HMAC-SHA256 "
        "Credential=A/20260101/us-east-1/sagemaker/aws4_request, "
        "Signature=0"
    }
    async with open_client(api_key="s3cret") as client:
        refused = await client.post(RUNTIME, content=png(), headers=signed)
        accepted = await client.post(
            RUNTIME, content=png(), headers=signed | {"X-API-Key": "s3cret"}
        )
    assert (refused.status_code, accepted.status_code) == (403, 200)
    assert refused.headers["x-amzn-errortype"] == "AccessDeniedException"


async def test_ping_is_healthy(client):
    answer = await client.get("/ping")
    assert (answer.status_code, answer.json()) == (200, {"status": "Healthy"})
