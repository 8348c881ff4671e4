"""Work that one call does for all concurrent calls, such as asking for the model's description."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

from pgn_client.errors import PGNError
from pgn_client.wire.steps import Sleep, Steps

PAUSE = 0.02
"""Seconds between two checks whether another call has finished the work."""


class Once:
    """Work that is needed once; calls that need it at the same time wait for the first of them.

    If the work fails, the calls that wait for it raise the same error. A later call tries again.

    Attributes:
        done: Whether the work is done.
        times: Number of times that the work was done.
        failure: Error of the last try; None if it succeeded.
    """

    def __init__(self) -> None:
        self.done = False
        self.times = 0
        self.failure: PGNError | None = None
        self._busy = threading.Lock()

    def ensure(
        self, work: Callable[[], Steps[None]], check_deadline: Callable[[], object]
    ) -> Steps[None]:
        """Do the work if it is not done, or wait for the call that does it.

        Args:
            work: Function that returns the steps of the work.
            check_deadline: Function that raises an error once the deadline of this call has passed.
        """
        failure_before = self.failure
        while not self.done:
            if self.failure is not None and self.failure is not failure_before:
                # A copy: each raise of the same object would lengthen its traceback.
                raise copy.copy(self.failure).with_traceback(None)
            # Waiting inside ``acquire`` would block the event loop of an asynchronous client.
            if not self._busy.acquire(blocking=False):
                check_deadline()
                yield Sleep(PAUSE)
                continue
            try:
                # Another call may have finished, or failed, before this one got the lock.
                if not self.done and self.failure is failure_before:
                    yield from work()
                    self.done = True
                    self.failure = None
                    self.times += 1
            except PGNError as error:
                self.failure = error
                raise
            finally:
                self._busy.release()

    def undo(self, times: int) -> None:
        """Note that the work must be done again, unless it was done since.

        Args:
            times: Value of ``times`` when the caller last saw the work done.
        """
        if self.times == times:
            self.done = False
