"""What an evaluation leaves in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from pgn_client.evaluation.report.page import page
from pgn_client.evaluation.report.tiles import captions, sheet
from pgn_client.evaluation.results import Report


def write(folder: Path, report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write ``report.json``, ``report.html`` and ``steps.png``: what the server sees of a few
    images, step by step.

    Args:
        folder: there already.
        report: the comparison.
        steps: step on the way to the server → the images of ``report.examples`` there (see
            ``fidelity.columns``).
    """
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(report, steps), encoding="utf-8")
    sheet([(images, step) for step, images in steps.items()], captions(report)).save(
        folder / "steps.png"
    )
