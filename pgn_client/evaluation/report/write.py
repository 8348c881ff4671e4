"""What an evaluation leaves in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pgn_client.evaluation.report.page import page
from pgn_client.evaluation.report.pictures import captions, columns, sheet
from pgn_client.evaluation.study import Report
from pgn_client.prompting.adapter import PromptAdapter


def write(folder: Path, report: Report, pgn: PromptAdapter, paths: Sequence[Path]) -> None:
    """Write ``report.json``, ``report.html`` and ``steps.png``: what the server sees of a few pictures, step by step.

    Args:
        folder: there already.
        report: the comparison.
        pgn: the prompt that it is about.
        paths: all test pictures, in the order of the task.
    """
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    shown = columns(pgn, paths)
    (folder / "report.html").write_text(page(report, shown), encoding="utf-8")
    sheet([(pictures, step) for step, pictures in shown.items()], captions(report)).save(folder / "steps.png")
