"""Rule 17: a deadline is a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

import httpx
import pytest
from wire.fakes import picture
from wire.test_sockets import read_request, serving

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.errors import TimedOutError
from pgn_client.wire.deadline import Guard

HANG = 60
"""Seconds after which a test would have hung."""


def classify_sync(url: str, **options: object) -> None:
    with AdaptedClient(url, None, protocol="pgn", **options) as c:
        c.classify(picture())


def classify_async(url: str, **options: object) -> None:
    async def ask() -> None:
        async with AsyncAdaptedClient(url, None, protocol="pgn", **options) as c:
            await c.classify(picture())

    asyncio.run(ask())


both = pytest.mark.parametrize("classify", [classify_sync, classify_async])


def endless(message: bytes) -> Callable[[socket.socket, int], None]:
    """Write a message without end, as fast as the client reads it."""

    def handle(connection: socket.socket, _: int) -> None:
        read_request(connection)
        stop = threading.Event()
        threading.Timer(HANG, stop.set).start()
        with contextlib.suppress(OSError):
            while not stop.is_set():
                connection.sendall(message)

    return handle


@both
def test_endless_interim_responses_end_at_the_deadline(classify):
    """A byte is always there, so no read ever waits."""
    with (
        serving(endless(b"HTTP/1.1 100 Continue\r\n\r\n")) as url,
        pytest.raises(TimedOutError, match=r"within 0\.5 s"),
    ):
        classify(url, timeout=0.5)


def test_a_read_after_the_deadline_is_refused_although_bytes_are_there():
    one, other = socket.socketpair()

    class Stream:
        def read(self, most: int, timeout: float | None = None) -> bytes:
            return one.recv(most)

        def write(self, data: bytes, timeout: float | None = None) -> None: ...

        def get_extra_info(self, name: str) -> socket.socket:
            return one

    with one, other:
        other.sendall(b"x" * 100)
        guard = Guard()
        stream = Stream()
        guard.take("connection.connect_tcp.complete", {"return_value": stream})
        guard.start(HANG)
        assert stream.read(1) == b"x"
        guard.start(0)
        with pytest.raises(TimeoutError):
            stream.read(1)
        with pytest.raises(TimeoutError):
            stream.write(b"x")


@pytest.mark.parametrize(
    "event",
    [
        "connection.connect_tcp.complete",
        "connection.start_tls.complete",
        "proxy.start_tls.complete",
        "socks.connect_tcp.complete",
        "socks.start_tls.complete",
    ],
)
def test_every_kind_of_connection_is_guarded(event):
    class Stream:
        def read(self, most: int, timeout: float | None = None) -> bytes:
            return b""

        def write(self, data: bytes, timeout: float | None = None) -> None: ...

        def get_extra_info(self, name: str) -> None: ...

    stream = Stream()
    Guard().take(event, {"return_value": stream})
    assert "read" in vars(stream)


@both
def test_a_silent_server_behind_a_proxy_ends_at_the_deadline(classify):
    """The proxy opens the tunnel, and then nothing comes: the TLS handshake waits."""
    done = threading.Event()

    def handle(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        done.wait(HANG)

    with serving(handle) as proxy:
        with pytest.raises(TimedOutError):
            classify("https://192.0.2.1", timeout=0.5, http={"proxy": proxy})
        done.set()


def test_waiting_for_another_calls_description_ends_at_the_deadline():
    """The call that asks for the description hangs longer than this call's own deadline."""
    done = threading.Event()
    asked = threading.Event()

    def server(request: httpx.Request) -> httpx.Response:
        asked.set()
        done.wait(HANG)
        return httpx.Response(404)

    transport = httpx.MockTransport(server)
    with AdaptedClient("http://127.0.0.1:9", None, timeout=HANG, transport=transport) as c:
        first = threading.Thread(target=lambda: contextlib.suppress(Exception) and c.info())
        first.start()
        assert asked.wait(HANG)
        with pytest.raises(TimedOutError):
            c.with_options(timeout=0.2).classify(picture())
        done.set()
        first.join()


def test_a_domain_name_system_that_does_not_answer_ends_at_the_deadline(monkeypatch):
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: done.wait(HANG) and [])
    with pytest.raises(TimedOutError):
        classify_sync("http://slow.example.com", timeout=0.5, max_retries=0)
    done.set()


def test_the_addresses_of_a_host_share_the_time(monkeypatch):
    """Three addresses that never answer must not take three times the timeout."""
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{i}", 80)) for i in range(3)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: addresses)
    guard = Guard()
    guard.start(HANG)
    info = {"host": "many.example.com", "port": 80, "timeout": HANG}
    guard.take("connection.connect_tcp.started", info)
    assert HANG / 4 < info["timeout"] <= HANG / 3
