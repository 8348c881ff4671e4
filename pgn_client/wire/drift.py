"""Detects that a hosted model has changed: compares new answers to images with recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pgn_client.types import Answer, ScoreKind
from pgn_client.wire.prediction import probabilities

TOLERANCE = 1e-3
"""Largest difference between two probabilities that an unchanged model is expected to return.

Batching and float32 rounding cause such differences.
"""
NOISES = 2.0
"""Scores that differ by more than this many times the server's own noise count as drift."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Result of sending images with recorded answers again, to see if the hosted model has changed.

    Attributes:
        pictures: Number of images that were compared; 0 if none is stored.
        changed: Share of the images whose best label differs, in [0, 1].
        difference: Largest difference between a new and a recorded score, in probability (softmax
            for logits); for embeddings relative to the largest number.
        noise: Largest difference between two new answers to the same image, in the same unit. Only
            images that differ are sent twice; 0.0 if there are none.
    """

    pictures: int
    changed: float
    difference: float
    noise: float

    @property
    def drifted(self) -> bool:
        """Whether the model has changed: scores differ by more than rounding and noise explain."""
        return self.difference > max(TOLERANCE, NOISES * self.noise)


def differing(recorded: Sequence[Answer], now: Sequence[Answer]) -> list[int]:
    """Return the indices of the images whose recorded and new answers differ noticeably.

    The limit is ``TOLERANCE``. Only these images need to be sent once more, to measure the noise.
    """
    pairs = zip(recorded, now, strict=True)
    return [i for i, (before, after) in enumerate(pairs) if difference(before, after) > TOLERANCE]


def judge(
    recorded: Sequence[Answer], now: Sequence[Answer], repeated: Mapping[int, Answer]
) -> Drift:
    """Compare recorded answers with new ones, and return how far the model has drifted.

    Args:
        recorded: Recorded answers to n images.
        now: New answers to the same n images.
        repeated: Second new answers to some of the images, by index; they show the noise.
    """
    pairs = list(zip(recorded, now, strict=True))
    # An embedding's labels are its dimensions, so its first label means nothing.
    changed = sum(a.labels[0] != b.labels[0] for a, b in pairs if a.kind != "embedding")
    return Drift(
        pictures=len(pairs),
        changed=changed / max(1, len(pairs)),
        difference=max((difference(a, b) for a, b in pairs), default=0.0),
        noise=max((difference(now[i], again) for i, again in repeated.items()), default=0.0),
    )


def difference(a: Answer, b: Answer) -> float:
    """Return the largest difference between the scores of two answers to one image.

    For probabilities and logits it is a difference of probabilities, in [0, 1]. For embeddings it
    is relative to the largest number. For labels alone it is 0 or 1. It is 1 for answers of
    different types, and for embeddings of different widths.

    Some endpoints return only the best labels. A label that is missing from an answer then scores
    at most the lowest score in the answer, and at most the probability that the returned labels
    leave. The difference is the least that these limits allow.
    """
    if a.kind != b.kind or (a.kind == "embedding" and len(a.scores) != len(b.scores)):
        return 1.0
    if a.kind == "label":
        return float(a.labels != b.labels)

    x = probabilities(a)
    y = probabilities(b)
    if a.kind == "embedding":
        largest = float(np.abs([x, y]).max())
        return float(np.abs(x - y).max()) / largest if largest else 0.0

    before = dict(zip(a.labels, x.tolist(), strict=True))
    after = dict(zip(b.labels, y.tolist(), strict=True))
    return max(_largest_loss(before, after, a.kind), _largest_loss(after, before, a.kind))


def _largest_loss(
    before: Mapping[str, float], after: Mapping[str, float], kind: ScoreKind
) -> float:
    """Return the largest decrease of any label's probability from ``before`` to ``after``.

    For a label that is missing in ``after``, the least possible decrease counts.
    """
    # The softmax of logits sums to 1 over the returned labels alone, so it does not limit the rest.
    rest = 1 - sum(after.values()) if kind == "probabilities" else 1.0
    # Rounded probabilities may sum to more than 1, which leaves a negative rest.
    most_of_missing = max(0.0, min(*after.values(), rest))
    losses = (score - after.get(label, most_of_missing) for label, score in before.items())
    return max(0.0, *losses)
