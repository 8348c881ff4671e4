"""A candidate: one way to classify, measured on the same validation and test images as its rivals.

Some candidates need no prompt: raw images with the best label mapping, the local head (the small
classifier in the checkpoint), and a linear probe on the surrogate. Raw images and the probe are
also there fused with the local head. Fitting and choosing use training and validation images only.
The test images serve to measure accuracy, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pgn_client.arrays import Floats, Integers
from pgn_client.mapping.fusion import best_fusion, fuse

RAW = "raw + mapping"
LOCAL = "local head"
PROBE = "linear probe"
SERVED = "served"
"""Titles of three candidates without a prompt, and of the candidate that serving uses, ``SERVED``,
which was chosen on validation images.
"""

PGN = "PGN"
IIP = "IIP"
NO_PROMPT = "no prompt"
FRAME = "grey frame"
"""Titles of candidates whose images an adapter prepares: a prompt for each image, one prompt for
all images, no prompt, and an empty gray frame. They equal the titles in ``methods.REGISTRY`` and
are repeated here so that reading results does not import torch.
"""

KEYS = {RAW: "raw", LOCAL: "local", PROBE: "probe", FRAME: "frame"}
"""Title of a candidate → its key for programs, if that is not the title in lower case."""


def with_local(name: str) -> str:
    """Return the title of a candidate after fusion with the local head, such as ``PGN ⊕ local``."""
    return f"{'raw' if name == RAW else name} ⊕ local"


def key_of(title: str) -> str:
    """Return the key for programs of a candidate that is not fused, such as ``raw`` or ``pgn``."""
    return KEYS.get(title, title.lower().replace(" ", "_"))


@dataclass(frozen=True)
class Candidate:
    """One way to classify, with its log-probabilities and the number of images it sends.

    Attributes:
        name: Title in tables.
        val: Log-probabilities of the validation images, (n, C).
        test: Log-probabilities of the test images, (m, C).
        queries: Number of images sent to the endpoint: ``queries_fit`` and ``queries_test``
            together.
        sent: Share of the test images that serving sends, in [0, 1].
        local: The local head, a small classifier on this machine, whose confidence can decide which
            images are sent; ``None`` if there is none.
        alpha: Weight of the local head, in [0, 1]; ``None`` if nothing is fused.
        fuses: Title of the candidate that is fused with the local head; empty if nothing is fused.
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
        """Whether this candidate is fused with the local head."""
        return bool(self.fuses)

    @property
    def key(self) -> str:
        """Key for programs: ``raw`` or ``pgn``, and ``pgn+local`` if fused with the local head."""
        return f"{key_of(self.fuses)}+local" if self.fuses else key_of(self.name)

    @property
    def queries_test(self) -> int:
        """Number of images sent to classify the test images."""
        return round(self.sent * len(self.test))

    @property
    def queries_fit(self) -> int:
        """Number of images sent once, to fit and choose this candidate."""
        return self.queries - self.queries_test

    def cost(self, images: int, price_per_image: float | None) -> float | None:
        """Return the cost of classifying this many images; ``None`` if some have to be sent and no
        price is given.
        """
        if not self.sent:
            return 0.0
        return None if price_per_image is None else self.sent * images * price_per_image


def fused(other: Candidate, local: Candidate, alpha: float) -> Candidate:
    """Fuse a candidate with the local head, whose weight is ``alpha``; return the new candidate.

    At ``alpha`` = 1 only the local head counts, and nothing is sent.
    """
    val = fuse(other.val, local.val, alpha)
    test = fuse(other.test, local.test, alpha)

    sent = other.sent if alpha < 1 else 0.0
    # At α = 1 the test images are not sent; those of the fit and of the choice have been sent.
    queries = other.queries - round((other.sent - sent) * len(test))
    return Candidate(with_local(other.name), val, test, queries, sent, local, alpha, other.name)


def fused_best(other: Candidate, local: Candidate, val_targets: Integers) -> Candidate:
    """Fuse a candidate with the local head; return the new candidate.

    The weight of the local head is that of least log-loss on the validation images.

    Args:
        other: The candidate to fuse.
        local: The local head.
        val_targets: Class indices of the validation images, (n,).
    """
    return fused(other, local, best_fusion(other.val, local.val, val_targets))
