"""Mutated answers of every protocol over real sockets.

Each becomes an answer or a ``PGNError``, within the deadline, and the client counts every image
that the server received, and none that it cannot have received.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import math
import os
import queue
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.errors import PGNError
from pgn_client.types import Answer, Usage
from tests.campaign.cases import MIB, ROOT, Fault, LateFault, checked
from tests.campaign.mutate import json_text, mutated, odd_document
from tests.campaign.peer import Connection, Peer, Request, response

CONTRACT = ROOT / "tests/contract/wire"
CLASSES = ["goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay"]
GRACE = 0.5
"""Seconds after the deadline in which a call must have ended, on an idle machine."""


@dataclass(frozen=True)
class Way:
    """One value of ``protocol=``, and a server that uses it.

    Attributes:
        good: Exchanges of the contract whose answers are good ones.
        settings: Content of the endpoint file, but for URL and protocol.
        path: Path of the endpoint's URL.
        described: Exchange of the contract that answers a request without image, by its path.
    """

    good: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    described: Mapping[str, str] = field(default_factory=dict)


OIP = {
    "/v2": "oip_server",
    "/v2/models/vit": "oip_metadata",
    "/v2/repository/index": "oip_index",
}
VERTEX = "/v1/projects/p/locations/us-central1/endpoints/42"
WAYS: dict[str, Way] = {
    "auto": Way(("pgn_raw",), described={"/v1/model": "pgn_model"}),
    "pgn": Way(("pgn_raw", "pgn_embedding"), described={"/v1/model": "pgn_model"}),
    "huggingface": Way(("hf_raw",), path="/models/owner/name"),
    "huggingface-zero-shot": Way(("hf_zero_shot",), {"labels": ["cat", "dog"]}),
    "huggingface-features": Way(("hf_features_pool",), path="/pipeline/feature-extraction"),
    "oip": Way(("oip_json_all_outputs", "oip_raw"), {"model": "vit"}, described=OIP),
    "kserve-v1": Way(
        ("v1_predict_plain", "v1_predict_top_k"),
        {"model": "vit", "labels": CLASSES},
        described={"/v1/models": "v1_models", "/v1/models/vit": "v1_model"},
    ),
    "vertex": Way(
        ("vertex_predict", "vertex_predict_label"),
        path=f"{VERTEX}:predict",
        described={VERTEX: "vertex_endpoint"},
    ),
    "sagemaker": Way(("sagemaker_raw", "sagemaker_json"), {"model": "vit"}),
    "torchserve": Way(("torchserve_json", "torchserve_label"), {"model": "vit"}),
    "openai": Way(
        ("openai_chat", "openai_chat_schema"),
        {"model": "vit", "labels": ["cat", "dog", "lynx"]},
        described={"/v1/models": "v1_models"},
    ),
    "openai-embeddings": Way(
        ("openai_embeddings_base64", "openai_embeddings_messages"),
        {"model": "vit"},
        described={"/v1/models": "v1_models"},
    ),
    "custom": Way(
        ("hf_raw",),
        {"options": {"path": "/c", "labels": "[*].label", "scores": "[*].score"}
            | {"body": {"inputs": "{base64}"}}},
    ),
}  # fmt: skip


@cache
def exchange(name: str) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """Return status, headers and body of a response of the contract."""
    told = json.loads((CONTRACT / f"{name}.json").read_text(encoding="utf-8"))["response"]
    if "body_base64" in told:
        body = base64.b64decode(told["body_base64"])
    else:
        body = json.dumps(told["json"]).encode()
    return told["status"], tuple(told["headers"].items()), body


@cache
def bomb(layers: int) -> bytes:
    """Return zeros of about 1.5 GiB, compressed so many times (without the checksum at the end)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(b"\0" * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    # From the second time on, the same bytes stand for the same zeros.
    block = packer.compress(b"\0" * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    data = start + block * 1500
    for _ in range(layers - 1):
        data = gzip.compress(data)
    return data


@cache
def picture(large: bool) -> Image.Image:
    """Return a small image, or one of about 270 kB as a PNG."""
    side = 300 if large else 8
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# ---- How a server answers a request that it has read: good body and headers in, bytes out.

Headers = tuple[tuple[str, str], ...]
JSON = (("content-type", "application/json"),)


def good(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    return response(body, headers=headers)


def changed_json(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    try:
        document = json.loads(body)
    except ValueError:
        return changed_bytes(rng, body, headers)
    text = json_text(odd_document(document, rng), rng)
    return response(text.encode("utf-8", "surrogatepass"), headers=headers)


def changed_bytes(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    return response(mutated(body, rng), headers=headers)


def other_body(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    bodies = (b"", b"null", b"<html>sign in</html>", b'{"error": "no"}', b"\0" * 99, b"[]", b"{}")
    return response(rng.choice(bodies), headers=rng.choice((headers, JSON, ())))


def odd_headers(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    lines = (
        "bad CERTIFICATE header",
        "CERTIFICATE_VERIFY_FAILED: x",
        ": no name",
        "x-long: " + "y" * rng.choice((1000, 70_000, 200_000)),
        "x-null: a\0b",
        "x-fold: a\r\n b",
        "content-type: text/html; charset=utf-7",
        "content-type: application/octet-stream",
        "inference-header-content-length: " + rng.choice(("-1", "99999999", "x", "0", "1e3")),
        "connection: close",
        "x-should-retry: true",
        "set-cookie: a=b; domain=other",
        "retry-after: " + rng.choice(("-1", "nan", "1e999", "Thu, 99 Xyz 2000", "0", "3600")),
        "x-ratelimit-remaining: \x1b[31m",
        "x-request-id: " + "z" * 5000,
        "UNKNOWN_CA\xff\xfe: x",
        "location: http://127.0.0.1:1/",
    )
    data = response(body, headers=headers)
    status, _, rest = data.partition(b"\r\n")
    chosen = rng.sample(lines, rng.choice((1, 1, 1, 3))) * rng.choice((1, 1, 1, 150))
    extra = "".join(f"{line}\r\n" for line in chosen).encode("latin-1")
    return status + b"\r\n" + extra + rest


def odd_length(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    lengths = (
        len(body) + 1,
        len(body) - 1,
        0,
        -1,
        10**30,
        "x",
        "1, 1",
        " ",
        2**63,
        f"{len(body)}_",
    )
    data = response(body, headers=headers, length=rng.choice(lengths))
    if rng.random() < 0.3:
        data = data.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n", 1)
    return data


def chunked(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    lines = ["HTTP/1.1 200 OK", *(f"{k}: {v}" for k, v in headers), "transfer-encoding: chunked"]
    sizes = (
        f"{len(body):x}",
        "zz",
        "-1",
        "f" * 40,
        "",
        f"{len(body):x};ext=1",
        f"{len(body) + 9:x}",
    )
    size = rng.choice(sizes)
    tail = rng.choice((b"\r\n0\r\n\r\n", b"\r\n0\r\n", b"", b"\r\n0\r\nx: y\r\n\r\n", b"junk"))
    return "\r\n".join([*lines, "", size, ""]).encode() + body + tail


def odd_encoding(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    packed = gzip.compress(body)
    name, data = rng.choice(
        (
            ("gzip", packed),
            ("gzip", packed[:-9]),
            ("gzip", body),
            ("gzip, gzip", gzip.compress(packed)),
            ("gzip, gzip, gzip, gzip", gzip.compress(gzip.compress(gzip.compress(packed)))),
            ("deflate", body),
            ("br", body),
            ("zstd", packed),
            ("x-unknown", body),
            ("identity", body),
        )
    )
    # Few, because each costs seconds.
    if rng.random() < 0.1:
        layers = rng.choice((1, 2, 2, 3))
        name = ", ".join(["gzip"] * layers)
        data = bomb(layers)
    return response(data, headers=(*headers, ("content-encoding", name)))


def other_status(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    statuses = (201, 204, 206, 226, 301, 304, 307, 400, 401, 402, 403, 404, 406, 408, 409, 413, 415)
    statuses += (422, 424, 425, 429, 500, 501, 502, 503, 504, 505, 529, 599, 600, 999, 0, 99, 1000)
    texts = (b'{"error": {"message": "\\u001b[31m"}}', b"<html>", body, b"", b'{"error": ["a", 1]}')
    texts += (
        b'{"error": "x", "estimated_time": 1e999}',
        b'{"detail": [{"msg": null}]}',
        b"[" * 9000,
    )
    wait = rng.choice(((), (("retry-after-ms", "1"),), (("retry-after", "0"),)))
    return response(rng.choice(texts), f"{rng.choice(statuses)} Odd", (*headers, *wait))


def odd_start(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    data = response(body, headers=headers)
    starts = (
        b"HTTP/1.0 200 OK",
        b"HTTP/2 200 OK",
        b"HTTP/1.1",
        b"HTTP/1.1 200",
        b"",
        b"ICY 200 OK",
    )
    starts += (
        b"HTTP/1.1 abc OK",
        b"HTTP/1.1 200 " + b"x" * 70_000,
        b"\x16\x03\x01\x02",
        b"\r\n" * 9,
    )
    return rng.choice(starts) + data[data.index(b"\r\n") :]


def interim(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    first = rng.choice(("100 Continue", "102 Processing", "103 Early Hints\r\nlink: <x>"))
    return f"HTTP/1.1 {first}\r\n\r\n".encode() * rng.choice((1, 3, 300)) + good(rng, body, headers)


def too_much(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    extra = rng.choice((b"junk", b"\r\n\r\n", response(b'{"error": "smuggled"}'), b"\0" * 70_000))
    return good(rng, body, headers) + extra


def raw_bytes(rng: random.Random, body: bytes, headers: Headers) -> bytes:
    return mutated(response(body, headers=headers), rng)


WHOLE: dict[Callable[[random.Random, bytes, Headers], bytes], int] = {
    good: 2,
    changed_json: 14,
    changed_bytes: 4,
    other_body: 2,
    odd_headers: 8,
    odd_length: 5,
    chunked: 5,
    odd_encoding: 4,
    other_status: 8,
    odd_start: 4,
    interim: 2,
    too_much: 3,
    raw_bytes: 4,
}
"""How often each is drawn."""

# ---- What a server does instead of answering; the image may not have been read then.


def silent(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request)
    connection.stop.wait(20)


def slow_bytes(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request)
    connection.drip(data + b" " * 10_000, 0.02)


def endless_100(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request)
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.repeat(*rng.choice(((interim, 0.01), (interim * 9, 0.002), (interim * 400, 0))))


def endless_headers(
    connection: Connection, request: Request, data: bytes, rng: random.Random
) -> None:
    connection.body(request)
    connection.send(b"HTTP/1.1 200 OK\r\n")
    connection.repeat(b"x-a: b\r\n", rng.choice((0.01, 0)))


def endless_body(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request)
    connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    connection.repeat(*rng.choice(((b"1\r\n \r\n", 0.01), (b"1\r\n \r\n" * 900, 0))))


def cut_off(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request)
    connection.send(data[: rng.randrange(len(data))])


def reset_late(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request)
    connection.send(data[: rng.randrange(len(data))])
    connection.reset()


def early_answer(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request, rng.choice((0, 1, 1000)))
    connection.send(data)


def early_end(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request, rng.choice((0, 1, 1000, 100_000)))


def early_reset(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    connection.body(request, rng.choice((0, 1, 1000, 100_000)))
    connection.reset()


def slow_reader(connection: Connection, request: Request, data: bytes, rng: random.Random) -> None:
    read = 0
    while read < request.length and not connection.stop.wait(0.05):
        read += 2000
        if request.body or read:
            connection._buffer += connection._recv(2000)
    connection.body(request, read)


HANGING = (silent, slow_bytes, endless_100, endless_headers, endless_body, slow_reader)
ENDING = (cut_off, reset_late, early_answer, early_end, early_reset)


STAYING = (good, changed_json, too_much, other_status)
"""After these, the server keeps the connection open for the next request."""


@dataclass(frozen=True)
class Server:
    """What a server does in a case.

    Attributes:
        way: Its protocol.
        told: Exchange of the contract whose answer it mutates.
        shape: Function that makes the bytes of an answer.
        instead: What it does with an image instead of answering; None to answer.
        odd_description: Whether it also mutates its answers to requests without an image.
        ends_unread: Whether it ends every connection without reading.
        seed: Seed of its random choices, which are the same for every connection.
    """

    way: Way
    told: str
    shape: Callable[[random.Random, bytes, Headers], bytes] = good
    instead: Callable[[Connection, Request, bytes, random.Random], None] | None = None
    odd_description: bool = False
    ends_unread: bool = False
    seed: float = 0.0

    @classmethod
    def drawn(cls, way: Way, rng: random.Random) -> Server:
        """Return a random one."""
        draw = rng.random()
        instead = rng.choice(HANGING if draw < 0.12 else ENDING) if draw < 0.3 else None
        shape = rng.choices(list(WHOLE), list(WHOLE.values()))[0]
        return cls(
            way,
            rng.choice(way.good),
            shape,
            instead,
            odd_description=bool(way.described) and rng.random() < 0.2 and shape is not good,
            ends_unread=draw > 0.985,
            seed=rng.random(),
        )

    @property
    def kind(self) -> str:
        """Name of what the server does, for messages."""
        if self.ends_unread:
            return "ends_unread"
        odd = ", description too" if self.odd_description else ""
        return (self.instead or self.shape).__name__ + odd

    def play(self, connection: Connection) -> None:
        """Handle one connection."""
        own = random.Random(self.seed)
        stays = not self.ends_unread
        while stays and (request := connection.head()) is not None:
            if request.carries_image:
                stays = self._answer(connection, request, own)
            else:
                connection.body(request)
                stays = self._describe(connection, request, own)
        if not stays:
            # The client may have sent an image into this connection when it was ended.
            connection.received.unread += 1

    def _answer(self, connection: Connection, request: Request, own: random.Random) -> bool:
        _, headers, body = exchange(self.told)
        if self.instead is not None:
            # The client may have gone; the image is counted all the same.
            with contextlib.suppress(OSError):
                self.instead(connection, request, good(own, body, headers), own)
            return False
        connection.body(request)
        connection.send(self.shape(own, body, headers))
        return self.shape in STAYING

    def _describe(self, connection: Connection, request: Request, own: random.Random) -> bool:
        told = self.way.described.get(request.path.partition("?")[0])
        if told is None:
            connection.send(response(b"{}", "404 Not Found"))
            return True
        _, headers, body = exchange(told)
        make = self.shape if self.odd_description else good
        connection.send(make(own, body, headers))
        return make in STAYING


class Answers:
    """One call or two of one client, sync or async, to a server that answers oddly."""

    name = "answers"
    workers = 4
    memory = 1024 * MIB
    """The bombs unpack to 1.5 GiB; an answer may take 64 MiB."""
    hang = 60

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        bomb(1), bomb(2), bomb(3)
        self.peers: queue.Queue[tuple[Peer, Path]] = queue.Queue()
        peers = [Peer() for _ in range(self.workers)]
        for number, peer in enumerate(peers):
            files = folder / str(number)
            files.mkdir()
            for name, way in WAYS.items():
                content = {"url": peer.url + way.path, "protocol": name, **way.settings}
                (files / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
            self.peers.put((peer, files))
        try:
            self._check_good()
            yield
        finally:
            for peer in peers:
                peer.close()

    def _check_good(self) -> None:
        """Check that the answers which are mutated are good ones."""
        for name, way in WAYS.items():
            for told in way.good:
                peer, files = self.peers.get()
                with peer.playing(Server(way, told).play):
                    (result, _), *_ = ask_sync(files / f"{name}.json", picture(False), 1, {})[0]
                self.peers.put((peer, files))
                if not isinstance(result, Answer):
                    raise Fault(f"{name}: {told} became {result}") from result

    def play(self, rng: random.Random, index: int) -> str:
        name = list(WAYS)[index % len(WAYS)]
        way = WAYS[name]
        server = Server.drawn(way, rng)
        hangs = server.instead in HANGING
        options = {
            "timeout": rng.choice((0.3, 0.6)) if hangs else 3.0,
            "max_retries": rng.choice((0, 1, 3)),
            "budget": rng.choice((None, None, 1, 2)),
        }
        calls = rng.choice((1, 1, 2))
        large = server.instead is slow_reader or rng.random() < 0.1
        ask = ask_async if rng.random() < 0.5 else ask_sync
        peer, files = self.peers.get()
        try:
            with peer.playing(server.play) as received:
                results, usage = ask(files / f"{name}.json", picture(large), calls, options)
        finally:
            self.peers.put((peer, files))
        said = f"{name}, {server.kind}, {ask.__name__}, {options}, {calls} calls"
        outcomes = [judge(result, said) for result, _ in results]
        self._count(received, usage, options["budget"], said)
        if server.kind == "good" and options["budget"] is None and set(outcomes) != {"Answer"}:
            raise Fault(f"{said}: a good answer became {results}"[:400])
        for result, seconds in results:
            if seconds > options["timeout"] + grace():
                raise LateFault(f"{said}: took {seconds:.2f} s, then {str(result)[:100]}")
        return f"{name}: {outcomes[0]}"

    @staticmethod
    def _count(received: Any, usage: Usage, budget: int | None, said: str) -> None:
        billable = usage.billable
        if not received.whole <= billable <= received.at_most:
            raise Fault(
                f"{said}: the server received {received.whole} whole images and at most "
                f"{received.at_most}, the client counts {billable}"
            )
        if budget is not None and max(received.whole, billable) > budget:
            raise Fault(f"{said}: {received} with a budget of {budget}")


Result = tuple[Answer | BaseException, float]


def ask_sync(
    file: Path, image: Image.Image, calls: int, options: dict[str, Any]
) -> tuple[list[Result], Usage]:
    """Ask for the answer to an image several times, with one client."""
    results: list[Result] = []
    with AdaptedClient(file, None, **options) as client:
        for _ in range(calls):
            began = time.monotonic()
            result: Answer | BaseException
            try:
                result = client.answer(image)
            except Exception as error:
                result = error
            results.append((result, time.monotonic() - began))
        return results, client.usage


def ask_async(
    file: Path, image: Image.Image, calls: int, options: dict[str, Any]
) -> tuple[list[Result], Usage]:
    """Do the same with the asynchronous client."""

    async def main() -> tuple[list[Result], Usage]:
        results: list[Result] = []
        async with AsyncAdaptedClient(file, None, **options) as client:
            for _ in range(calls):
                began = time.monotonic()
                result: Answer | BaseException
                try:
                    result = await client.answer(image)
                except Exception as error:
                    result = error
                results.append((result, time.monotonic() - began))
            return results, client.usage

    return asyncio.run(main())


def grace() -> float:
    """Return ``GRACE`` times the number of processes that wait for each core."""
    return GRACE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def judge(result: Answer | BaseException, said: str) -> str:
    """Return the outcome of a call, after checking the answer or the error."""
    if isinstance(result, Exception):
        try:
            return checked(result, PGNError)
        except Fault as fault:
            raise Fault(f"{said}: {fault}") from result
    answer = result
    fits = answer.labels and len(answer.labels) == len(answer.scores)
    if not fits or not all(math.isfinite(score) for score in answer.scores):
        raise Fault(f"{said}: {str(answer)[:200]}")
    return "Answer"
