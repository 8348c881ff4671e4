"""Whether to send a request again, and when. Pure: nothing here sleeps, reads a clock or draws
randomness.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Wait:
    """Send again after this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not send again; the reason is empty where the status itself says it."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with a cap, a server's own wish first.

    Retry n (0, 1, ...) waits ``min(cap, base * 2**n) * jitter`` with jitter in [0.75, 1], drawn by
    the caller. With the defaults: 0.5, 1, 2, 4 s at most, so the four retries give a server 5.6 to
    7.5 s to recover; the jitter keeps many clients from coming back in the same instant.

    Retried: 408, 409, 425, 429, 502, 503, 504, 529 and broken connections; 500 once only, because
    it more often means "this image makes me fail" than "try later"; never 501 and 505.
    ``x-should-retry: true | false`` wins over that.

    A wait that the server asks for replaces the backoff. One above ``max_retry_after``, or any wait
    that passes the deadline, ends the call at once: waiting would only delay the same error.

    Attributes:
        max_retries: requests beyond the first.
        base: first wait, in seconds.
        cap: longest wait of the backoff, in seconds.
        max_retry_after: longest wait that a server may ask for, in seconds.
    """

    max_retries: int = 4
    base: float = 0.5
    cap: float = 8.0
    max_retry_after: float = 60.0

    def backoff(self, retry: int, jitter: float) -> float:
        """Return seconds before retry number ``retry`` (from 0)."""
        return float(min(self.cap, self.base * 2.0 ** min(retry, 64)) * jitter)

    def decide(
        self,
        failures: Sequence[int | None],
        headers: Mapping[str, str],
        *,
        jitter: float,
        now: float,
        remaining: float,
        hint: float | None = None,
        retryable: bool | None = None,
    ) -> Wait | Stop:
        """Say what to do after the last of ``failures``.

        Args:
            failures: statuses of all failed requests of this call, oldest first; None is a broken
                connection.
            headers: of the last response, names in lower case.
            jitter: factor in [0.75, 1].
            now: wall clock, seconds since the epoch; for HTTP dates.
            remaining: seconds until the deadline.
            hint: a wait in seconds that the protocol found in the body (Hugging Face's
                ``estimated_time``).
            retryable: the protocol's own opinion, where it has one.
        """
        if not self._worth(failures, headers, retryable):
            return Stop()
        if len(failures) > self.max_retries:
            return Stop(f"{self.max_retries} retries used up" if self.max_retries else "")
        asked = wished_wait(headers, now) or hint
        if asked is not None and asked > self.max_retry_after:
            return Stop(
                f"the endpoint asks to wait {asked:.0f} s, more than the "
                f"{self.max_retry_after:.0f} s allowed"
            )
        seconds = asked or self.backoff(len(failures) - 1, jitter)
        if seconds >= remaining:
            return Stop(
                f"a retry in {seconds:.1f} s would pass the deadline, "
                f"{max(remaining, 0.0):.1f} s away"
            )
        return Wait(seconds)

    def _worth(
        self, failures: Sequence[int | None], headers: Mapping[str, str], retryable: bool | None
    ) -> bool:
        wish = headers.get("x-should-retry", "").strip().lower()
        if wish in ("true", "false"):
            return wish == "true"
        if retryable is not None:
            return retryable
        status = failures[-1]
        if status == 500:
            return failures.count(500) == 1
        return status is None or status in RETRYABLE


def wished_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Return the positive number of seconds that a response asks to wait, or None.

    Read in this order: ``retry-after-ms``, ``retry-after`` (seconds or an HTTP date), ``ratelimit``
    (IETF: ``;t=``).
    """
    waits = (
        _seconds(headers.get("retry-after-ms"), scale=1e-3),
        _seconds(headers.get("retry-after")),
        _until(headers.get("retry-after"), now),
        _reset(headers.get("ratelimit")),
    )
    return next((wait for wait in waits if wait is not None and wait > 0), None)


def _seconds(text: str | None, scale: float = 1.0) -> float | None:
    try:
        value = float(text) * scale if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _until(text: str | None, now: float) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() - now if text else None
    except (TypeError, ValueError, OverflowError):
        return None


def _reset(text: str | None) -> float | None:
    found = re.search(r";\s*t=(\d{1,9})", text or "")
    return float(found[1]) if found else None
