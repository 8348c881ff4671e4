"""Rule 1: what was sent is decided by what we did, never by what the peer wrote."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from wire.fakes import picture
from wire.test_sockets import read_request, response, serving

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.errors import ConfigurationError, EndpointError

BAD_HEADER = b"HTTP/1.1 200 OK\r\nbad CERTIFICATE header\r\n\r\n"


def classify_sync(url: str, **options: object) -> tuple[int, int]:
    """Classify one image; return how often it is counted, and how many images were sent."""
    with AdaptedClient(url, None, protocol="pgn", **options) as c:
        with pytest.raises(EndpointError):
            c.classify(picture())
        return c.usage.billable, c.usage.images


def classify_async(url: str, **options: object) -> tuple[int, int]:
    async def ask() -> tuple[int, int]:
        async with AsyncAdaptedClient(url, None, protocol="pgn", **options) as c:
            with pytest.raises(EndpointError):
                await c.classify(picture())
            return c.usage.billable, c.usage.images

    return asyncio.run(ask())


both = pytest.mark.parametrize("classify", [classify_sync, classify_async])


@both
@pytest.mark.parametrize(
    "answer",
    [
        BAD_HEADER,
        b"HTTP/1.1 200 OK\r\nx: UNKNOWN_CA\x00\r\n\r\n",
        b"[SSL: CERTIFICATE_VERIFY_FAILED]\r\n\r\n",
        b"",
    ],
)
def test_an_image_that_was_read_is_charged_whatever_the_answer_looks_like(classify, answer):
    received = []

    def handle(connection: socket.socket, number: int) -> None:
        if read_request(connection):
            received.append(number)
            connection.sendall(answer)

    with serving(handle) as url:
        assert classify(url, max_retries=0) == (1, 1)
    assert len(received) == 1


def test_a_budget_holds_against_a_server_that_pretends_a_tls_failure():
    received = []

    def handle(connection: socket.socket, number: int) -> None:
        if read_request(connection):
            received.append(number)
            connection.sendall(BAD_HEADER)

    with (
        serving(handle) as url,
        AdaptedClient(url, None, protocol="pgn", budget=3) as c,
    ):
        assert len(list(c.classify_many([picture(i) for i in range(18)]))) == 18
        assert c.usage.billable == 3
    assert len(received) == 3


@both
def test_a_connection_that_ends_before_the_body_costs_nothing(classify):
    """Nothing listens, so no byte of the body can have been written."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert classify(f"http://127.0.0.1:{port}", max_retries=1, timeout=20) == (0, 0)


@both
def test_a_deadline_in_the_middle_of_the_body_is_charged(classify):
    """The server takes a part of the body and then nothing more."""
    done = threading.Event()

    def handle(connection: socket.socket, _: int) -> None:
        connection.recv(100)
        done.wait(30)

    with serving(handle) as url:
        assert classify(url, timeout=0.5) == (1, 1)
        done.set()


@both
def test_a_refusing_proxy_costs_nothing(classify):
    """The proxy refuses its CONNECT request, so the image's own request is never written."""

    def handle(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(response(b"no CERTIFICATE", status=b"403 Forbidden"))

    with serving(handle) as proxy:
        assert classify("https://192.0.2.1", max_retries=0, http={"proxy": proxy}) == (0, 0)


@pytest.mark.parametrize("kind", [AdaptedClient, AsyncAdaptedClient])
def test_a_signature_that_cannot_be_made_costs_nothing(kind):
    """The error of an ``auth`` of ours is raised as it is, and nothing was sent."""

    def sign(request):
        raise ConfigurationError("aws: no credentials")

    client = kind("http://127.0.0.1:9", None, protocol="pgn", http={"auth": sign})
    classify = client.classify
    if kind is AsyncAdaptedClient:

        def classify(image):
            return asyncio.run(client.classify(image))

    with pytest.raises(ConfigurationError, match="no credentials"):
        classify(picture())
    assert (client.usage.billable, client.usage.images) == (0, 0)
