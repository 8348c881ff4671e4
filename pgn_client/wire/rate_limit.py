"""How fast requests may go out."""

from __future__ import annotations

import math
import threading


class Pacer:
    """Spaces requests evenly, by their number and their size. Safe to use from several threads.

    A token bucket without bursts: a request with a body of n bytes keeps the next one back for
    ``max(1 / per_second, n / bytes_per_second)`` seconds.
    """

    def __init__(
        self, per_second: float | None = None, bytes_per_second: float | None = None
    ) -> None:
        self._gap = 1.0 / per_second if per_second else 0.0
        self._per_byte = 1.0 / bytes_per_second if bytes_per_second else 0.0
        self._next = -math.inf
        self._lock = threading.Lock()

    def wait(self, now: float, size: int = 0) -> float:
        """Take the next free slot for a request with ``size`` body bytes, and return the seconds
        until it.
        """
        with self._lock:
            slot = max(now, self._next)
            self._next = slot + self.seconds(size)
            return slot - now

    def seconds(self, size: int) -> float:
        """Return for how long a request with ``size`` body bytes keeps the next one back."""
        return max(self._gap, size * self._per_byte)
