"""Does a hosted model still answer as it did? Images that were sent before are sent again, and
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pgn_client.types import Answer, ScoreKind
from pgn_client.wire.prediction import probabilities

TOLERANCE = 1e-3
"""Difference of a probability that batching and float32 may make on a server that has not changed.
"""
NOISES = 2.0
"""A drift is more than so many times what the same image differs from itself, sent twice."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What sending recorded images again has shown.

    Attributes:
        pictures: how many were compared; 0 where none is kept.
        changed: share of them whose best label is another.
        difference: largest difference of a score to the recorded one: of a probability (logits by
            softmax), or of an embedding's numbers relative to its largest.
        noise: the same between two answers of now, to the images that differed; 0.0 where none
            did.
    """

    pictures: int
    changed: float
    difference: float
    noise: float

    @property
    def drifted(self) -> bool:
        """Whether the model answers otherwise than it did, beyond its own noise."""
        return self.difference > max(TOLERANCE, NOISES * self.noise)


def differing(recorded: Sequence[Answer], now: Sequence[Answer]) -> list[int]:
    """Return the rows whose answers differ by more than the tolerance; only these are worth sending
    once more.
    """
    return [
        i for i, pair in enumerate(zip(recorded, now, strict=True)) if difference(*pair) > TOLERANCE
    ]


def judge(
    recorded: Sequence[Answer], now: Sequence[Answer], repeated: Mapping[int, Answer]
) -> Drift:
    """Compare recorded answers with those of now.

    Args:
        recorded: n answers.
        now: the n answers to the same images.
        repeated: further answers to some of them, by row, which show the noise.
    """
    pairs = list(zip(recorded, now, strict=True))
    return Drift(
        len(pairs),
        sum(a.labels[0] != b.labels[0] for a, b in pairs if a.kind != "embedding")
        / max(1, len(pairs)),
        max((difference(a, b) for a, b in pairs), default=0.0),
        max((difference(now[i], answer) for i, answer in repeated.items()), default=0.0),
    )


def difference(a: Answer, b: Answer) -> float:
    """Return the largest difference of two answers to one image, in [0, 1] where they are
    probabilities.

    Of answers that hold the best labels only, a label that is missing has at most the last one's
    score, and no more than what the others leave. Answers of another kind, or embeddings of another
    width, are not as they were: 1.
    """
    if a.kind != b.kind or (a.kind == "embedding" and len(a.scores) != len(b.scores)):
        return 1.0
    if a.kind == "label":
        return float(a.labels != b.labels)
    x, y = probabilities(a), probabilities(b)
    if a.kind == "embedding":
        largest = float(np.abs([x, y]).max())
        return float(np.abs(x - y).max()) / largest if largest else 0.0
    before, after = (
        dict(zip(a.labels, x.tolist(), strict=True)),
        dict(zip(b.labels, y.tolist(), strict=True)),
    )
    return max(_lost(before, after, a.kind), _lost(after, before, a.kind))


def _lost(before: Mapping[str, float], after: Mapping[str, float], kind: ScoreKind) -> float:
    """Return the most that a label has at least lost."""
    rest = 1 - sum(after.values()) if kind == "probabilities" else 1.0
    missing = max(0.0, min(*after.values(), rest))
    return max(0.0, *(score - after.get(label, missing) for label, score in before.items()))
