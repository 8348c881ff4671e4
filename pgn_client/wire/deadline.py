"""Ends a thread's network work at its request's deadline, or when its stream is left early."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, cast

SLICE = 16 * 2**10
"""Bytes per write. The deadline is checked before each slice, so a server that reads slowly cannot
hold a large image beyond it.
"""


class Leaving:
    """Stops the threads of one stream when its consumer leaves early.

    Attributes:
        flag: Event that is set once the consumer has left.
    """

    def __init__(self) -> None:
        self.flag = threading.Event()
        self._lock = threading.Lock()
        self._busy: set[socket.socket] = set()

    def now(self) -> None:
        """Stop every thread of the stream: sleeping, using the network, or about to begin."""
        with self._lock:
            self.flag.set()
            for connection in self._busy:
                # The plain socket method works for TLS sockets too, and wakes a blocked reader.
                # A connection that is already closed raises OSError, which needs no handling.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def busy(self, connection: socket.socket) -> Iterator[None]:
        """Allow ``now`` to shut down this connection while the context is open."""
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
    """Ends a thread's network work at its request's deadline, or when its stream is left early.

    httpx restarts its timeout at every read and write, so a server that sends or takes one byte now
    and then could hold a call forever. httpx's ``trace`` extension passes the stream of each new
    connection; this class replaces the stream's ``read`` and ``write`` by versions that use the
    remaining time as their timeout. asyncio needs none of this, because ``asyncio.timeout`` covers
    the whole request.

    Attributes:
        deadline: Deadline of the current request on the monotonic clock, in seconds.
        leaving: Stop signal of the stream that this thread works for.
    """

    deadline = 0.0
    # Never set: threads outside a stream, such as the caller's own, share it and are never stopped.
    leaving = Leaving()

    def heed(self, leaving: Leaving) -> None:
        """Make this thread stop when the given stream is left early."""
        self.leaving = leaving

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``, or until the stream is left early."""
        self.leaving.flag.wait(seconds)

    def start(self, seconds: float) -> None:
        """Start a request that must end within ``seconds``."""
        self.deadline = time.monotonic() + seconds

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Wrap the stream of a new connection; called by httpx for each event."""
        # The TLS handshake returns a new stream, which needs wrapping like the first one.
        if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            return

        # httpx keeps using this very object, so its methods are replaced. Other threads may use the
        # connection later; ``self`` is thread-local, so each obeys the deadline of its own request.
        stream = info["return_value"]
        read = stream.read
        write = stream.write
        connection = stream.get_extra_info("socket")

        def remaining() -> float:
            # A timeout of 0 would make the socket non-blocking instead of timing out.
            return max(self.deadline - time.monotonic(), 1e-3)

        def read_until_deadline(max_bytes: int, timeout: float | None = None) -> bytes:
            with self.leaving.busy(connection):
                return cast(bytes, read(max_bytes, remaining()))

        def write_until_deadline(buffer: bytes, timeout: float | None = None) -> None:
            with self.leaving.busy(connection):
                for start in range(0, len(buffer), SLICE):
                    write(buffer[start : start + SLICE], remaining())

        stream.read = read_until_deadline
        stream.write = write_until_deadline
