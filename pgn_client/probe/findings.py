"""Results of a probe, each with its certainty and its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Certainty = Literal["certain", "likely", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One measured property of an endpoint.

    Attributes:
        value: Measured value; ``None`` if nothing is known.
        certainty: ``certain`` (measured, and a control showed that other values would have been
            seen), ``likely`` (the best guess) or ``unknown``.
        evidence: Reason for the value and its certainty, one sentence.
    """

    value: str | int | float | None
    certainty: Certainty
    evidence: str

    @classmethod
    def unknown(cls, evidence: str) -> Finding:
        """Return a finding that has no value and the certainty ``unknown``.

        Args:
            evidence: Reason why the property is unknown.
        """
        return cls(None, "unknown", evidence)


@dataclass(frozen=True, slots=True)
class Findings:
    """All measured properties of an endpoint.

    Attributes:
        profile: How the server resizes and crops, such as ``resize_crop:256:224``; ``direct`` if it
            squashes images to a square.
        input_size: Side of the square image that reaches the model, in pixels.
        codec: ``lossless``, ``jpeg:Q:SUB``, or ``lossy`` if the server re-encodes images with an
            unknown quality and subsampling.
        output: ``probabilities``, ``logits``, ``label`` or ``embedding``.
        top_k: Number of labels per answer, or ``all`` if each answer has all labels.
        decimals: Decimal places to which scores are rounded, or ``none`` if they are not.
        noise: Largest distance between two answers to the same image, in log-scores (for logits,
            in scores).
        images: Number of images sent.
    """

    profile: Finding
    input_size: Finding
    codec: Finding
    output: Finding
    top_k: Finding
    decimals: Finding
    noise: float
    images: int
