"""Which rows differ: paired comparisons on the same test images."""

from __future__ import annotations

from collections.abc import Sequence

from pgn_client.arrays import Integers
from pgn_client.evaluation.candidate import (
    IIP,
    LOCAL,
    PGN,
    PROBE,
    RAW,
    SERVED,
    Candidate,
    with_local,
)
from pgn_client.evaluation.results import Comparison
from pgn_client.evaluation.statistics import discordant, mcnemar, paired_bootstrap
from pgn_client.mapping.probability import right

RAW_LOCAL, PROBE_LOCAL, IIP_LOCAL, PGN_LOCAL = (with_local(name) for name in (RAW, PROBE, IIP, PGN))


def compare(
    candidates: Sequence[Candidate], targets: Integers, seed: int, name: str = PGN
) -> list[Comparison]:
    """Return the paired comparisons that decide whether a prompt pays, where both rows are there.

    Raises:
        MissingDependencyError: scipy is not installed; McNemar's test needs it.
    """
    rows = {c.name: c for c in candidates}
    both = with_local(name)
    pairs = [
        (name, RAW),
        (name, IIP),
        (name, LOCAL),
        (both, RAW_LOCAL),
        (both, PROBE_LOCAL),
        (both, IIP_LOCAL),
    ]
    pairs += [(SERVED, LOCAL), (SERVED, PROBE_LOCAL), (SERVED, RAW_LOCAL)]
    return [
        compared(rows[a], rows[b], targets, seed)
        for a, b in pairs
        if a in rows and b in rows and a != b
    ]


def compared(a: Candidate, b: Candidate, targets: Integers, seed: int) -> Comparison:
    """Compare two rows on the same test images, of which (n,) class indices are given.

    Raises:
        MissingDependencyError: scipy is not installed; McNemar's test needs it.
    """
    hits = right(a.test, targets), right(b.test, targets)
    difference, lo, hi = paired_bootstrap(*hits, seed=seed)
    return Comparison(a.name, b.name, difference, (lo, hi), *discordant(*hits), mcnemar(*hits))
