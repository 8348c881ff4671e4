"""Limits of how many requests and bytes per second a client sends."""

from __future__ import annotations

import math
import threading


class Pacer:
    """Spaces requests evenly so that both rate limits hold; safe to use from several threads.

    A token bucket without bursts: after a request with an n-byte body, the next request waits
    ``max(1 / per_second, n / bytes_per_second)`` seconds.

    Args:
        per_second: Largest number of requests per second; None for no limit.
        bytes_per_second: Largest number of request body bytes per second; None for no limit.
    """

    def __init__(
        self, per_second: float | None = None, bytes_per_second: float | None = None
    ) -> None:
        self._gap = 1.0 / per_second if per_second else 0.0
        self._per_byte = 1.0 / bytes_per_second if bytes_per_second else 0.0
        # The zero of a monotonic clock is arbitrary, so only -inf makes the first request free.
        self._next = -math.inf
        self._lock = threading.Lock()

    def wait(self, now: float, size: int = 0) -> float:
        """Reserve the next free time for a request, and return the seconds to wait until then.

        Args:
            now: Current time on a monotonic clock, in seconds.
            size: Size of the request body in bytes.
        """
        with self._lock:
            slot = max(now, self._next)
            self._next = slot + self.seconds(size)
            return slot - now

    def seconds(self, size: int) -> float:
        """Return how long a request with ``size`` body bytes delays the next one, in seconds."""
        return max(self._gap, size * self._per_byte)
