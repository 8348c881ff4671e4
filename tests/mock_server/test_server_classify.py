from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from mock_server.metrics import Metrics, ObserveMiddleware
from mock_server.preprocess import Jpeg, Preprocessing, Profile
from mock_server.service import Service
from mock_server.settings import Settings

pytestmark = pytest.mark.anyio

NAMES = ["goldfish", "crane", "tabby", "crane (2)", "lynx", "hen", "jay"]
PNG = {"Content-Type": "image/png"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def softmax(logits):
    return torch.softmax(torch.from_numpy(logits), 0).numpy()


async def test_a_raw_picture_gets_the_models_own_probabilities_best_first(
    open_client, png, direct_logits
):
    async with open_client() as client:
        answer = (await client.post("/v1/classify", content=png(1), headers=PNG)).json()
    expected = softmax(direct_logits(1))
    order = np.argsort(-expected)
    [prediction] = answer["predictions"]
    assert answer["model"] == "tiny"
    assert answer["output"] == "probs"
    assert prediction["labels"] == [NAMES[i] for i in order]
    assert prediction["scores"] == pytest.approx(expected[order], abs=1e-5)


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "image/jpeg"])
async def test_the_bytes_are_sniffed_whatever_the_content_type_says(open_client, png, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    async with open_client() as client:
        assert (
            await client.post("/v1/classify", content=png(), headers=headers)
        ).status_code == 200


async def test_json_without_a_content_type_is_json(open_client, png):
    body = f'{{"images": ["{b64(png())}"]}}'.encode()
    async with open_client() as client:
        assert (await client.post("/v1/classify", content=body)).status_code == 200


async def test_pictures_in_one_request_and_alone_agree_to_float_noise(open_client, png):
    async with open_client(max_batch_size=4) as client:
        together = (
            await client.post("/v1/classify", json={"images": [b64(png(i)) for i in range(6)]})
        ).json()
        for i, prediction in enumerate(together["predictions"]):
            [alone] = (await client.post("/v1/classify", content=png(i), headers=PNG)).json()[
                "predictions"
            ]
            assert prediction["labels"] == alone["labels"]
            assert prediction["scores"] == pytest.approx(alone["scores"], abs=1e-5)


async def test_a_bad_picture_in_a_list_does_not_hurt_its_neighbours(open_client, png):
    images = [b64(png(0)), "not base64!", b64(b"no picture"), b64(png(1))]
    async with open_client() as client:
        predictions = (await client.post("/v1/classify", json={"images": images})).json()[
            "predictions"
        ]
    assert ["error" in prediction for prediction in predictions] == [False, True, True, False]
    assert predictions[1]["error"]["code"] == predictions[2]["error"]["code"] == "invalid_image"


@pytest.mark.parametrize(
    ("server", "query", "body", "expected"),
    [
        (None, None, None, 7),
        (3, None, None, 3),
        (3, 5, None, 3),
        (5, 2, None, 2),
        (None, 9, 4, 4),
        (None, 3, 4, 3),
    ],
)
async def test_the_smallest_top_k_wins(open_client, png, server, query, body, expected):
    content = {"images": [b64(png())]} | ({} if body is None else {"top_k": body})
    params = {} if query is None else {"top_k": query}
    async with open_client(top_k=server) as client:
        [prediction] = (await client.post("/v1/classify", params=params, json=content)).json()[
            "predictions"
        ]
    assert len(prediction["labels"]) == len(prediction["scores"]) == expected


async def test_the_label_output_is_one_label_with_score_one(open_client, png, direct_logits):
    async with open_client(output="label") as client:
        answer = (await client.post("/v1/classify", content=png(2))).json()
    assert answer["output"] == "label"
    assert answer["predictions"] == [
        {"labels": [NAMES[direct_logits(2).argmax()]], "scores": [1.0]}
    ]


async def test_the_logits_output_is_the_models_logits(open_client, png, direct_logits):
    async with open_client(output="logits") as client:
        [prediction] = (await client.post("/v1/classify", content=png(2))).json()["predictions"]
    assert prediction["scores"] == pytest.approx(np.sort(direct_logits(2))[::-1], abs=1e-5)


async def test_rounding_keeps_the_asked_number_of_decimals(open_client, png):
    async with open_client(decimals=2) as client:
        [prediction] = (await client.post("/v1/classify", content=png())).json()["predictions"]
    assert all(score == round(score, 2) for score in prediction["scores"])


async def test_the_model_card_tells_what_a_client_must_know(open_client, served):
    async with open_client(top_k=3) as client:
        card = (await client.get("/v1/model")).json()
    weight, bias = served.network.patch_embed.proj.weight, served.network.patch_embed.proj.bias
    numbers = [*weight.flatten().tolist(), *bias.tolist()]
    assert (
        card.pop("patch_embedding_sha256")
        == hashlib.sha256(struct.pack(f"<{len(numbers)}f", *numbers)).hexdigest()
    )
    assert len(card.pop("weights_sha256")) == 64
    assert card == {
        "name": "tiny",
        "input_size": 32,
        "patch_size": 8,
        "profile": "direct",
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "output": "probs",
        "top_k": 3,
        "classes": NAMES,
        "limits": {"body_bytes": 8388608, "pixels": 16777216},
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'{"pictures": []}',
        b'{"images": []}',
        b'{"images": [1]}',
        b'{"images": "aGk="}',
        b'{"images": ["aGk="], "top_k": 0}',
        b'{"images": ["aGk="], "top_k": true}',
        b'{"images": ["aGk="], "top_k": 2.5}',
        b'{"a":' * 5000,
        b'{"images": ["\xff"]}',
    ],
)
async def test_a_malformed_request_is_400_in_our_form(open_client, body):
    headers = {"Content-Type": "application/json", "X-Request-Id": "r1"}
    async with open_client() as client:
        answer = await client.post("/v1/classify", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"].keys() == {"code", "message", "request_id"}
    assert answer.json()["error"]["code"] == "invalid_request"
    assert answer.json()["error"]["request_id"] == "r1"


@pytest.mark.parametrize("query", ["top_k=0", "top_k=x", "top_k=-1", "topk=3"])
async def test_a_wrong_query_is_400(open_client, png, query):
    async with open_client() as client:
        assert (await client.post(f"/v1/classify?{query}", content=png())).status_code == 400


async def test_more_pictures_than_the_queue_holds_are_400(open_client, png):
    async with open_client(max_queue=2) as client:
        answer = await client.post("/v1/classify", json={"images": [b64(png())] * 3})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "data", [b"no picture", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
async def test_bytes_that_are_no_picture_are_422(open_client, data):
    async with open_client() as client:
        answer = await client.post("/v1/classify", content=data, headers=PNG)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_image"


@pytest.mark.parametrize("side", [33, 10_000, 20_000])
async def test_too_many_pixels_are_413_before_any_is_decoded(open_client, bomb, side):
    async with open_client(max_pixels=32 * 32) as client:
        answer = await client.post("/v1/classify", content=bomb(side), headers=PNG)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "payload_too_large"


async def test_a_body_announced_too_long_is_413(open_client, png):
    async with open_client(max_body_bytes=100) as client:
        assert (await client.post("/v1/classify", content=png(), headers=PNG)).status_code == 413


async def test_a_body_that_grows_too_long_while_streaming_is_413_without_reading_the_rest(
    open_client,
):
    sent = 0

    async def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"x" * 60

    async with open_client(max_body_bytes=100) as client:
        answer = await client.post("/v1/classify", content=endless())
    assert answer.status_code == 413
    assert sent < 10


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Basic s3cret", "Bearer", "Bearer s3cr\u00e9t"]
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/classify"), ("GET", "/v1/model")])
async def test_a_missing_or_wrong_key_is_401_with_a_challenge(
    open_client, png, authorization, method, path
):
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    async with open_client(api_key="s3cret") as client:
        answer = await client.request(method, path, content=png(), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


async def test_the_right_key_is_let_in(open_client, png):
    async with open_client(api_key="s3cret") as client:
        headers = {"Authorization": "bearer s3cret"}
        assert (
            await client.post("/v1/classify", content=png(), headers=headers)
        ).status_code == 200


def test_the_key_is_in_no_repr():
    assert "s3cret" not in repr(Settings(api_key="s3cret"))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/classify", 405, "method_not_allowed"),
        ("POST", "/v1/classify/", 404, "not_found"),
    ],
)
async def test_the_frameworks_own_errors_have_our_form(open_client, method, path, status, code):
    async with open_client() as client:
        answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "settings", [{"profile": Profile.parse("resize_crop:32:32")}, {"jpeg": Jpeg(75)}]
)
async def test_a_picture_too_long_to_prepare_is_refused_beside_its_neighbours(
    open_client, png, settings
):
    """60 000 is too much to resize by its other edge, and 65 501 is more than a JPEG can hold."""
    long = BytesIO()
    Image.new("RGB", (65_501 if "jpeg" in settings else 60_000, 1)).save(long, "PNG")
    async with open_client(**settings) as client:
        both = await client.post(
            "/v1/classify", json={"images": [b64(long.getvalue()), b64(png())]}
        )
        alone = await client.post("/v1/classify", content=long.getvalue(), headers=PNG)
        theirs = await client.post("/", content=long.getvalue(), headers=PNG)
    bad, good = both.json()["predictions"]
    assert bad["error"]["code"] == "invalid_image"
    assert len(good["labels"]) == 7
    assert (both.status_code, alone.status_code, theirs.status_code) == (200, 422, 400)


@pytest.mark.parametrize("failure", [OSError, MemoryError, ValueError])
async def test_any_failure_to_prepare_is_the_pictures_own(
    open_client, png, monkeypatch, caplog, failure
):
    def fail(self, image):
        raise failure("secret path")

    monkeypatch.setattr(Preprocessing, "normalise", fail)
    async with open_client() as client:
        answer = await client.post("/v1/classify", content=png(), headers=PNG)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_image"
    assert "secret path" not in answer.text
    assert "secret path" in caplog.text


@pytest.mark.parametrize("path", ["/v1/classify", "/"])
async def test_a_mistake_of_ours_is_500_in_the_protocols_form_with_every_header(
    open_client, png, monkeypatch, caplog, path
):
    monkeypatch.setattr(Service, "rank", lambda *_, **__: 1 / 0)
    headers = PNG | {"X-Request-Id": "abc", "Idempotency-Key": "once"}
    async with open_client() as client:
        answer = await client.post(path, content=png(), headers=headers)
        counted = (await client.get("/metrics")).text
    error = answer.json()["error"]
    assert answer.status_code == 500
    assert (
        error == ("internal server error; see the server's log")
        if path == "/"
        else error["request_id"] == "abc"
    )
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["idempotency-key"] == "once"
    assert answer.headers.keys() >= {"x-compute-time", "x-compute-type"}
    assert 'status="500"} 1.0' in counted
    assert "ZeroDivisionError" in caplog.text


async def test_an_answer_that_was_begun_is_not_answered_again():
    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    sent = []

    async def send(message):
        sent.append(message["type"])

    scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": []}
    with pytest.raises(ZeroDivisionError):
        await ObserveMiddleware(half, Metrics(), "cpu")(scope, None, send)
    assert sent == ["http.response.start"]


async def test_a_model_that_answers_nan_is_500(open_client, served, png):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return torch.full((len(x), 7), float("nan"))

    async with open_client(model=replace(served, network=Broken())) as client:
        answer = await client.post("/v1/classify", content=png())
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"


async def test_a_model_that_fails_is_500_without_its_message(open_client, served, png, caplog):
    class Broken(torch.nn.Module):
        def forward(self, x):
            if x.any():  # all but the zeros that warm it up
                raise RuntimeError("secret path")
            return torch.zeros(len(x), 7)

    async with open_client(model=replace(served, network=Broken())) as client:
        answer = await client.post("/v1/classify", content=png())
    assert answer.status_code == 500
    assert "secret path" not in answer.text
    assert "secret path" in caplog.text


async def test_ids_are_repeated_and_times_are_told(open_client, png):
    headers = {"X-Request-Id": "abc", "Idempotency-Key": "once"}
    async with open_client() as client:
        answer = await client.post("/v1/classify", content=png(), headers=headers)
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["idempotency-key"] == "once"
    assert answer.headers["x-compute-type"] == "cpu"
    assert float(answer.headers["x-compute-time"]) >= 0


async def test_a_request_id_is_made_where_none_was_sent(open_client, png):
    async with open_client() as client:
        first, second = [
            (await client.post("/v1/classify", content=png())).headers["x-request-id"] for _ in "ab"
        ]
    assert first != second


async def test_openapi_describes_both_forms_of_the_body(open_client):
    async with open_client() as client:
        content = (await client.get("/openapi.json")).json()["paths"]["/v1/classify"]["post"][
            "requestBody"
        ]["content"]
    assert {"image/png", "image/webp", "image/jpeg", "application/json"} <= content.keys()
