"""Write the report of an evaluation to a folder, as JSON, HTML and PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from pgn_client.evaluation.report.page import page
from pgn_client.evaluation.report.tiles import captions, sheet
from pgn_client.evaluation.results import Report


def write(folder: Path, report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write a report as ``report.json`` and ``report.html``, and example images as ``steps.png``.

    Args:
        folder: Folder to write; it must exist.
        report: The report to write.
        steps: Title of a step on an image's way to the model → images of ``report.examples`` at
            that step, as ``fidelity.columns`` returns them.
    """
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(report, steps), encoding="utf-8")
    columns = [(images, step) for step, images in steps.items()]
    sheet(columns, captions(report)).save(folder / "steps.png")
