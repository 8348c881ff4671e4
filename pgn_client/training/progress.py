"""Progress bars on stderr: live on a terminal, a line every 20 seconds in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 20.0
"""Seconds between two lines of a progress bar if stderr is not a terminal."""


def bar(total: int, what: str, unit: str, *, shown: bool, initial: int = 0) -> Any:
    """Return a progress bar that shows the rate and the remaining time.

    Args:
        total: Number of units at the end.
        what: Name of the bar.
        unit: Name of a unit, such as ``img``.
        shown: Whether the bar is drawn; otherwise it is silent.
        initial: Number of units that are already done.
    """
    # 0.1 is tqdm's own default.
    seconds = 0.1 if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(
        total=total, initial=initial, desc=what, unit=unit, disable=not shown, mininterval=seconds
    )
