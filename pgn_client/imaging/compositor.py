"""Prompt patches and an image become the image that is sent; NumPy and Pillow only.

uint8 in, uint8 out, lossless: what is composed here is bit for bit what a faithful server decodes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from pgn_client.arrays import Pixels
from pgn_client.errors import ShapeError
from pgn_client.imaging.geometry import Canvas, crop_offset
from pgn_client.types import ServerProfile

GREY = 128  # of the cells when there is no prompt: the neutral canvas


def fit_to_canvas(image: Image.Image, canvas: Canvas) -> Pixels:
    """Squash an RGB image into the canvas's box.

    Args:
        image: RGB, any size.
        canvas: where it goes.

    Returns:
        (h, w, 3) uint8, pixel space; bicubic with antialiasing, as Pillow does it.
    """
    _, _, height, width = canvas.box
    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def compose(
    image: Pixels, patches: Pixels | None, canvas: Canvas, *, margin: bool = True
) -> Image.Image:
    """Put prompt patches around a fitted image and add the margin that the server's crop will
    remove.

    Args:
        image: (h, w, 3) uint8, from :func:`fit_to_canvas`.
        patches: (K, P, P, 3) uint8, pixel space; ``None`` leaves the cells grey (the neutral
            canvas). From a method that paints the image itself, (H, W, 3) uint8: the whole
            canvas, with the image in it.
        canvas: where everything goes.
        margin: ``False`` sends the bare canvas, to show what a server's crop then does to a prompt.

    Returns:
        RGB image, ``canvas.sent`` pixels square; the margin repeats the canvas's edge.

    Raises:
        ShapeError: image or patches do not fit the canvas.
    """
    top, left, height, width = canvas.box
    if image.shape != (height, width, 3):
        raise ShapeError(
            f"image: got shape {image.shape}, expected {(height, width, 3)}; "
            "use fit_to_canvas first"
        )
    pixels = np.full((canvas.size, canvas.size, 3), GREY, dtype=np.uint8)
    pixels[top : top + height, left : left + width] = image
    if patches is not None and canvas.cells:
        _paste(pixels, patches, canvas)
    elif patches is not None:
        if patches.shape != pixels.shape:
            raise ShapeError(f"painted canvas: got shape {patches.shape}, expected {pixels.shape}")
        pixels = patches
    after = canvas.sent - canvas.size - canvas.offset
    if margin and canvas.sent > canvas.size:
        pixels = np.pad(
            pixels, ((canvas.offset, after), (canvas.offset, after), (0, 0)), mode="edge"
        )
    return Image.fromarray(pixels)


def _paste(pixels: Pixels, patches: Pixels, canvas: Canvas) -> None:
    expected = (canvas.prompts, canvas.patch, canvas.patch, 3)
    if patches.shape != expected:
        raise ShapeError(f"prompt patches: got shape {patches.shape}, expected {expected}")
    for (row, column), patch in zip(canvas.corners(), patches, strict=True):
        pixels[row : row + canvas.patch, column : column + canvas.patch] = patch


def seen_by_server(
    image: Image.Image, profile: ServerProfile, size: int, interpolation: str = "bicubic"
) -> Pixels:
    """Apply a server's resize and crop locally, as torchvision's on Pillow images do.

    What comes out is square, as a surrogate with a fixed input needs it: ``shortest_edge`` is
    cropped at the centre, and ``letterbox`` pads with middle grey. For what we send, which is
    square, neither happens.

    Args:
        image: RGB, any size.
        profile: what the server does.
        size: H = W of its model's input, in pixels (where the profile is ``direct``).
        interpolation: of the resize: ``bicubic``, ``bilinear``, … as Pillow and timm call them.

    Returns:
        (H, W, 3) uint8, what reaches the patch embedding.
    """
    image, resampling = image.convert("RGB"), Image.Resampling[interpolation.upper()]
    target = profile.resize or size
    if profile.kind == "letterbox":
        return np.asarray(
            ImageOps.pad(image, (target, target), resampling, color=(GREY, GREY, GREY))
        )
    if profile.kind == "direct":
        return np.asarray(image.resize((target, target), resampling))
    short = min(image.size)
    width, height = (side * target // short for side in image.size)
    side = profile.crop or target
    left, top = crop_offset(width, side), crop_offset(height, side)
    resized = image.resize((width, height), resampling)
    return np.asarray(resized.crop((left, top, left + side, top + side)))
