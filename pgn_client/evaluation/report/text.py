"""A report as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgn_client.evaluation.candidate import SERVED
from pgn_client.evaluation.metrics import ClassScore
from pgn_client.evaluation.results import Comparison, Report, Row
from pgn_client.evaluation.verdict import money

WORST = 3


def table(report: Report) -> str:
    """Return the comparison as text: rows, paired differences, controls, retention, verdict."""
    priced = report.price_per_image is not None
    heads = (
        f"{'on ' + str(report.split['test']) + ' test images':<24}{'accuracy':>9}   95 % "
        "interval     log-loss    ECE"
    )
    lines = [
        f"{heads}    queries   {'cost' if priced else 'sent'} per 1,000",
        *(_row(row, priced) for row in report.rows),
        "",
        "paired, in points (same test images); right alone, a : b; exact McNemar test",
        *(_paired(c) for c in report.paired),
        "",
        "controls: "
        + ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in report.controls.items()),
        *_retention(report.retention),
        *_curve(report.curve),
        *_weakest(report.per_class[SERVED]),
        *(f"left out: {reason}" for reason in report.omitted),
        "",
        f"verdict: {report.verdict}",
    ]
    return "\n".join(lines)


def _row(row: Row, priced: bool) -> str:
    lo, hi = row.ci95
    measured = f"{row.accuracy:>9.3f}   [{lo:.3f}, {hi:.3f}]   {row.log_loss:>8.3f}  {row.ece:.3f}"
    cost = (
        money(row.cost_per_1000)
        if priced and row.cost_per_1000 is not None
        else f"{1000 * row.sent:,.0f}"
    )
    return f"  {row.title:<22}{measured}  {row.queries:>9}  {cost:>15}"


def _paired(c: Comparison) -> str:
    low, high = (100 * end for end in c.ci95)
    interval = f"{100 * c.difference:+6.1f}  [{low:+.1f}, {high:+.1f}]"
    return f"  {c.a} − {c.b}".ljust(38) + (
        f"{interval:<23}{f'{c.only_a} : {c.only_b}':>11}   {p_value(c.mcnemar_p)}"
    )


def p_value(p: float) -> str:
    """A p-value to three decimals."""
    return "p < 0.001" if p < 0.0005 else f"p = {p:.3f}"


def _retention(retention: dict[str, Any] | None) -> list[str]:
    if retention is None:
        return []
    stages = [name for name in retention if name != "agreement"]
    agreement = retention["agreement"]
    return [
        "retention: "
        + ", ".join(f"{s} {retention[s]:.3f} (same label {agreement[s]:.3f})" for s in stages)
    ]


def retention_table(agreement: dict[str, float], images: int) -> str:
    """Return the share of images with the label of the first step, a line for each step."""
    lines = [f"  {stage:<12}{share:>6.3f}" for stage, share in agreement.items()]
    return "\n".join([f"the same label as at the first step, on {images} images", *lines])


def _curve(curve: Sequence[dict[str, Any]]) -> list[str]:
    """A line of accuracy against images sent."""
    points = ", ".join(f"{p['sent']:.0%} {p['accuracy']:.3f}" for p in curve[::2])
    return [f"accuracy if the least sure are sent: {points}"] if curve else []


def weakest(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """Return the classes that have test images, the least F1 first."""
    return sorted((s for s in scores if s.support and s.f1 is not None), key=lambda s: s.f1 or 0.0)


def _weakest(scores: Sequence[ClassScore]) -> list[str]:
    """A line of the classes that fare worst, where any fares less than perfectly."""
    worst = [s for s in weakest(scores) if s.f1 is not None and s.f1 < 1][:WORST]
    told = ", ".join(
        f"{s.name} F1 {s.f1:.3f} (recall {s.recall:.3f} of {s.support})" for s in worst
    )
    return [f"weakest classes, as served: {told}"] if worst else []
