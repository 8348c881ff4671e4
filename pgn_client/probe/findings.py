"""What a probe has found, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Certainty = Literal["certain", "likely", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One property of an endpoint.

    Attributes:
        value: what it is; ``None`` where nothing is known.
        certainty: ``certain`` (measured, and what speaks against it was shown to be visible),
            ``likely`` (the best guess) or ``unknown``.
        evidence: one sentence.
    """

    value: str | int | float | None
    certainty: Certainty
    evidence: str

    @classmethod
    def unknown(cls, evidence: str) -> Finding:
        """Nothing is known, and why."""
        return cls(None, "unknown", evidence)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the answers to a probe's images say about an endpoint.

    Attributes:
        profile: what the server does to the geometry, a profile string; ``direct`` where it
            squashes.
        input_size: side of the square image that its model sees, in pixels.
        codec: ``lossless``, ``jpeg:Q:SUB``, or ``lossy``, where neither quality nor subsampling
            could be told.
        output: ``probabilities``, ``logits``, ``label`` or ``embedding``.
        top_k: labels per answer, or ``all``.
        decimals: digits after the point that scores are rounded to, or ``none``.
        noise: the largest distance between answers to one image (log-scores; of logits, the
            scores themselves).
        images: images sent.
    """

    profile: Finding
    input_size: Finding
    codec: Finding
    output: Finding
    top_k: Finding
    decimals: Finding
    noise: float
    images: int
