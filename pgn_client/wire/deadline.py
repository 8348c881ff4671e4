"""What ends a thread’s work on the network: the deadline of its request, or that its stream is
left.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, cast

SLICE = 16 * 2**10  # bytes that are sent at a time; the deadline is looked at in between


class Leaving:
    """Breaks off what the threads of one stream are doing, when its consumer leaves."""

    def __init__(self) -> None:
        self.flag = threading.Event()
        self._lock = threading.Lock()
        self._busy: set[socket.socket] = set()

    def now(self) -> None:
        """Let every thread end: one that sleeps, one that waits for the network, one that would
        begin.
        """
        with self._lock:
            self.flag.set()
            for connection in self._busy:
                # the plain method, also of a TLS socket; it wakes who reads
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def busy(self, connection: socket.socket) -> Iterator[None]:
        """Use a connection that ``now`` may break."""
        with self._lock:
            if self.flag.is_set():
                raise CancelledError
            self._busy.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(connection)


class Watch(threading.local):
    """Makes all that a thread does on the network end at the deadline of its request, or when its
    stream is left.

    httpx restarts its timeout at every read and write, so that a server which takes or sends a byte
    now and then holds a call for ever. httpx's ``trace`` extension shows each new connection's
    stream, whose ``read`` and ``write`` then get the time that is left. (asyncio needs none of
    this: ``asyncio.timeout`` covers the whole request.)
    """

    deadline = 0.0
    leaving = Leaving()

    def heed(self, leaving: Leaving) -> None:
        """Let this thread work for a stream."""
        self.leaving = leaving

    def sleep(self, seconds: float) -> None:
        """Wait, unless the stream is left."""
        self.leaving.flag.wait(seconds)

    def start(self, seconds: float) -> None:
        """Begin a request that may take so many seconds."""
        self.deadline = time.monotonic() + seconds

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Wrap the stream of a connection that was just made."""
        if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            return
        stream = info["return_value"]
        read, write, connection = stream.read, stream.write, stream.get_extra_info("socket")

        def remaining() -> float:
            return max(self.deadline - time.monotonic(), 1e-3)

        def read_until_deadline(max_bytes: int, timeout: float | None = None) -> bytes:
            with self.leaving.busy(connection):
                return cast(bytes, read(max_bytes, remaining()))

        def write_until_deadline(buffer: bytes, timeout: float | None = None) -> None:
            with self.leaving.busy(connection):
                for start in range(0, len(buffer), SLICE):
                    write(buffer[start : start + SLICE], remaining())

        stream.read, stream.write = read_until_deadline, write_until_deadline
