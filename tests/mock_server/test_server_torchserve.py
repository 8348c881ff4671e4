from __future__ import annotations

import base64

import pytest

pytestmark = pytest.mark.anyio

PREDICT = "/predictions/tiny"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
async def client(open_client):
    async with open_client() as client:
        yield client


async def own(client, picture, count=5):
    """Return label to score as our own protocol says it."""
    [prediction] = (await client.post(f"/v1/classify?top_k={count}", content=picture)).json()[
        "predictions"
    ]
    return dict(zip(prediction["labels"], prediction["scores"], strict=True))


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("path", [PREDICT, f"{PREDICT}/1.0"])
async def test_the_answer_maps_the_best_five_labels_to_scores(client, png, method, path):
    answer = await client.request(method, path, content=png())
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == pytest.approx(await own(client, png()))
    assert list(answer.json()) == list(await own(client, png()))


@pytest.mark.parametrize(
    "content_type", [None, "image/png", "application/octet-stream", "text/plain", "a/b; c=d"]
)
async def test_any_content_type_will_do_for_a_raw_picture(client, png, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert (await client.post(PREDICT, content=png(), headers=headers)).status_code == 200


@pytest.mark.parametrize("field", ["data", "body"])
async def test_json_holds_base64(client, png, field):
    answer = await client.post(PREDICT, json={field: b64(png())})
    assert answer.json() == pytest.approx(await own(client, png()))


@pytest.mark.parametrize("field", ["data", "body"])
async def test_a_form_is_read_byte_for_byte(client, png, field):
    answer = await client.post(PREDICT, files={field: ("p.png", png(), "image/png")})
    assert answer.json() == pytest.approx(await own(client, png()))


async def test_a_form_may_have_other_fields_and_no_file_name(client, png):
    parts = [
        b'--x y\r\nContent-Disposition: form-data; name="note"\r\n\r\ndata\r\n',
        b"--x y\r\ncontent-disposition:form-data;name=data\r\n\r\n" + png() + b"\r\n",
        b"--x y--\r\n",
    ]
    headers = {"Content-Type": 'multipart/form-data; boundary="x y"'}
    answer = await client.post(PREDICT, content=b"".join(parts), headers=headers)
    assert answer.json() == pytest.approx(await own(client, png()))


PART = b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\nabc\r\n'
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", PART + b"--b--"),
        ("multipart/form-data; boundary=", PART + b"--b--"),
        ("multipart/form-data; boundary=other", PART + b"--b--"),
        (FORM, PART),
        (FORM, b"--b--"),
        (FORM, b"--b"),
        (FORM, b"no form"),
        (FORM, PART.replace(b"data", b"file") + b"--b--"),
        (FORM, PART.replace(b"\r\n\r\n", b"\r\n") + b"--b--"),
        (FORM, PART * 50 + b"--b--"),
        (FORM, PART + b"--b--"),
        ("multipart/form-data; boundary=" + "\xe9", PART + b"--b--"),
        ("application/json", b"{}"),
        ("application/json", b'{"data": null}'),
        ("application/json", b'{"data": "aGk=", "top_k": 3}'),
        ("application/json", b'{"instances": ["aGk="]}'),
        ("application/json", b'{"data": "/etc/passwd"}'),
        ("application/json", b"[]"),
        ("image/png", b"no picture"),
    ],
)
async def test_whatever_the_handler_trips_over_is_prediction_failed(client, content_type, body):
    answer = await client.post(
        PREDICT, content=body, headers={"Content-Type": content_type.encode("latin-1")}
    )
    assert answer.status_code == 503
    assert answer.json() == {
        "code": 503,
        "type": "InternalServerException",
        "message": "Prediction failed",
    }


@pytest.mark.parametrize("path", ["/predictions/x", f"{PREDICT}/2.0", "/predictions/Tiny"])
async def test_an_unknown_model_or_version_is_404(client, png, path):
    answer = await client.post(path, content=png())
    assert answer.status_code == 404
    assert (answer.json()["code"], answer.json()["type"]) == (404, "ModelNotFoundException")


@pytest.mark.parametrize(
    ("settings", "count"), [({"top_k": 2}, 2), ({"top_k": 6}, 5), ({"output": "label"}, 1)]
)
async def test_the_owners_limit_holds(open_client, png, settings, count):
    async with open_client(**settings) as client:
        answer = (await client.post(PREDICT, content=png())).json()
    assert len(answer) == count
    assert settings.get("output") != "label" or list(answer.values()) == [1.0]


async def test_overload_is_another_503_than_a_failed_prediction(open_client, png):
    async with open_client() as client:
        client._transport.app.state.service.ready = False
        answer = await client.post(PREDICT, content=png())
    assert answer.status_code == 503
    assert answer.json()["type"] == "ServiceUnavailableException"


async def test_an_embedding_is_the_plain_list(open_client, png):
    async with open_client(output="embedding") as client:
        answer = (await client.post(PREDICT, content=png())).json()
    assert len(answer) == 24
    assert all(isinstance(number, float) for number in answer)
