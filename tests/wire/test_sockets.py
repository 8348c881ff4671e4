"""Against real sockets: what only a network can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.errors import ConnectionFailedError, EndpointError, ProtocolMismatchError, ServerError, TimedOutError

from .fakes import picture

BODY = json.dumps({"output": "probs", "predictions": [{"labels": ["a"], "scores": [1.0]}]}).encode()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head


def response(body: bytes = BODY, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body) if length is None else length, body)


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """Accept connections; ``handle`` gets each with its number."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def one(connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            handle(connection, number)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=one, args=(connection, len(threads))))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join(5)


def sync_error(url: str, **options: object) -> EndpointError:
    with AdaptedClient(url, None, protocol="pgn", **options) as c, pytest.raises(EndpointError) as caught:
        c.classify(picture())
    return caught.value


def async_error(url: str, **options: object) -> EndpointError:
    async def ask() -> EndpointError:
        async with AsyncAdaptedClient(url, None, protocol="pgn", **options) as c:
            with pytest.raises(EndpointError) as caught:
                await c.classify(picture())
            return caught.value

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [sync_error, async_error])


@both
@pytest.mark.parametrize("part", ["body", "head"])
def test_a_trickling_answer_honours_the_total_deadline(ask, part):
    """Each byte comes well within any per-read timeout; all of them would take 1000 s and more."""
    stop = threading.Event()

    def trickle(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(response(b"", length=10_000) if part == "body" else b"HTTP/1.1 200 OK\r\nx-slow: ")
        while not stop.wait(0.1):
            connection.sendall(b"x")

    with serving(trickle) as url:
        try:
            error = ask(url, timeout=0.5)
        finally:
            stop.set()
    assert isinstance(error, TimedOutError)
    assert "within 0.5 s" in str(error)


@both
def test_a_silent_server_is_a_timeout(ask):
    done = threading.Event()
    with serving(lambda connection, _: bool(read_request(connection)) and done.wait(5)) as url:
        error = ask(url, timeout=0.3)
        done.set()
    assert isinstance(error, TimedOutError)


@both
def test_a_huge_error_body_is_capped(ask):
    sent = []

    def handle(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(response(b"", b"501 No", length=40 * 2**20))
        for _ in range(40):
            connection.sendall(b"e" * 2**20)
            sent.append(1)

    with serving(handle) as url:
        error = ask(url)
    assert isinstance(error, ServerError)
    assert len(str(error)) < 400
    assert len(sent) < 20


@both
def test_an_endless_answer_is_refused(ask, monkeypatch):
    monkeypatch.setattr("pgn_client.client.MAX_ANSWER_BYTES", 2**20)

    def handle(connection: socket.socket, _: int) -> None:
        read_request(connection)
        connection.sendall(response(b"", length=40 * 2**20))
        for _ in range(40):
            connection.sendall(b"e" * 2**20)

    with serving(handle) as url:
        error = ask(url)
    assert isinstance(error, ProtocolMismatchError)
    assert "more than 1 MiB" in str(error)


def test_a_keep_alive_connection_that_was_closed_meanwhile_is_replaced():
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(response())
        if number == 0:
            read_request(connection)  # the second request dies with the connection

    with serving(handle) as url, AdaptedClient(url, None, protocol="pgn") as c:
        c._sleep = lambda seconds: None
        assert c.classify(picture()).attempts == 1
        assert c.classify(picture()).attempts == 2


def test_a_cut_answer_is_retried():
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(response(BODY[:10], length=len(BODY)) if number == 0 else response())

    with serving(handle) as url, AdaptedClient(url, None, protocol="pgn") as c:
        c._sleep = lambda seconds: None
        assert c.classify(picture()).attempts == 2


@both
def test_nobody_listening_is_said(ask):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    error = ask(f"http://127.0.0.1:{port}", max_retries=0)
    assert isinstance(error, ConnectionFailedError)
    assert "server is running" in str(error)
