"""Ways to answer, each measured on the same validation and test images: a prompt, its rivals, and
their fusions.

Rivals that need no prompt, or no endpoint, are always there: raw answers with the best label
mapping, the local head, a linear probe on the surrogate, the first and the last of them fused with
the local head. Whatever is fitted or chosen is so on training and validation images; the test
images are only counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pgn_client.arrays import Floats, Integers
from pgn_client.mapping.fusion import best_fusion, fuse

RAW, LOCAL, PROBE, SERVED = "raw + mapping", "local head", "linear probe", "served"
PGN, IIP, NO_PROMPT, FRAME = "PGN", "IIP", "no prompt", "grey frame"
"""Titles of rows; those of prompts are the methods' own, written out here so that results need no
torch to be read.
"""
KEYS = {RAW: "raw", LOCAL: "local", PROBE: "probe", FRAME: "frame"}


def with_local(name: str) -> str:
    """Return the title of a row that is fused with the local head."""
    return f"{'raw' if name == RAW else name} ⊕ local"


def key_of(title: str) -> str:
    """Return the key of a row that is not fused: what programs know it by."""
    return KEYS.get(title, title.lower().replace(" ", "_"))


@dataclass(frozen=True)
class Candidate:
    """One way to answer.

    Attributes:
        name: title of its row.
        val, test: (n, C) log-probabilities.
        queries: images sent for its test row, and for fitting and choosing it where the endpoint
            was asked for that.
        sent: share of the test images that are sent when it serves.
        local: the local head beside it, which can gate it.
        alpha: the local head's weight in it; ``None`` where nothing is fused.
        fuses: title of the row that is fused with the local head here; empty where nothing is
            fused.
    """

    name: str
    val: Floats
    test: Floats
    queries: int
    sent: float = 1.0
    local: Candidate | None = field(default=None, repr=False)
    alpha: float | None = None
    fuses: str = ""

    @property
    def fused(self) -> bool:
        """Whether the local head has a say in it."""
        return bool(self.fuses)

    @property
    def key(self) -> str:
        """What programs know the row by: ``raw``, ``pgn``, and ``pgn+local`` where it is fused."""
        return f"{key_of(self.fuses)}+local" if self.fuses else key_of(self.name)

    @property
    def queries_test(self) -> int:
        """Images sent for its test row: what serving as many images takes."""
        return round(self.sent * len(self.test))

    @property
    def queries_fit(self) -> int:
        """Images sent for fitting and choosing it: paid once."""
        return self.queries - self.queries_test

    def cost(self, images: int, price_per_image: float | None) -> float | None:
        """What serving so many images costs; ``None`` where some are sent and no price is known."""
        if not self.sent:
            return 0.0
        return None if price_per_image is None else self.sent * images * price_per_image


def fused(other: Candidate, local: Candidate, alpha: float) -> Candidate:
    """Fuse a row with the local head's opinion; where the row then has no say, nothing is sent."""
    val, test = (fuse(a, b, alpha) for a, b in ((other.val, local.val), (other.test, local.test)))
    sent = other.sent if alpha < 1 else 0.0
    queries = other.queries - round((other.sent - sent) * len(test))
    return Candidate(with_local(other.name), val, test, queries, sent, local, alpha, other.name)


def fused_best(other: Candidate, local: Candidate, val_targets: Integers) -> Candidate:
    """Fuse by the α of least log-loss on the validation images, whose (n,) targets are given."""
    return fused(other, local, best_fusion(other.val, local.val, val_targets))
