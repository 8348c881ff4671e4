"""Images of what is sent, in columns."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from pgn_client.evaluation.results import Report

TILE, GAP, TEXT = 160, 12, 18


def captions(report: Report) -> list[str]:
    """Say of each example what it is, and what is served for it."""
    return [f"is {found['label']}, served as {found['served']}" for found in report.examples]


def sheet(
    columns: Sequence[tuple[Sequence[Image.Image], str]], rows: Sequence[str] = ()
) -> Image.Image:
    """Draw images in columns.

    Args:
        columns: images from top to bottom, equally many in each column, and a caption below.
        rows: a caption below each row of images; none where it is empty.

    Returns:
        One RGB image.
    """
    tall = max((len(images) for images, _ in columns), default=0)
    row = TILE + GAP + (TEXT if rows else 0)
    bottom = GAP + tall * row
    whole = Image.new("RGB", (GAP + len(columns) * (TILE + GAP), bottom + TEXT), "white")
    draw = ImageDraw.Draw(whole)
    for i, (images, caption) in enumerate(columns):
        left = GAP + i * (TILE + GAP)
        for k, image in enumerate(images):
            tile = ImageOps.contain(image.convert("RGB"), (TILE, TILE), Image.Resampling.NEAREST)
            top = GAP + k * row
            whole.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        draw.text((left, bottom - GAP + 4), caption, fill="black")
    for k, caption in enumerate(rows):
        draw.text((GAP, GAP + k * row + TILE + 2), " ".join(caption.split()), fill="black")
    return whole
