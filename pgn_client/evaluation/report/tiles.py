"""Draw example images of a report in columns, with captions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from pgn_client.evaluation.results import Report

TILE = 160
"""Largest width and height of an image, in pixels."""
GAP = 12
"""Space between images, in pixels."""
TEXT = 18
"""Height of a caption, in pixels."""


def captions(report: Report) -> list[str]:
    """Return a caption for each example image of a report: its true label, and the label that the
    served classifier predicts.
    """
    return [f"true {example['label']}, served {example['served']}" for example in report.examples]


def sheet(
    columns: Sequence[tuple[Sequence[Image.Image], str]], rows: Sequence[str] = ()
) -> Image.Image:
    """Draw images in columns, with captions, as one image.

    Args:
        columns: Columns from left to right: images from top to bottom, and a caption below them.
            All columns have the same number of images.
        rows: A caption below each row of images; empty for none.

    Returns:
        One RGB image.
    """
    row_count = max((len(images) for images, _ in columns), default=0)
    row_height = TILE + GAP + (TEXT if rows else 0)
    bottom = GAP + row_count * row_height
    drawing = Image.new("RGB", (GAP + len(columns) * (TILE + GAP), bottom + TEXT), "white")
    draw = ImageDraw.Draw(drawing)

    for i, (images, caption) in enumerate(columns):
        left = GAP + i * (TILE + GAP)
        for k, image in enumerate(images):
            # Without interpolation, so that the single pixels of a small image stay visible.
            tile = ImageOps.contain(image.convert("RGB"), (TILE, TILE), Image.Resampling.NEAREST)
            top = GAP + k * row_height
            corner = (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2)
            drawing.paste(tile, corner)
        draw.text((left, bottom - GAP + 4), caption, fill="black")

    for k, caption in enumerate(rows):
        # A class name may contain line breaks, for which there is no space.
        one_line = " ".join(caption.split())
        draw.text((GAP, GAP + k * row_height + TILE + 2), one_line, fill="black")
    return drawing
