"""Rule 4: the lossless re-encoding must not make an image unsendable."""

from __future__ import annotations

import io
import logging

import httpx
import numpy as np
import pytest
from PIL import Image
from wire.fakes import CARD, Server, ToyAdapter, answered, client, file_bytes

from pgn_client.errors import ImageError

NOISE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
)
JPEG = file_bytes(NOISE, "JPEG", quality=20)
PNG = file_bytes(NOISE)


class Small(Server):
    """Accepts bodies of at most ``most`` bytes, which it says only by the status 413."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=CARD)
        self.requests.append(request)
        if len(request.content) > self.most:
            return httpx.Response(413)
        self.bodies.append(request.content)
        return answered()


def test_the_users_own_jpeg_is_sent_where_its_png_is_too_large():
    assert len(JPEG) < len(PNG)
    server = Small(len(JPEG))
    with client(server) as c:
        assert c.classify(JPEG).label == "a"
        assert c.usage.billable == 2
        assert c.usage.refused == 1
    assert server.bodies == [JPEG]
    assert server.requests[-1].headers["content-type"] == "image/jpeg"


def test_a_limit_that_was_learnt_is_not_tried_again():
    server = Small(len(JPEG))
    with client(server) as c:
        for _ in range(3):
            c.classify(JPEG)
    assert len(server.requests) == 4


def test_a_known_limit_costs_no_request():
    server = Server(card={**CARD, "limits": {"body_bytes": len(JPEG)}})
    with client(server) as c:
        c.classify(JPEG)
    assert [request.content for request in server.requests] == [JPEG]


def test_a_prompt_is_sent_as_lossless_webp_and_never_scaled():
    smooth = Image.fromarray(
        np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8)[..., None].repeat(3, 2)
    )
    with client(server := Small(10**9), ToyAdapter()) as c:
        c.classify(smooth)
        whole = len(server.bodies[0])
    with client(server := Small(whole - 1), ToyAdapter()) as c:
        assert c.classify(smooth).label == "x"
    sent = Image.open(io.BytesIO(server.bodies[0]))
    assert sent.format == "WEBP"
    assert np.array_equal(np.asarray(sent), 255 - np.asarray(smooth))

    with client(server := Small(10), ToyAdapter()) as c, pytest.raises(Exception, match="413"):
        c.classify(smooth)
    sizes = {Image.open(io.BytesIO(request.content)).size for request in server.requests}
    assert sizes == {(128, 128)}


def test_a_raw_image_is_scaled_as_the_last_resort_and_the_log_says_so_once(caplog):
    server = Server(card={**CARD, "limits": {"body_bytes": 3000}})
    with client(server) as c, caplog.at_level(logging.WARNING, "pgn_client"):
        for _ in range(3):
            assert c.classify(NOISE).label == "a"
    assert all(len(request.content) <= 3000 for request in server.requests)
    assert len(server.requests) == 3
    assert caplog.text.count("sending scaled copies") == 1


def test_too_many_pixels_are_scaled_too():
    server = Server(card={**CARD, "limits": {"pixels": 10_000}})
    with client(server) as c:
        c.classify(NOISE)
    width, height = Image.open(io.BytesIO(server.requests[0].content)).size
    assert 5_000 < width * height <= 10_000


def test_an_image_that_cannot_be_sent_is_named(tmp_path):
    file = tmp_path / "panorama.png"
    NOISE.save(file)
    server = Server(card={**CARD, "limits": {"pixels": 100}})
    with client(server, ToyAdapter()) as c, pytest.raises(ImageError, match=r"panorama\.png: "):
        c.answers([file])
    assert server.requests == []


def test_a_file_that_needs_a_change_is_not_sent_as_it_is():
    """The EXIF orientation turns the pixels; a server might not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = file_bytes(NOISE, "JPEG", quality=20, exif=exif)
    server = Small(len(turned))
    with client(server) as c:
        c.classify(turned)
    assert turned not in server.bodies
