"""What is served, and what is advised: chosen on validation images alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from pgn_client.arrays import Floats, Integers
from pgn_client.evaluation.candidate import RAW, Candidate
from pgn_client.mapping.fusion import best_gate, gate, gate_curve
from pgn_client.mapping.probability import log_loss, right


def choose(candidates: Iterable[Candidate], val_targets: Integers) -> Candidate:
    """Pick what is served, on validation: the least log-loss; the cheaper among equals.

    Not the best accuracy, nor the cheapest within its error: both were tried on two sets, with 120
    validation images, and what they picked was 0.9 and 1.5 points behind the best on other
    images (log-loss: 0.6).

    Args:
        candidates: from the cheapest to the dearest.
        val_targets: (n,) class indices.
    """
    return min(candidates, key=lambda c: round(log_loss(c.val, val_targets), 9))


def cheapest(candidates: Iterable[Candidate], best: Candidate, val_targets: Integers) -> Candidate:
    """Return the cheapest candidate within one paired standard error, or one image, of the best
    on validation.

    The one-standard-error rule (Breiman et al. 1984): what is dearer has not shown there that it is
    worth it.

    Args:
        candidates: from the cheapest to the dearest.
        best: what they are held against.
        val_targets: (n,) class indices.
    """
    hits = right(best.val, val_targets).astype(float)
    for candidate in candidates:
        gap = hits - right(candidate.val, val_targets)
        if gap.sum() <= max(1.0, gap.std() * np.sqrt(len(gap))):
            return candidate
    return best


def advised(candidates: Iterable[Candidate], best: Candidate, val_targets: Integers) -> Candidate:
    """Return the :func:`cheapest` way, as gated as it would serve, that sends no more than what is
    served.

    Passed over is what saves nothing: a way without a prompt that yet sends more images, and a
    prompt that only does without the local head, which its checkpoint holds anyway.

    Args:
        candidates: from the cheapest to the dearest.
        best: the one that is served, behind its gate.
        val_targets: (n,) class indices.
    """
    served, most = _as_served(best, val_targets)
    offers = (_as_served(candidate, val_targets) for candidate in candidates)
    saving = (
        offer
        for offer, sent in offers
        if sent < most or (sent == most and not _same_prompt(offer, best))
    )
    return cheapest(saving, served, val_targets)


def _same_prompt(candidate: Candidate, best: Candidate) -> bool:
    return candidate.name not in ("", RAW) and candidate.name == best.fuses


def _as_served(candidate: Candidate, val_targets: Integers) -> tuple[Candidate, float]:
    """A candidate behind its gate, and the share of the validation images that it sends."""
    offer, query_below = gated(candidate.name, candidate, val_targets)
    if query_below is None or candidate.local is None:
        return offer, candidate.sent
    return offer, _share_sent(candidate.local.val, query_below)


def _share_sent(log_p_local: Floats, query_below: float) -> float:
    (point,) = gate_curve(
        log_p_local, log_p_local, np.zeros(len(log_p_local), dtype=np.int64), [query_below]
    )
    return point.sent


def gated(name: str, best: Candidate, val_targets: Integers) -> tuple[Candidate, float | None]:
    """Answer locally where the row's local head is sure; only the other images are sent.

    Args:
        name: Title of the new row.
        best: the row to gate.
        val_targets: (n,) class indices, by which the threshold is chosen: no worse than sending
            all.

    Returns:
        The gated row, and the threshold ``query_below``; ``None`` where all, or no, images are
        sent anyway.
    """
    local = best.local
    query_below = best_gate(best.val, local.val, val_targets) if best.sent and local else None
    fuses = best.fuses if name == best.name else ""
    if local is None or query_below is None:
        return replace(best, name=name, fuses=fuses), None
    val, test = (
        gate(a, b, query_below) for a, b in ((best.val, local.val), (best.test, local.test))
    )
    sent = _share_sent(local.test, query_below)
    saved = round((1 - sent) * len(test))
    return Candidate(name, val, test, best.queries - saved, sent, local, fuses=fuses), query_below
