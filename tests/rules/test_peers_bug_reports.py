"""Twenty public bug reports of peers, drawn at random and tried here; ``benchmarks/LOG.md`` lists
the links. Two more of them (console encodings, class folders without images) are tests of rules.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading

import httpx
import numpy as np
import pytest
from PIL import Image
from wire.fakes import Server, answered, async_client, client, file_bytes, picture
from wire.test_sockets import serving

from mock_server.routes.payload import from_base64
from pgn_client import AdaptedClient, ImageFailure, Prediction
from pgn_client.errors import ConfigurationError, ProtocolMismatchError, TimedOutError
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.dataset import load_task
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import WireResponse, open_protocol

KEY = "s3cr3t-api-key-0001"


def chat(**choice: object) -> WireResponse:
    """Return a chat answer whose only choice has these fields."""
    body = {"object": "chat.completion", "choices": [choice]}
    return WireResponse(200, {"content-type": "application/json"}, json.dumps(body).encode())


def openai() -> object:
    endpoint = Endpoint("http://h/v1/chat/completions", "openai", "m", labels=("cat", "dog"))
    return open_protocol(endpoint)


def test_json_with_the_type_of_plain_text_is_read():
    """go-proxy-bingai 448"""
    body = json.loads(answered().content)
    server = Server([httpx.Response(200, text=json.dumps(body))])
    with client(server, protocol="pgn") as c:
        assert c.classify(picture()).label == "a"


def test_an_answer_without_a_finish_reason_is_read():
    """openai-php 68"""
    [answer] = openai().decode(chat(message={"role": "assistant", "content": "dog"}))
    assert answer.labels[0] == "dog"


def test_a_status_200_with_an_error_object_is_an_error_with_the_servers_words():
    """lmstudio lms 362"""
    body = {"error": {"message": "Vision add-on is not loaded"}, "message": "Vision add-on"}
    with (
        client(Server([httpx.Response(200, json=body)]), protocol="pgn") as c,
        pytest.raises(ProtocolMismatchError, match="Vision add-on is not loaded"),
    ):
        c.classify(picture())


def test_no_log_and_no_error_shows_the_key(caplog):
    """unleash-java-sdk 206: two clients of one key, and an endpoint that echoes it"""
    refusal = httpx.Response(403, text=f"bad key {KEY}")
    with (
        caplog.at_level(logging.DEBUG),
        client(Server([refusal]), api_key=KEY, protocol="pgn") as c,
        client(Server(), api_key=KEY, protocol="pgn"),
        pytest.raises(Exception, match="403") as caught,
    ):
        c.classify(picture())
    assert KEY not in caplog.text
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    """colmap 4322"""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(size=16)
    assert open_image(file_bytes(image, "PNG", exif=exif)).tobytes() == image.tobytes()


def test_the_model_sees_upright_images():
    """ollama 18418"""
    exif = Image.Exif()
    exif[0x0112] = 3
    image = picture(size=16)
    with client(Server(), protocol="pgn") as c:
        sent = c.adapt(file_bytes(image, "PNG", exif=exif))
    assert np.array_equal(np.asarray(sent), np.asarray(image.rotate(180)))


def test_one_broken_image_does_not_ruin_the_batch():
    """py-feat 96"""
    images = [picture(i) for i in range(6)]
    images[3] = file_bytes(picture())[:40]
    with client(Server(), protocol="pgn") as c:
        results = list(c.classify_many(images))
    assert [isinstance(result, ImageFailure) for result in results] == [i == 3 for i in range(6)]


def test_one_label_is_refused_because_its_score_would_always_be_1():
    """transformers 24008 and transformers.js 135"""
    with pytest.raises(ConfigurationError, match="two or more"):
        AdaptedClient("http://h", None, protocol="huggingface-zero-shot", labels=["cat"])


def test_sigmoid_scores_of_a_single_label_model_are_not_taken_for_probabilities():
    """transformers 35848: they lie in [0, 1] and sum to more than 1"""
    scores = [{"label": "a", "score": 0.9}, {"label": "b", "score": 0.8}]
    with (
        client(Server([httpx.Response(200, json=scores)]), protocol="huggingface") as c,
        pytest.raises(ConfigurationError, match="sigmoid"),
    ):
        c.classify(picture())


def test_a_retry_sends_the_whole_body_again():
    """pycaprio 5"""
    server = Server([httpx.Response(503), httpx.Response(429), answered()])
    with client(server, protocol="pgn") as c:
        c.classify(picture())
    first, *others = [request.content for request in server.requests]
    assert first.startswith(b"\x89PNG")
    assert others == [first, first]
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_a_read_that_timed_out_is_not_sent_again():
    """mollie-api-python 325: the server may have done, and billed, the work"""
    server = Server([httpx.ReadTimeout("late"), answered()])
    with client(server, protocol="pgn") as c, pytest.raises(TimedOutError):
        c.classify(picture())
    assert len(server.requests) == 1


def test_a_server_that_never_answers_does_not_hang_the_client():
    """triton 4096"""
    done = threading.Event()
    with serving(lambda connection, _: done.wait(60)) as url:
        with (
            AdaptedClient(url, None, protocol="pgn", timeout=0.3) as c,
            pytest.raises(TimedOutError),
        ):
            c.classify(picture())
        done.set()


def test_base64_without_padding_is_decoded():
    """openedai-vision 4"""
    data = file_bytes(picture())
    text = base64.b64encode(data).decode().rstrip("=")
    assert from_base64(text) == data


@pytest.fixture
def folders(tmp_path):
    """Two class folders of images, whose names have the suffixes that were reported."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(10):
            image = picture(20 * number + i)
            image.save(tmp_path / name / f"{i}{('.JPEG', '.JPG', '.jpg', '.PNG')[i % 4]}")
    return tmp_path


def test_suffixes_in_capital_letters_are_images(folders):
    """anomalib 3058 and torchvision 446"""
    task = load_task(folders)
    assert len(task.train) + len(task.val) + len(task.test) == 20


def test_a_hidden_folder_is_no_class_and_hidden_files_are_no_images(folders):
    """torchvision 2831 and impy 14"""
    before = load_task(folders).digest()
    (folders / ".ipynb_checkpoints").mkdir()
    picture(99).save(folders / ".ipynb_checkpoints" / "1-checkpoint.png")
    picture(98).save(folders / "cat" / "._1.png")
    (folders / "cat" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert load_task(folders).classes == ("cat", "dog")
    assert load_task(folders).digest() == before


def test_a_class_folder_without_images_is_refused_with_a_remedy(folders):
    """torchvision 4925"""
    (folders / "bird").mkdir()
    with pytest.raises(ConfigurationError, match=r"bird.*remove the empty folder"):
        load_task(folders)


def test_a_client_that_is_used_again_after_an_error_works():
    """triton 4096: the client hung after the first failure"""

    async def ask() -> Prediction:
        server = Server([httpx.ConnectError("down"), answered()])
        async with async_client(server, protocol="pgn", max_retries=0) as c:
            with pytest.raises(Exception, match="cannot connect"):
                await c.classify(picture())
            return await c.classify(picture())

    assert asyncio.run(ask()).label == "a"
