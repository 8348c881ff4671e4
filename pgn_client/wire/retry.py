"""Decides whether and when to send a failed request again.

The decision is pure: nothing here sleeps, reads a clock or draws random numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses after which a request is sent again.

The status 529 is no standard; Anthropic uses it for "overloaded".
"""


@dataclass(frozen=True, slots=True)
class Wait:
    """Decision to send a failed request again after a pause.

    Attributes:
        seconds: Length of the pause in seconds.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Decision not to send a failed request again.

    Attributes:
        reason: Reason for the error message; empty if the status alone explains it.
        lasting: Whether the endpoint asks to wait longer than the policy allows.
    """

    reason: str = ""
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Rules for sending failed requests again: exponential backoff with a cap.

    Retry n (0, 1, ...) waits ``min(cap, base * 2**n) * jitter`` seconds. The caller draws the
    jitter from [0.75, 1]. With the defaults the waits are at most 0.5, 1, 2 and 4 s, so the four
    retries give a server 5.6 to 7.5 s to recover. The jitter keeps many clients from retrying at
    the same instant.

    The policy retries 408, 409, 425, 429, 502, 503, 504, 529 and broken connections. It retries 500
    only once, because 500 more often means "this image makes the server fail" than "try later". It
    never retries 501 and 505. A response header ``x-should-retry`` with ``true`` or ``false``
    overrides these rules.

    A wait that the server requests replaces the backoff. A requested wait above
    ``max_retry_after``, and any wait that passes the deadline, ends the call at once: waiting would
    only delay the same error.

    Attributes:
        max_retries: Largest number of retries of one call.
        base: First wait of the backoff in seconds.
        cap: Longest wait of the backoff in seconds.
        max_retry_after: Longest accepted wait that a server may request, in seconds.
    """

    max_retries: int = 4
    base: float = 0.5
    cap: float = 8.0
    max_retry_after: float = 60.0

    def backoff(self, retry: int, jitter: float) -> float:
        """Return the seconds to wait before retry number ``retry``, counted from 0."""
        # The exponent is bounded because 2.0 ** 1024 overflows.
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
        """Decide after a failed request: send it again after a wait, or stop.

        Args:
            failures: Statuses of all failed requests of this call, oldest first; None stands for a
                broken connection.
            headers: Headers of the last response, names in lower case.
            jitter: Factor of the backoff, in [0.75, 1].
            now: Wall clock time in seconds since the epoch, for HTTP dates.
            remaining: Seconds until the deadline.
            hint: Wait in seconds that the response body requests (``estimated_time`` of Hugging
                Face), if any.
            retryable: Whether the protocol classifies the failure as temporary; None leaves the
                decision to this policy.
        """
        if not self._is_temporary(failures, headers, retryable):
            return Stop()
        if len(failures) > self.max_retries:
            return Stop(f"{self.max_retries} retries used up" if self.max_retries else "")

        requested = wished_wait(headers, now) or hint
        if requested is not None and requested > self.max_retry_after:
            return Stop(
                f"the endpoint asks to wait {requested:.0f} s, more than the "
                f"{self.max_retry_after:.0f} s allowed",
                lasting=True,
            )

        seconds = requested or self.backoff(len(failures) - 1, jitter)
        if seconds >= remaining:
            return Stop(
                f"a retry in {seconds:.1f} s would pass the deadline, "
                f"{max(remaining, 0.0):.1f} s away"
            )
        return Wait(seconds)

    def _is_temporary(
        self, failures: Sequence[int | None], headers: Mapping[str, str], retryable: bool | None
    ) -> bool:
        should_retry = headers.get("x-should-retry", "").strip().lower()
        if should_retry in ("true", "false"):
            return should_retry == "true"
        if retryable is not None:
            return retryable

        status = failures[-1]
        if status == 500:
            return failures.count(500) == 1
        return status is None or status in RETRYABLE


def wished_wait(headers: Mapping[str, str], now: float) -> float | None:
    """Return the positive number of seconds that a response asks to wait, or None.

    The first usable header counts, in this order: ``retry-after-ms``, ``retry-after`` (seconds or
    an HTTP date), ``ratelimit`` (IETF: ``;t=``).

    Args:
        headers: Headers of the response, names in lower case.
        now: Wall clock time in seconds since the epoch, for HTTP dates.
    """
    waits = (
        _seconds(headers.get("retry-after-ms"), scale=1e-3),
        _seconds(headers.get("retry-after")),
        _seconds_until(headers.get("retry-after"), now),
        _seconds_to_reset(headers.get("ratelimit")),
    )
    return next((wait for wait in waits if wait is not None and wait > 0), None)


def _seconds(text: str | None, scale: float = 1.0) -> float | None:
    if not text:
        return None
    try:
        value = float(text) * scale
    except ValueError:
        return None
    # float() also reads "nan", "inf" and numbers that overflow.
    return value if math.isfinite(value) else None


def _seconds_until(text: str | None, now: float) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() - now if text else None
    except (TypeError, ValueError, OverflowError):
        return None


def _seconds_to_reset(text: str | None) -> float | None:
    # At most 9 digits: no real wait is longer, and hundreds of digits would become infinity.
    reset = re.search(r";\s*t=(\d{1,9})", text or "")
    return float(reset[1]) if reset else None
