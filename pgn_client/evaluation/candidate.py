"""A candidate: one way to classify, measured on the same validation and test images as its rivals.

Baselines without a prompt or without an endpoint are always there: raw images with the best label
mapping, the local head, a linear probe on the surrogate, and the first and the last of these fused
with the local head. Fitting and choosing use training and validation images only. The test images
serve to measure accuracy, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pgn_client.arrays import Floats, Integers
from pgn_client.mapping.fusion import best_fusion, fuse

RAW = "raw + mapping"
LOCAL = "local head"
PROBE = "linear probe"
SERVED = "served"
"""Titles of rows without a prompt, and of the served row."""

PGN = "PGN"
IIP = "IIP"
NO_PROMPT = "no prompt"
FRAME = "grey frame"
"""Titles of rows with a prompt. They equal the titles in ``methods.REGISTRY`` and are repeated here
so that reading results does not import torch.
"""

KEYS = {RAW: "raw", LOCAL: "local", PROBE: "probe", FRAME: "frame"}
"""Title of a row → its key, where the key does not follow from the title."""


def with_local(name: str) -> str:
    """Return the title of a row that is fused with the local head."""
    return f"{'raw' if name == RAW else name} ⊕ local"


def key_of(title: str) -> str:
    """Return the key, for programs, of a row that is not fused."""
    return KEYS.get(title, title.lower().replace(" ", "_"))


@dataclass(frozen=True)
class Candidate:
    """One way to classify, with its log-probabilities and the images it sends.

    Attributes:
        name: Title of its row.
        val: Log-probabilities of the validation images, (n, C).
        test: Log-probabilities of the test images, (m, C).
        queries: Number of images sent for its test row, and for fitting and choosing it where that
            needed the endpoint.
        sent: Share of the test images that serving sends, in [0, 1].
        local: The local head that can gate this candidate; ``None`` where there is none.
        alpha: Weight of the local head, in [0, 1]; ``None`` where nothing is fused.
        fuses: Title of the row that is fused with the local head; empty where nothing is fused.
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
        """Whether the row is fused with the local head."""
        return bool(self.fuses)

    @property
    def key(self) -> str:
        """Key of the row for programs: ``raw``, ``pgn``, and ``pgn+local`` where it is fused."""
        return f"{key_of(self.fuses)}+local" if self.fuses else key_of(self.name)

    @property
    def queries_test(self) -> int:
        """Number of images sent for its test row, which serving as many images sends too."""
        return round(self.sent * len(self.test))

    @property
    def queries_fit(self) -> int:
        """Number of images sent once, to fit and choose it."""
        return self.queries - self.queries_test

    def cost(self, images: int, price_per_image: float | None) -> float | None:
        """Return the cost of serving this many images; ``None`` where it sends some and no price is
        given.
        """
        if not self.sent:
            return 0.0
        return None if price_per_image is None else self.sent * images * price_per_image


def fused(other: Candidate, local: Candidate, alpha: float) -> Candidate:
    """Fuse a row with the local head. At α = 1 only the local head counts, and nothing is sent."""
    val = fuse(other.val, local.val, alpha)
    test = fuse(other.test, local.test, alpha)

    sent = other.sent if alpha < 1 else 0.0
    # At α = 1 the test images are not sent; those of the fit and of the choice have been sent.
    queries = other.queries - round((other.sent - sent) * len(test))
    return Candidate(with_local(other.name), val, test, queries, sent, local, alpha, other.name)


def fused_best(other: Candidate, local: Candidate, val_targets: Integers) -> Candidate:
    """Fuse a row with the local head, with the α of least log-loss on the validation images.

    Args:
        other: The row to fuse.
        local: The local head.
        val_targets: Class indices of the validation images, (n,).
    """
    return fused(other, local, best_fusion(other.val, local.val, val_targets))
