"""A report as people read it: a table for the terminal, and pictures before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from pgn_client.adapter import PromptAdapter
from pgn_client.codecs import open_image
from pgn_client.evaluation import Report
from pgn_client.retention import steps

TILE, GAP, TEXT, SHOWN = 160, 12, 18, 4


def table(report: Report) -> str:
    """Return the comparison as text: rows, paired differences, controls, retention, verdict."""
    sizes = report.split
    lines = [
        f"{'on ' + str(sizes['test']) + ' test pictures':<24}{'accuracy':>9}   95 % interval     queries",
        *(_row(row) for row in report.rows),
        "",
        "paired, in points (same test pictures)",
        *(
            f"  {c.a} − {c.b}".ljust(38) + f"{100 * c.difference:+6.1f}  "
            f"[{100 * c.ci95[0]:+.1f}, {100 * c.ci95[1]:+.1f}]"
            for c in report.paired
        ),
        "",
        "controls: " + ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in report.controls.items()),
        *_retention(report.retention),
        *_curve(report.curve),
        *(f"left out: {reason}" for reason in report.omitted),
        "",
        f"verdict: {report.verdict}",
    ]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    lo, hi = row["ci95"]
    return f"  {row['name']:<22}{row['accuracy']:>9.3f}   [{lo:.3f}, {hi:.3f}]   {row['queries']:>9}"


def _retention(retention: dict[str, Any] | None) -> list[str]:
    if retention is None:
        return []
    stages = [name for name in retention if name != "agreement"]
    agreement = retention["agreement"]
    return ["retention: " + ", ".join(f"{s} {retention[s]:.3f} (same label {agreement[s]:.3f})" for s in stages)]


def retention_table(agreement: dict[str, float], pictures: int) -> str:
    """Return the share of pictures with the label of the first step, a line for each step."""
    lines = [f"  {stage:<12}{share:>6.3f}" for stage, share in agreement.items()]
    return "\n".join([f"the same label as at the first step, on {pictures} pictures", *lines])


def _curve(curve: Sequence[dict[str, float]]) -> list[str]:
    """A line of accuracy against images sent."""
    points = ", ".join(f"{p['sent']:.0%} {p['accuracy']:.3f}" for p in curve[::2])
    return [f"accuracy if the least sure are sent: {points}"] if curve else []


def steps_sheet(pgn: PromptAdapter, paths: Sequence[Path]) -> Image.Image:
    """Draw what the server sees of a few of these pictures, step by step: see ``retention.steps``."""
    pictures = [open_image(path) for path in paths[:: max(1, len(paths) // SHOWN)][:SHOWN]]
    return sheet([(column, step) for step, column in steps(pgn, pgn(pictures)).items()])


def sheet(columns: Sequence[tuple[Sequence[Image.Image], str]]) -> Image.Image:
    """Draw pictures in columns.

    Args:
        columns: pictures from top to bottom, equally many in each column, and a caption below.

    Returns:
        One RGB image.
    """
    tall = max((len(pictures) for pictures, _ in columns), default=0)
    bottom = GAP + tall * (TILE + GAP)
    whole = Image.new("RGB", (GAP + len(columns) * (TILE + GAP), bottom + TEXT), "white")
    draw = ImageDraw.Draw(whole)
    for i, (pictures, caption) in enumerate(columns):
        left = GAP + i * (TILE + GAP)
        for k, picture in enumerate(pictures):
            tile = ImageOps.contain(picture.convert("RGB"), (TILE, TILE), Image.Resampling.NEAREST)
            top = GAP + k * (TILE + GAP)
            whole.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        draw.text((left, bottom - GAP + 4), caption, fill="black")
    return whole
