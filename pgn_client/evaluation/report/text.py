"""The report of an evaluation as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgn_client.errors import printable
from pgn_client.evaluation.candidate import SERVED
from pgn_client.evaluation.metrics import ClassScore
from pgn_client.evaluation.results import Comparison, Report, Row
from pgn_client.evaluation.verdict import money

WORST = 3
"""Largest number of classes that the report names as weakest, those of lowest F1."""

CONTROLS = {
    "own_prompt": "own prompt",
    "swapped_prompt": "swapped prompt",
    "grey_picture": "gray image",
    "without_margin": "without margin",
}
"""Key in ``report.json`` → title of a control, a variant of the prompt that should score lower."""


def table(report: Report) -> str:
    """Return the report of an evaluation as text: a table of accuracies, paired differences,
    controls, retention and verdict.
    """
    priced = report.price_per_image is not None
    title = f"on {report.split['test']} test images"
    columns = f"{'accuracy':>9}   95 % interval     log-loss    ECE    queries"
    last_column = f"{'cost' if priced else 'sent'} per 1,000"
    controls = [f"{control_title(key)} {share:.3f}" for key, share in report.controls.items()]

    lines = [
        f"{title:<24}{columns}   {last_column}",
        *(_row(row, priced) for row in report.rows),
        "",
        "paired differences a − b, in points; images right in a alone : in b alone; exact McNemar "
        "test",
        *(_paired(c) for c in report.paired),
        "",
        f"controls (accuracy): {', '.join(controls)}",
        *_retention(report.retention),
        *_curve(report.curve),
        *_weakest(report.per_class[SERVED]),
        *(f"left out: {reason}" for reason in report.omitted),
        *(f"data: {text}" for text in report.remarks(serious=False)),
        *(f"data, look at this: {text}" for text in report.remarks(serious=True)),
        "",
        f"verdict: {report.verdict}",
    ]
    # Names of classes and controls may hold line breaks, or sequences that act on the terminal.
    return "\n".join(printable(line) for line in lines)


def control_title(key: str) -> str:
    """Return the title of a control, a variant of the prompt that should score lower.

    Args:
        key: Key of the control in ``report.json``.
    """
    return CONTROLS.get(key, key.replace("_", " "))


def _row(row: Row, priced: bool) -> str:
    """Return one line of the table of accuracies; the last column is the cost per 1,000 images, or
    the number sent of them.
    """
    lo, hi = row.ci95
    measured = f"{row.accuracy:>9.3f}   [{lo:.3f}, {hi:.3f}]   {row.log_loss:>8.3f}  {row.ece:.3f}"
    if priced and row.cost_per_1000 is not None:
        last = money(row.cost_per_1000)
    else:
        last = f"{1000 * row.sent:,.0f}"
    return f"  {row.title:<22}{measured}  {row.queries:>9}  {last:>15}"


def _paired(c: Comparison) -> str:
    """Return a paired difference of two accuracies as one line of text."""
    low, high = c.ci95
    rows = f"  {c.a} − {c.b}"
    interval = f"{100 * c.difference:+6.1f}  [{100 * low:+.1f}, {100 * high:+.1f}]"
    right_alone = f"{c.only_a} : {c.only_b}"
    return f"{rows:<38}{interval:<23}{right_alone:>11}   {p_value(c.mcnemar_p)}"


def p_value(p: float) -> str:
    """Return a p-value as text, to three decimals."""
    # Below 0.0005 the three decimals would read 0.000.
    return "p < 0.001" if p < 0.0005 else f"p = {p:.3f}"


def _retention(retention: dict[str, Any] | None) -> list[str]:
    """Return one line with the accuracy at each step from tokens to the sent image; no line without
    ``retention``.
    """
    if retention is None:
        return []
    agreement = retention["agreement"]
    stages = [
        f"{stage} {accuracy:.3f} (same label {agreement[stage]:.3f})"
        for stage, accuracy in retention.items()
        if stage != "agreement"
    ]
    return [f"retention (accuracy): {', '.join(stages)}"]


def retention_table(agreement: dict[str, float], images: int) -> str:
    """Return a table of the share of images that keep the label of the first step, step by step
    from tokens to the sent image.

    Args:
        agreement: Step → share of images, in [0, 1], as ``fidelity.agreement`` returns them.
        images: Number of images.
    """
    lines = [f"  {stage:<12}{share:>6.3f}" for stage, share in agreement.items()]
    return "\n".join([f"share of {images} images with the label of the first step", *lines])


def _curve(curve: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line with the accuracy for growing shares of images sent; no line without
    ``curve``.
    """
    if not curve:
        return []
    # Every other point, so that they fit in a line.
    points = ", ".join(f"{p['sent']:.0%} {p['accuracy']:.3f}" for p in curve[::2])
    return [f"accuracy by share sent, least confident first: {points}"]


def weakest(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """Return the classes that have test images, lowest F1 first."""
    tested = [s for s in scores if s.support]
    # A class with test images always has an F1; `or` is for the type checker.
    return sorted(tested, key=lambda s: s.f1 or 0.0)


def _weakest(scores: Sequence[ClassScore]) -> list[str]:
    """Return one line with the classes of lowest F1; no line if F1 is 1 for all classes."""
    # None does not occur here either; the test is for the type checker.
    worst = [s for s in weakest(scores) if s.f1 is not None and s.f1 < 1][:WORST]
    listed = ", ".join(
        f"{s.name} F1 {s.f1:.3f} (recall {s.recall:.3f}, {s.support} images)" for s in worst
    )
    return [f"weakest classes of the served row: {listed}"] if worst else []
