"""Files and folders of images."""

from __future__ import annotations

SHOWN = 4
"""Pictures to look at, at most."""


def spread(n: int) -> range:
    """Return which of n pictures to look at: a few, evenly spread."""
    return range(0, n, max(1, n // SHOWN))[:SHOWN]
