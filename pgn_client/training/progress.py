"""Progress bars on stderr: live on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 20.0  # seconds between lines where stderr is no terminal


def bar(total: int, what: str, unit: str, *, shown: bool, initial: int = 0) -> Any:
    """Return a progress bar with rate and ETA; ``shown=False`` is silent."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_INTERVAL
    return tqdm(
        total=total, initial=initial, desc=what, unit=unit, disable=not shown, mininterval=seconds
    )
