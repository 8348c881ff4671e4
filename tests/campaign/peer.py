"""A server of raw sockets, which counts the images whose bytes it received."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

HANG = 8
"""Seconds after which a client that still reads has missed every deadline of the campaign."""
SMALLEST_IMAGE = 40
"""A request body of fewer bytes carries no image; descriptions are requested with ``{}``."""


@dataclass
class Request:
    """A request as far as it was read.

    Attributes:
        method: HTTP method.
        path: Path with the query.
        length: Number of bytes that the body should have.
        body: Bytes of the body that were read.
    """

    method: str
    path: str
    length: int
    body: bytearray = field(default_factory=bytearray)

    @property
    def carries_image(self) -> bool:
        """Whether an image is in the body."""
        return self.method in ("POST", "PUT") and self.length >= SMALLEST_IMAGE


@dataclass
class Received:
    """What arrived, over all connections.

    Attributes:
        whole: Number of images that were read to their last byte.
        part: Number of images of which a byte was read, but not the last one.
        unread: Number of requests and connections that were ended unread; image bytes may have
            reached this machine in each of them.
    """

    whole: int = 0
    part: int = 0
    unread: int = 0

    @property
    def at_most(self) -> int:
        """Greatest number of images that can have left the client."""
        return self.whole + self.part + self.unread


class Connection:
    """One connection of a peer."""

    def __init__(self, plain: socket.socket, received: Received, stop: threading.Event) -> None:
        self.plain = plain
        self.received = received
        self.stop = stop
        self._buffer = bytearray()
        self._lock = threading.Lock()

    def head(self) -> Request | None:
        """Read the next request's head; None at the end of the connection."""
        while b"\r\n\r\n" not in self._buffer:
            chunk = self._recv()
            if not chunk:
                return None
            self._buffer += chunk
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        return Request(method, path, int(fields.get("content-length", "0")))

    def body(self, request: Request, most: int | None = None) -> None:
        """Read the body, or so many bytes of it, and count an image in it."""
        wanted = request.length if most is None else min(most, request.length)
        while len(request.body) < wanted:
            chunk = bytes(self._buffer[: wanted - len(request.body)])
            del self._buffer[: len(chunk)]
            if not chunk:
                chunk = self._recv(wanted - len(request.body))
            if not chunk:
                break
            request.body += chunk
        if not request.carries_image:
            return
        if len(request.body) == request.length:
            self.received.whole += 1
        elif request.body:
            self.received.part += 1
        else:
            self.received.unread += 1

    def send(self, data: bytes) -> None:
        """Send bytes; what the client does not read any more is lost silently."""
        self.plain.sendall(data)

    def drip(self, data: bytes, seconds: float) -> None:
        """Send the bytes one at a time until the case has ended."""
        for byte in data:
            self.plain.sendall(bytes([byte]))
            if self.stop.wait(seconds):
                return

    def repeat(self, data: bytes, seconds: float) -> None:
        """Send the same bytes again and again until the case has ended, or hangs."""
        end = time.monotonic() + HANG
        while not self.stop.wait(seconds) and time.monotonic() < end:
            self.plain.sendall(data)

    def reset(self) -> None:
        """End the connection by a reset instead of an orderly end."""
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.plain.close()

    def _recv(self, most: int = 2**16) -> bytes:
        while True:
            # In slices, so that a waiting thread soon sees that the case has ended. What has
            # arrived until then is read, because it counts.
            stopping = self.stop.is_set()
            if select.select([self.plain], [], [], 0 if stopping else 0.05)[0]:
                return self.plain.recv(min(most, 2**16))
            if stopping:
                return b""


Play = Callable[[Connection], None]


class Peer:
    """A listener on this machine; ``play`` handles each connection in a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._last: object = None
        self._drained = threading.Event()
        self._current: tuple[Play, Received, threading.Event, list[threading.Thread]] | None = None
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5)

    @contextlib.contextmanager
    def playing(self, play: Play) -> Iterator[Received]:
        """Handle the connections of one case; yield what they receive."""
        received = Received()
        stop = threading.Event()
        threads: list[threading.Thread] = []
        self._current = (play, received, stop, threads)
        try:
            yield received
        finally:
            self._accept_all()
            stop.set()
            for thread in threads:
                thread.join(10)
            self._current = None

    def _accept_all(self) -> None:
        """Wait until every connection that the client has made is accepted, and so counted."""
        self._drained.clear()
        with socket.socket() as last:
            last.bind(("127.0.0.1", 0))
            self._last = last.getsockname()
            last.connect(self._listener.getsockname())
            self._drained.wait(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, address = self._listener.accept()
                if address == self._last:
                    plain.close()
                    self._drained.set()
                    continue
                current = self._current
                if current is None:
                    plain.close()
                    continue
                play, received, stop, threads = current
                plain.settimeout(10)
                connection = Connection(plain, received, stop)
                thread = threading.Thread(target=self._handle, args=(play, connection), daemon=True)
                threads.append(thread)
                thread.start()

    @staticmethod
    def _handle(play: Play, connection: Connection) -> None:
        with connection.plain, contextlib.suppress(OSError, ValueError):
            play(connection)


def response(
    body: bytes,
    status: str = "200 OK",
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),),
    *,
    length: object = None,
) -> bytes:
    """Return a whole HTTP response."""
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", *(f"{k}: {v}" for k, v in headers), f"content-length: {size}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body
