"""Ends a thread's network work at the deadline, or when no one reads the results any more.

Only ``transport`` uses this module; it is the part that touches sockets.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any, cast

SLICE = 16 * 2**10
"""Largest number of bytes written to a socket at once.

The deadline is checked before each write, so a server that reads slowly cannot hold a large upload
beyond the deadline.
"""


class Leaving:
    """Stops the threads behind one iterator of results when its consumer leaves early.

    Such an iterator, for example of ``classify_many``, is called a stream here.

    Attributes:
        flag: Event that is set once the consumer has left the stream.
    """

    def __init__(self) -> None:
        self.flag = threading.Event()
        self._lock = threading.Lock()
        self._busy: set[socket.socket] = set()

    def now(self) -> None:
        """Stop every thread of the stream now, also one that sleeps or waits for the network."""
        with self._lock:
            self.flag.set()
            for connection in self._busy:
                # The plain socket method works for TLS sockets too, and wakes a blocked reader.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def busy(self, connection: socket.socket) -> Iterator[None]:
        """Let ``now`` shut down the connection while this context is open.

        Raises:
            CancelledError: The consumer has already left.
        """
        with self._lock:
            if self.flag.is_set():
                raise CancelledError
            self._busy.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(connection)


class Guard(threading.local):
    """Ends a thread's network work at the deadline, or when the stream is left early.

    A stream is an iterator of results whose images are sent by several threads. httpx restarts its
    timeout at every read and write, so a server that sends or takes one byte now and then could
    hold a call forever. httpx's ``trace`` extension passes the network stream of each new
    connection. This class replaces ``read`` and ``write`` of that network stream by versions whose
    timeout is the remaining time. asyncio needs none of this, because ``asyncio.timeout`` covers
    the whole request.

    Attributes:
        deadline: Deadline of the current request on the monotonic clock, in seconds.
        leaving: Stop signal of the stream that the current thread works for.
    """

    deadline = 0.0
    # Never set: threads outside a stream, such as the caller's own, share it and are never stopped.
    leaving = Leaving()

    def heed(self, leaving: Leaving) -> None:
        """Make this thread stop when ``leaving`` signals that its stream was left early."""
        self.leaving = leaving

    def sleep(self, seconds: float) -> None:
        """Wait ``seconds``, or until the consumer leaves the stream of this thread."""
        self.leaving.flag.wait(seconds)

    def start(self, seconds: float) -> None:
        """Set the deadline of this thread's next request to ``seconds`` from now."""
        self.deadline = time.monotonic() + seconds

    def take(self, event: str, info: dict[str, Any]) -> None:
        """Put a new connection under the deadline; call this for each event of httpx's ``trace``.

        The events have names such as ``connection.connect_tcp.complete``, and through a proxy
        ``proxy.start_tls.complete`` or ``socks.connect_tcp.complete``. A TLS handshake returns a
        new network stream, which needs replacing like the first one.
        """
        # Each step of a connection would have the whole time for itself; there are several behind a
        # proxy, and one for each address of a host.
        if event.endswith(".connect_tcp.started"):
            addresses = _addresses(info["host"], info["port"], self._remaining())
            info["timeout"] = self._remaining() / addresses
        elif event.endswith(".start_tls.started"):
            info["timeout"] = self._remaining()
        if not event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            return

        # httpx keeps using this very object, so its methods are replaced. Other threads may use the
        # connection later; ``self`` is thread-local, so each obeys the deadline of its own request.
        stream = info["return_value"]
        read = stream.read
        write = stream.write
        connection = stream.get_extra_info("socket")

        def read_until_deadline(max_bytes: int, timeout: float | None = None) -> bytes:
            with self.leaving.busy(connection):
                return cast(bytes, read(max_bytes, self._remaining()))

        def write_until_deadline(buffer: bytes, timeout: float | None = None) -> None:
            with self.leaving.busy(connection):
                for start in range(0, len(buffer), SLICE):
                    write(buffer[start : start + SLICE], self._remaining())

        stream.read = read_until_deadline
        stream.write = write_until_deadline

    def _remaining(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            TimeoutError: The deadline has passed. Without this error, a server that always has a
                byte ready would get past every deadline.
        """
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("deadline")
        return remaining


def _addresses(host: str, port: int, seconds: float) -> int:
    """Return the number of a host's addresses, which are tried one after the other; at least 1.

    Raises:
        TimeoutError: The domain name system has not answered within ``seconds``. The system's own
            function has no time limit, so it runs in a thread of its own.
    """
    found: list[object] = []

    def look_up() -> None:
        # What is wrong with the name, the connection reports.
        with contextlib.suppress(OSError, UnicodeError):
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError("the domain name system does not answer")
    return max(1, len(found))
