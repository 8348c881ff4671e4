"""Rule 1, the odd ways to send: cancelled calls, two-step authorization, closed clients, caches."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import numpy as np
import pytest
from PIL import Image
from wire.fakes import CARD, Server, ToyAdapter, answered, client, file_bytes, picture
from wire.test_sockets import full_queue, read_request, response, serving

from pgn_client import AdaptedClient, AsyncAdaptedClient, ImageFailure
from pgn_client.errors import CheckpointError, ConfigurationError, ConnectionFailedError
from pgn_client.wire.cache import AnswerCache


def test_a_call_that_is_cancelled_while_it_connects_costs_nothing():
    async def ask(url: str) -> int:
        async with AsyncAdaptedClient(url, None, protocol="pgn") as c:
            for _ in range(3):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(c.classify(picture()), 0.2)
            return c.usage.billable

    with full_queue() as url:
        assert asyncio.run(ask(url)) == 0


def test_digest_authorization_sends_an_image_twice_and_both_are_counted():
    received = []

    def handle(connection: socket.socket, _: int) -> None:
        while head := read_request(connection):
            received.append(b"authorization: digest" in head.lower())
            if received[-1]:
                connection.sendall(response())
            else:
                challenge = b'Digest realm="r", qop="auth", nonce="n", algorithm=MD5'
                connection.sendall(
                    b"HTTP/1.1 401 No\r\nwww-authenticate: %s\r\ncontent-length: 0\r\n\r\n"
                    % challenge
                )

    auth = httpx.DigestAuth("u", "p")
    with (
        serving(handle) as url,
        AdaptedClient(url, None, protocol="pgn", http={"auth": auth}) as c,
    ):
        c.classify(picture())
        assert (len(received), c.usage.billable, c.usage.refused) == (2, 2, 1)


def test_a_client_that_is_closed_while_a_call_waits_sends_nothing_more():
    server = Server([httpx.Response(503)] * 9)
    c = client(server, protocol="pgn")
    c._sleep = lambda seconds: c.close()
    with pytest.raises(ConfigurationError, match="closed"):
        c.classify(picture())
    assert len(server.requests) == 1


@pytest.mark.parametrize("host", ["a..test", "a" * 64 + ".test"])
def test_a_host_that_cannot_be_looked_up_costs_nothing(host):
    with (
        AdaptedClient(f"http://{host}", None, protocol="pgn", max_retries=0) as c,
        pytest.raises(ConnectionFailedError),
    ):
        c.classify(picture())
    assert c.usage.billable == 0


def test_what_is_paid_for_is_yielded_before_an_error_of_the_source():
    def images():
        yield from (picture(i) for i in range(9))
        raise OSError("the disk is gone")

    results = []
    with client(Server(), protocol="pgn", max_concurrency=2) as c, contextlib.suppress(OSError):
        for result in c.classify_many(images()):
            results.append(result)
        assert len(results) == c.usage.billable
    assert len(results) == 8


def test_a_later_error_of_the_checkpoint_loses_no_result():
    class Failing(ToyAdapter):
        def prepare(self, images):
            if len(self.batches) == 3:
                raise CheckpointError("broken")
            return super().prepare(images)

    results = []
    with client(Server(), Failing(), max_concurrency=2) as c, contextlib.suppress(CheckpointError):
        for result in c.classify_many(picture(i) for i in range(20)):
            results.append(result)
    assert len(results) == c.usage.billable == 6


def test_recorded_answers_do_not_hide_a_refusal(tmp_path):
    """Every second image is recorded; the endpoint refuses all the others."""
    images = [picture(i) for i in range(40)]
    path = tmp_path / "a.sqlite"
    with client(Server(), protocol="pgn", cache=path) as c:
        list(c.classify_many(images[::2]))
    server = Server([httpx.Response(200, text="<html>Sign in</html>")] * 40)
    with (
        client(server, protocol="pgn", cache=path) as c,
        pytest.raises(Exception, match="3 images in a row"),
    ):
        list(c.classify_many(images))
    assert len(server.requests) == 3


def test_one_stray_413_does_not_make_all_other_images_too_large():
    server = Server([answered(), httpx.Response(413)])
    with client(server, ToyAdapter(), max_concurrency=1) as c:
        results = list(c.classify_many([picture()] * 20))
    assert sum(isinstance(result, ImageFailure) for result in results) <= 1


def test_an_image_that_needs_a_plainer_dialect_leaves_the_recorded_ones_valid(tmp_path):
    """The endpoint took JSON for ten images; one image alone is refused as JSON."""
    answer = [{"label": "cat", "score": 0.6}, {"label": "dog", "score": 0.4}]
    images = [picture(i) for i in range(10)]
    path = tmp_path / "a.sqlite"

    def run(script, sent):
        server = Server(script)
        with client(server, protocol="huggingface", cache=path, max_concurrency=1) as c:
            results = list(c.classify_many(sent))
        return server, results

    run([httpx.Response(200, json=answer) for _ in images], images)
    odd = [httpx.Response(400), httpx.Response(200, json=answer)]
    run(odd, [*images, picture(99)])
    server, results = run([], images)
    assert server.requests == []
    assert all(not isinstance(result, ImageFailure) for result in results)


def test_the_answer_to_a_scaled_copy_is_not_recorded_as_that_of_the_image(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "a.sqlite"
    small = Server(card={**CARD, "limits": {"pixels": 1000}})
    with client(small, cache=path) as c:
        c.classify(noise)
    large = Server([answered(scores=[0.1, 0.9])])
    with client(large, cache=path) as c:
        assert c.classify(noise).label == "b"


def test_a_file_that_was_replaced_meanwhile_is_not_sent_in_place_of_the_image(tmp_path):
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    other = Image.effect_noise((64, 64), 80).convert("RGB")
    file = tmp_path / "latest.jpg"
    file.write_bytes(file_bytes(image, "JPEG", quality=30))
    sent = []

    def server(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        sent.append(request.content)
        if len(sent) == 1:
            file.write_bytes(file_bytes(other, "JPEG", quality=30))
            return httpx.Response(413)
        return answered()

    with client(server, protocol="pgn") as c:
        c.classify(file)
    assert file.read_bytes() not in sent


def test_an_outage_keeps_no_images_in_memory(tmp_path):
    """Raising one error object again and again would lengthen its traceback without end."""
    path = tmp_path / "a.sqlite"
    with client(Server(), cache=path) as c:
        c.classify(picture())
    with client(
        Server(card=httpx.ConnectError("down")), cache=AnswerCache(path), max_retries=0
    ) as c:
        errors = []
        for seed in range(1, 9):
            with pytest.raises(ConnectionFailedError) as caught:
                c.classify(picture(seed))
            errors.append(caught.value)
    assert len({id(error) for error in errors}) == len(errors)
    depths = [len(list(iter_frames(error))) for error in errors]
    assert depths[-1] == depths[1]


def iter_frames(error):
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next
