"""Write the report of an evaluation to a folder, as JSON, HTML and PNG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from pgn_client.evaluation.report.page import page
from pgn_client.evaluation.report.tiles import captions, sheet
from pgn_client.evaluation.results import Report
from pgn_client.imaging.codecs import PNG
from pgn_client.imaging.files import write_whole


def write_json(folder: Path, report: Report) -> None:
    """Write a report as ``report.json``: all its numbers, for which no image is opened again.

    Args:
        folder: Folder to write; it must exist.
        report: The report to write.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
    write_whole(folder / "report.json", _encoded(text + "\n"))


def write(folder: Path, report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> None:
    """Write a report as ``report.json`` and ``report.html``, and example images as ``steps.png``.

    Args:
        folder: Folder to write; it must exist.
        report: The report to write.
        steps: Title of a step on an image's way to the model → images of ``report.examples`` at
            that step, as ``fidelity.columns`` returns them.

    Raises:
        ConfigurationError: A file cannot be written.
    """
    write_json(folder, report)
    write_whole(folder / "report.html", _encoded(page(report, steps)))
    columns = [(images, step) for step, images in steps.items()]
    write_whole(folder / "steps.png", PNG.encode(sheet(columns, captions(report))))


def _encoded(text: str) -> bytes:
    """Return a text as UTF-8, with escapes for bytes of file names that are no UTF-8."""
    return text.encode(errors="backslashreplace")
