"""Paired comparisons of two classifiers on the same test images."""

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

RAW_LOCAL = with_local(RAW)
PROBE_LOCAL = with_local(PROBE)
IIP_LOCAL = with_local(IIP)
PGN_LOCAL = with_local(PGN)


def compare(
    candidates: Sequence[Candidate], targets: Integers, seed: int, name: str = PGN
) -> list[Comparison]:
    """Return the paired comparisons that show whether a prompt pays: the prompt and the served
    candidate, each against its rivals.

    A pair is left out if one of the two is not in ``candidates``.

    Args:
        candidates: All ways to classify that were measured.
        targets: Class indices of the test images, (n,).
        seed: Seed of the bootstrap.
        name: Title of the candidate with the prompt.

    Raises:
        MissingDependencyError: SciPy is not installed; McNemar's test needs it.
    """
    rows = {c.name: c for c in candidates}
    prompt_local = with_local(name)
    pairs = [
        (name, RAW),
        (name, IIP),
        (name, LOCAL),
        (prompt_local, RAW_LOCAL),
        (prompt_local, PROBE_LOCAL),
        (prompt_local, IIP_LOCAL),
        (SERVED, LOCAL),
        (SERVED, PROBE_LOCAL),
        (SERVED, RAW_LOCAL),
    ]
    # A pair has the same row twice where the prompt itself is input-independent.
    return [
        compared(rows[a], rows[b], targets, seed)
        for a, b in pairs
        if a in rows and b in rows and a != b
    ]


def compared(a: Candidate, b: Candidate, targets: Integers, seed: int) -> Comparison:
    """Compare the accuracies of two candidates on the same test images.

    Args:
        a: One way to classify.
        b: The other way; its accuracy is subtracted from that of ``a``.
        targets: Class indices of the test images, (n,).
        seed: Seed of the bootstrap.

    Raises:
        MissingDependencyError: SciPy is not installed; McNemar's test needs it.
    """
    hits = right(a.test, targets), right(b.test, targets)
    difference, lo, hi = paired_bootstrap(*hits, seed=seed)
    return Comparison(a.name, b.name, difference, (lo, hi), *discordant(*hits), mcnemar(*hits))
