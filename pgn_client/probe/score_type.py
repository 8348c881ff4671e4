"""Find the type, the number and the rounding of an endpoint's scores, from all its answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pgn_client.probe.findings import Finding
from pgn_client.probe.queries import UNROUNDED, decimals
from pgn_client.types import Answer

ENOUGH = 20  # number of scores, or of answers, that makes a regularity among them certain
# Largest excess over 1 of the sum of all probabilities, apart from rounding to decimals: float16 is
# less exact than float32.
WHOLE = 0.01


def find_output(answers: Sequence[Answer]) -> Finding:
    """Find what an endpoint's numbers mean, from all its answers in any order.

    They are probabilities, logits, sigmoid scores (probabilities that need not sum to 1), a mere
    label or an embedding.
    """
    scores = np.concatenate([answer.scores for answer in answers])
    if all(answer.kind == "label" or answer.scores == (1.0,) for answer in answers):
        return Finding(
            "label",
            "certain" if len(answers) > 1 else "likely",
            f"{len(answers)} answers, each with one label and a score of 1",
        )
    # ``Answer`` lists the best score first; only an embedding keeps the model's order.
    if any(list(answer.scores) != sorted(answer.scores, reverse=True) for answer in answers):
        return Finding("embedding", "likely", "the scores are not in descending order")

    if scores.min() < 0 or scores.max() > 1:
        return Finding("logits", "certain", f"scores from {scores.min():.3g} to {scores.max():.3g}")
    # The endpoint says so itself, or an option does.
    if all(answer.kind == "logits" for answer in answers):
        return Finding("logits", "likely", "scores in [0, 1], which the endpoint calls logits")

    sums = [sum(answer.scores) for answer in answers]
    evidence = f"scores in [0, 1] with sums from {min(sums):.3g} to {max(sums):.3g}"
    enough = len(answers) >= ENOUGH
    # An answer alone is ``unknown`` if its numbers cannot be probabilities of a rounded sum.
    rounded = abs(np.array(sums) - 1).max() <= WHOLE + _rounding(answers)
    if max(sums) > 1 + WHOLE + _rounding(answers) or (
        any(answer.kind == "unknown" for answer in answers) and not rounded
    ):
        # Similarities of images and texts also lie in [0, 1], and may sum to anything.
        return Finding("sigmoid", "likely", evidence)
    return Finding("probabilities", "certain" if enough else "likely", evidence)


def find_top_k(answers: Sequence[Answer]) -> Finding:
    """Find the number of labels in each answer of an endpoint; ``all`` if it has no more labels."""
    counts = {len(answer.labels) for answer in answers}
    if len(counts) > 1:
        return Finding.unknown(f"between {min(counts)} and {max(counts)} labels per answer")

    count = counts.pop()
    together: set[str] = set()
    for answer in answers:
        together.update(answer.labels)
    different = len(together)

    # The first two answers are to the same image (``Prober.twice``), so two show no regularity.
    if different > count:
        return Finding(
            count,
            "certain" if len(answers) > 2 else "likely",
            f"labels per answer: {count}; different labels in all answers: {different}",
        )
    if count > 1 and len(answers) > 2:
        return Finding(
            "all",
            "certain" if len(answers) >= ENOUGH else "likely",
            f"the same {count} labels in every answer",
        )
    return Finding(
        count, "likely", f"labels per answer: {count}; different labels in all answers: {different}"
    )


def find_decimals(answers: Sequence[Answer]) -> Finding:
    """Find the decimal places to which an endpoint rounds its scores; ``none`` if unrounded."""
    scores: list[float] = []
    for answer in answers:
        # 0 and 1 have no decimal places, whatever the rounding.
        scores += [score for score in answer.scores if score not in (0.0, 1.0)]
    if len(scores) < ENOUGH:
        return Finding.unknown(f"only {len(scores)} scores other than 0 and 1")

    most = max(map(decimals, scores))
    evidence = f"largest number of decimal places of {len(scores)} scores: {most}"
    return Finding("none" if most >= UNROUNDED else most, "certain", evidence)


def _rounding(answers: Sequence[Answer]) -> float:
    """Return the largest change of the sum of an answer's scores that rounding can cause."""
    places = max(max(map(decimals, answer.scores), default=0) for answer in answers)
    most_scores = max(len(answer.scores) for answer in answers)
    return float(most_scores * 0.5 * 10.0**-places)
