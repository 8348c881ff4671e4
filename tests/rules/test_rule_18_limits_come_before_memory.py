"""Rule 18: a limit is checked before memory is spent."""

from __future__ import annotations

import asyncio
import gzip
import socket
import tracemalloc
import zlib

import pytest
from wire.fakes import picture
from wire.test_sockets import BODY, read_request, serving

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.errors import ProtocolMismatchError, ServerError

BOUND = 80 * 2**20
"""Largest growth of memory in bytes: the limit of 32 MiB, twice while the chunks are joined."""


def answering(body: bytes, encoding: str, status: bytes = b"200 OK"):
    def handle(connection: socket.socket, _: int) -> None:
        while read_request(connection):
            connection.sendall(
                b"HTTP/1.1 %s\r\ncontent-encoding: %s\r\ncontent-length: %d\r\n\r\n"
                % (status, encoding.encode(), len(body))
                + body
            )

    return serving(handle)


def classify_sync(url: str) -> str:
    with AdaptedClient(url, None, protocol="pgn", max_retries=0) as c:
        return c.classify(picture()).label


def classify_async(url: str) -> str:
    async def ask() -> str:
        async with AsyncAdaptedClient(url, None, protocol="pgn", max_retries=0) as c:
            return (await c.classify(picture())).label

    return asyncio.run(ask())


both = pytest.mark.parametrize("classify", [classify_sync, classify_async])


@both
@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate"])
def test_a_compressed_answer_is_read(classify, encoding):
    body = zlib.compress(BODY) if encoding == "deflate" else gzip.compress(BODY)
    with answering(body, encoding) as url:
        assert classify(url) == "a"


@both
def test_stacked_encodings_are_refused_unread(classify):
    bomb = gzip.compress(gzip.compress(bytes(512 * 2**20), 9), 9)
    assert len(bomb) < 10_000
    with answering(bomb, "gzip, gzip") as url:
        tracemalloc.start()
        with pytest.raises(ProtocolMismatchError, match="gzip, gzip"):
            classify(url)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < BOUND


@both
@pytest.mark.parametrize("status", [b"200 OK", b"500 No"])
def test_a_bomb_is_not_unpacked_beyond_the_limit(classify, status):
    bomb = gzip.compress(bytes(256 * 2**20), 9)
    with answering(bomb, "gzip", status) as url:
        tracemalloc.start()
        with pytest.raises((ProtocolMismatchError, ServerError)):
            classify(url)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < BOUND


@both
@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"anything"),
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(BODY)[:-9]),
    ],
    ids=["br", "no gzip", "cut gzip"],
)
def test_a_body_that_cannot_be_unpacked_is_a_mismatch(classify, encoding, body):
    with answering(body, encoding) as url, pytest.raises(ProtocolMismatchError):
        classify(url)


@both
def test_deeply_nested_json_is_a_mismatch(classify):
    with answering(b"[" * 200_000, "identity") as url, pytest.raises(ProtocolMismatchError):
        classify(url)


def test_new_names_of_rate_limit_headers_do_not_pile_up():
    def handle(connection: socket.socket, _: int) -> None:
        number = 0
        while read_request(connection):
            lines = b"".join(b"x-ratelimit-%d: 1\r\n" % (number + i) for i in range(50))
            number += 50
            connection.sendall(
                b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (lines, len(BODY), BODY)
            )

    with serving(handle) as url, AdaptedClient(url, None, protocol="pgn") as c:
        for i in range(5):
            c.classify(picture(i))
        assert len(c.rate_limits) <= 64
