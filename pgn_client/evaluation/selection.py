"""Choose the way to classify that is served, and a cheaper one to advise, on validation images
alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pgn_client.arrays import Floats, Integers
from pgn_client.evaluation.candidate import RAW, Candidate
from pgn_client.mapping.fusion import best_gate, gate, gate_curve
from pgn_client.mapping.probability import log_loss, right


def choose(candidates: Iterable[Candidate], val_targets: Integers) -> Candidate:
    """Return the candidate of least log-loss on validation; the cheaper among equals.

    Log-loss chose better than two other rules on two image sets with 120 validation images. On
    other images, its choices were 0.6 points of accuracy behind the best candidate. Choices by best
    accuracy were 0.9 behind, and choices of the cheapest within the error of that 1.5.

    Args:
        candidates: Candidates from the cheapest to the most expensive.
        val_targets: Class indices of the validation images, (n,).
    """
    # Rounded, so that candidates equal but for rounding errors tie; min() takes the first of them.
    return min(candidates, key=lambda c: round(log_loss(c.val, val_targets), 9))


def cheapest(candidates: Iterable[Candidate], best: Candidate, val_targets: Integers) -> Candidate:
    """Return the cheapest candidate whose validation accuracy is within one paired standard error,
    or one image, of the best.

    This is the one-standard-error rule (Breiman et al. 1984): a more expensive candidate must show
    on validation that it is worth its cost.

    Args:
        candidates: Candidates from the cheapest to the most expensive.
        best: The candidate that the others are compared with.
        val_targets: Class indices of the validation images, (n,).
    """
    hits = right(best.val, val_targets).astype(float)
    for candidate in candidates:
        gap = hits - right(candidate.val, val_targets)
        # The error is that of a sum: std · √n. Where the best has one more hit and nothing else
        # differs, it is just below 1, so one image would decide if 1 were not allowed.
        if gap.sum() <= max(1.0, gap.std() * np.sqrt(len(gap))):
            return candidate
    return best


def advised(candidates: Iterable[Candidate], best: Candidate, val_targets: Integers) -> Candidate:
    """Return the cheapest candidate that is about as accurate as the best one and saves something.

    All candidates are compared behind a gate, which does not send images on which the local head is
    confident; :func:`cheapest` says how accurate is enough. A candidate that sends more images than
    the best saves nothing. Nor does leaving the local head out of a fused prompt, because the
    checkpoint holds the local head anyway.

    Args:
        candidates: Candidates from the cheapest to the most expensive.
        best: The candidate that is served, before its gate.
        val_targets: Class indices of the validation images, (n,).
    """
    served, served_share = _as_served(best, val_targets)
    offers = (_as_served(candidate, val_targets) for candidate in candidates)
    saving = (
        offer
        for offer, share in offers
        if share < served_share or (share == served_share and not _same_prompt(offer, best))
    )
    return cheapest(saving, served, val_targets)


def _same_prompt(candidate: Candidate, best: Candidate) -> bool:
    """Whether the best candidate is this prompt fused with the local head."""
    # Raw images are no prompt: without the local head they need no checkpoint, which does save.
    if candidate.name == RAW:
        return False
    # A row that fuses nothing has no title in `fuses`, and so equals no candidate.
    return best.fused and candidate.name == best.fuses


def _as_served(candidate: Candidate, val_targets: Integers) -> tuple[Candidate, float]:
    """Put a candidate behind a gate, which does not send images on which the local head is
    confident.

    Returns:
        The gated candidate, and the share of the validation images that it sends.
    """
    offer, query_below = gated(candidate.name, candidate, val_targets)
    # A threshold comes with a local head; the second test tells the type checker so.
    if query_below is None or candidate.local is None:
        return offer, candidate.sent
    return offer, _share_sent(candidate.local.val, query_below)


def _share_sent(log_p_local: Floats, query_below: float) -> float:
    """Return the share of images, in [0, 1], on which the local head's confidence is below the
    threshold ``query_below``, so that they are sent.
    """
    # The curve also counts right answers; only the share is read, so any labels will do.
    labels = np.zeros(len(log_p_local), dtype=np.int64)
    (point,) = gate_curve(log_p_local, log_p_local, labels, [query_below])
    return point.sent


def gated(name: str, best: Candidate, val_targets: Integers) -> tuple[Candidate, float | None]:
    """Put a candidate behind a gate: images on which its local head is confident are not sent.

    The threshold is chosen on validation, where the gate must not raise the log-loss.

    Args:
        name: Title of the gated candidate.
        best: The candidate to gate.
        val_targets: Class indices of the validation images, (n,).

    Returns:
        The gated candidate, and the threshold ``query_below``, the local head's confidence below
        which an image is sent. The threshold is ``None`` if there is no gate, because all images or
        none are sent.
    """
    local = best.local
    query_below = best_gate(best.val, local.val, val_targets) if best.sent and local else None
    # The key of a row follows from `fuses`. Under the new title "served" the row must have the key
    # of that title instead of the key of the row that it comes from.
    fuses = best.fuses if name == best.name else ""
    if local is None or query_below is None:
        return replace(best, name=name, fuses=fuses), None

    val = gate(best.val, local.val, query_below)
    test = gate(best.test, local.test, query_below)
    sent = _share_sent(local.test, query_below)
    queries = best.queries - round((1 - sent) * len(test))
    return Candidate(name, val, test, queries, sent, local, fuses=fuses), query_below
