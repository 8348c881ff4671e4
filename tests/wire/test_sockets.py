"""Against real sockets: what only a network can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.errors import (
    ConnectionFailedError,
    EndpointError,
    ProtocolMismatchError,
    ServerError,
    TimedOutError,
)

from .fakes import picture

HANG = 60
"""Seconds after which a test would have hung; nothing waits so long that works."""
BODY = json.dumps({"output": "probs", "predictions": [{"labels": ["a"], "scores": [1.0]}]}).encode()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = (
        line.split(b":")[1]
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length")
    )
    length = int(next(lengths, b"0"))
    while len(body) < length:
        chunk = connection.recv(65536)
        if not chunk:
            return b""
        body += chunk
    return head


def response(body: bytes = BODY, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    return (b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s") % (
        status,
        len(body) if length is None else length,
        body,
    )


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


def sync_error(url: str, seen: list[int] | None = None, **options: object) -> EndpointError:
    """Return the error of one call; ``seen`` gets the number of images that count as sent."""
    with (
        AdaptedClient(url, None, protocol="pgn", **options) as c,
        pytest.raises(EndpointError) as caught,
    ):
        c.classify(picture())
    if seen is not None:
        seen.append(c.usage.images)
    return caught.value


def async_error(url: str, seen: list[int] | None = None, **options: object) -> EndpointError:
    async def ask() -> EndpointError:
        async with AsyncAdaptedClient(url, None, protocol="pgn", **options) as c:
            with pytest.raises(EndpointError) as caught:
                await c.classify(picture())
            if seen is not None:
                seen.append(c.usage.images)
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
        connection.sendall(
            response(b"", length=10_000) if part == "body" else b"HTTP/1.1 200 OK\r\nx-slow: "
        )
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
    monkeypatch.setattr("pgn_client.wire.transport.MAX_ANSWER_BYTES", 2**20)

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


# ---- proxies


@both
def test_no_proxy_sees_a_key_that_is_meant_for_this_machine(ask, monkeypatch):
    seen = []

    def proxy(connection: socket.socket, _: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(response(status=b"418 I am a proxy"))

    def handle(connection: socket.socket, _: int) -> None:
        seen.append(b"direct")
        read_request(connection)
        connection.sendall(response(status=b"422 No"))

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(proxy) as proxy_url, serving(handle) as url:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy_url)
        error = ask(url, api_key="sk-secret")
    assert "got 422" in str(error)
    assert seen == [b"direct"]


# ---- servers that are silent or slow


@pytest.fixture
def silent() -> Iterator[tuple[str, list[int]]]:
    """A server that never answers: its URL, and the numbers of the requests it has read."""
    done = threading.Event()
    requests = []

    def handle(connection: socket.socket, number: int) -> None:
        if read_request(connection):
            requests.append(number)
            done.wait(HANG)

    with serving(handle) as url:
        yield url, requests
        done.set()


def test_a_silent_server_is_found_out_once_for_all_pictures(silent):
    url, requests = silent
    counts = []
    for images in (1, 16):
        before = len(requests)
        with AdaptedClient(url, None, timeout=0.5) as c, pytest.raises(TimedOutError):
            list(c.classify_many([picture()] * images))
        counts.append(len(requests) - before)
    assert counts == [1, 1]


def test_calls_that_wait_for_the_same_discovery_fail_with_it(silent):
    url, requests = silent

    async def ask() -> list[object]:
        async with AsyncAdaptedClient(url, None, timeout=0.5) as c:
            return await asyncio.gather(
                *(c.classify(picture(i)) for i in range(8)), return_exceptions=True
            )

    assert all(isinstance(error, TimedOutError) for error in asyncio.run(ask()))
    assert len(requests) == 1
    with AdaptedClient(url, None, timeout=0.5) as c, ThreadPoolExecutor(8) as pool:
        errors = [pool.submit(c.classify, picture(i)).exception for i in range(8)]
        assert all(isinstance(error(), TimedOutError) for error in errors)
    assert len(requests) == 2


def leave(stream: Iterator[object]) -> None:
    next(stream)
    stream.close()


def interrupt(stream: Iterator[object]) -> None:
    next(stream)
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)


@pytest.mark.parametrize("end", [leave, interrupt])
@pytest.mark.parametrize("kind", ["silent", "retried later"])
def test_leaving_a_stream_ends_at_once_and_leaves_the_client_usable(end, kind):
    done = threading.Event()
    requests = []
    waited_out = []

    def handle(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            requests.append(number)
            if done.is_set():
                connection.sendall(response())
            elif kind == "silent":
                waited_out.append(not done.wait(HANG))
                return
            else:
                connection.sendall(
                    b"HTTP/1.1 503 No\r\nretry-after: 20\r\ncontent-length: 0\r\n\r\n"
                )

    options = {"protocol": "pgn", "max_concurrency": 4, "timeout": 10 * HANG}
    with serving(handle) as url, AdaptedClient(url, None, **options) as c:
        end(c.classify_many([b"no picture", *[picture()] * 50]))
        # nobody has waited for an answer that does not come, or for the time of a retry
        assert not any(waited_out)
        assert len(requests) <= 4
        done.set()
        assert c.classify(picture()).label == "a"


def test_a_server_that_reads_slowly_honours_the_total_deadline():
    stop = threading.Event()
    received = []

    def drip(connection: socket.socket, _: int) -> None:
        while not stop.wait(0.1):
            # slow, but every single send makes progress well within the timeout
            received.append(len(connection.recv(2**18)))

    noise = np.random.default_rng(0).integers(0, 256, (2500, 2500, 3), dtype=np.uint8)
    with (
        serving(drip) as url,
        AdaptedClient(url, None, protocol="pgn", timeout=1, max_retries=0) as c,
    ):
        [job] = c._session.prepare([noise], always=True)
        with pytest.raises(TimedOutError):
            c._drive(c._session.reply(job))
        # it gave up on the way, not when all had been sent
        assert sum(received) < len(job.payload.data) / 2
        stop.set()


@contextlib.contextmanager
def full_queue() -> Iterator[str]:
    """Yield the URL of a listener whose queue is full: a further connection waits for ever."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@both
def test_a_connection_that_never_stands_costs_no_budget(ask):
    seen = []
    with full_queue() as url:
        error = ask(url, timeout=0.3, seen=seen)
    assert isinstance(error, TimedOutError)
    assert seen == [0]
