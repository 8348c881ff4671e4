"""What the answers themselves say: the kind of their scores, how many labels, and how they are
rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pgn_client.probe.findings import Finding
from pgn_client.probe.queries import UNROUNDED, decimals
from pgn_client.types import Answer

ENOUGH = 20  # scores, or answers, before a regularity among them is certain
WHOLE = 0.01  # how far from 1 the probabilities of all labels may add up, beside the rounding


def find_output(answers: Sequence[Answer]) -> Finding:
    """Tell probabilities from logits, labels alone, and vectors without an order."""
    scores = np.concatenate([answer.scores for answer in answers])
    if all(answer.kind == "label" or answer.scores == (1.0,) for answer in answers):
        sure = len(answers) > 1
        return Finding(
            "label",
            "certain" if sure else "likely",
            f"{len(answers)} answers of one label, scores all 1",
        )
    if any(list(answer.scores) != sorted(answer.scores, reverse=True) for answer in answers):
        return Finding("embedding", "likely", "the numbers are not in descending order")
    sums = [sum(answer.scores) for answer in answers]
    if scores.min() < 0 or scores.max() > 1:
        return Finding("logits", "certain", f"scores from {scores.min():.3g} to {scores.max():.3g}")
    if max(sums) <= 1 + WHOLE + _rounding(answers):
        sure = answers[0].kind == "probabilities" and len(answers) >= ENOUGH
        found = f"scores in [0, 1] which add up to {min(sums):.3g} to {max(sums):.3g}"
        return Finding("probabilities", "certain" if sure else "likely", found)
    return Finding("logits", "likely", f"scores in [0, 1] which add up to {max(sums):.3g}")


def find_top_k(answers: Sequence[Answer]) -> Finding:
    """Count the labels of an answer, and of all answers together."""
    counts = {len(answer.labels) for answer in answers}
    together = len({label for answer in answers for label in answer.labels})
    if len(counts) > 1:
        return Finding.unknown(f"between {min(counts)} and {max(counts)} labels per answer")
    count = counts.pop()
    if together > count:
        return Finding(
            count,
            "certain" if len(answers) > 2 else "likely",
            f"{count} per answer, {together} different labels in all",
        )
    if count > 1 and len(answers) > 2:
        return Finding(
            "all",
            "certain" if len(answers) >= ENOUGH else "likely",
            f"always the same {count} labels",
        )
    return Finding(count, "likely", f"always {count} of the same {together} labels")


def find_decimals(answers: Sequence[Answer]) -> Finding:
    """The most digits after the point; too few of them are no accident."""
    scores = [score for answer in answers for score in answer.scores if score not in (0.0, 1.0)]
    if len(scores) < ENOUGH:
        return Finding.unknown(f"only {len(scores)} scores other than 0 and 1")
    most = max(map(decimals, scores))
    if most >= UNROUNDED:
        return Finding(
            "none", "certain", f"{len(scores)} scores of up to {most} digits after the point"
        )
    return Finding(
        most, "certain", f"{len(scores)} scores of at most {most} digits after the point"
    )


def _rounding(answers: Sequence[Answer]) -> float:
    """How much rounding can add to the sum of an answer."""
    digits = max(decimals(score) for answer in answers for score in answer.scores)
    return float(max(len(answer.scores) for answer in answers) * 0.5 * 10.0**-digits)
