"""Composition of prompt patches and the user's image into the image that is sent.

Input and output are uint8. A server that decodes the sent image without loss gets exactly the
pixels that are composed here. Needs NumPy and Pillow only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from pgn_client.arrays import Pixels
from pgn_client.errors import ShapeError
from pgn_client.imaging.geometry import Canvas, crop_offset
from pgn_client.types import ServerProfile

GREY = 128  # value of the prompt cells where there is no prompt (the neutral canvas)


def fit_to_canvas(image: Image.Image, canvas: Canvas) -> Pixels:
    """Return an image resized to its place beside the prompts, ignoring the aspect ratio.

    Args:
        image: RGB image of any size.
        canvas: Geometry of the image that is sent; its ``box`` is the place of ``image``.

    Returns:
        (h, w, 3) uint8, pixel space; resized by Pillow's antialiased bicubic filter.
    """
    _, _, height, width = canvas.box
    return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))


def compose(
    image: Pixels, patches: Pixels | None, canvas: Canvas, *, margin: bool = True
) -> Image.Image:
    """Return the image that is sent: the user's image, prompt patches, and a margin.

    The margin is the border that the server's center crop removes. The canvas is the square inside
    it, the image that the model sees.

    Args:
        image: Image from :func:`fit_to_canvas`, (h, w, 3) uint8.
        patches: K prompt patches of side P, (K, P, P, 3) uint8, pixel space. ``None`` leaves the
            prompts' places gray (the neutral canvas). A method that paints on the image itself
            gives the whole canvas with the image in it, (H, W, 3) uint8.
        canvas: Position of image and patches.
        margin: Whether to add the margin. Without it, the server's crop cuts into the prompt.

    Returns:
        RGB image, ``canvas.sent`` pixels square; the margin repeats the canvas's edge.

    Raises:
        ShapeError: The image or the patches do not fit the canvas.
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
    # Without cells, the method has painted on the image, so its canvas replaces the neutral one.
    elif patches is not None:
        if patches.shape != pixels.shape:
            raise ShapeError(f"painted canvas: got shape {patches.shape}, expected {pixels.shape}")
        pixels = patches

    if margin and canvas.sent > canvas.size:
        widths = (canvas.offset, canvas.sent - canvas.size - canvas.offset)
        pixels = np.pad(pixels, (widths, widths, (0, 0)), mode="edge")

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
    """Return an image as a server's model sees it: resized and cropped as torchvision does.

    The result is always square, because a surrogate's input has a fixed size: ``shortest_edge`` is
    cropped at the center, and ``letterbox`` pads with middle gray. Prompted images are square, so
    they are neither cropped nor padded.

    Args:
        image: RGB image of any size.
        profile: Server's resize and crop.
        size: Side of the model input in pixels, H = W; used where the profile is ``direct``.
        interpolation: Interpolation of the resize, ``bicubic``, ``bilinear``, …, as in Pillow and
            timm.

    Returns:
        Pixels that reach the patch embedding, (H, W, 3) uint8.
    """
    image = image.convert("RGB")
    resampling = Image.Resampling[interpolation.upper()]
    target = profile.resize or size

    if profile.kind == "letterbox":
        # Servers pad with the mean color, which a profile does not name.
        gray = (GREY, GREY, GREY)
        return np.asarray(ImageOps.pad(image, (target, target), resampling, color=gray))
    if profile.kind == "direct":
        return np.asarray(image.resize((target, target), resampling))

    # Rounded down, because torchvision truncates the longer side.
    short = min(image.size)
    width, height = (side * target // short for side in image.size)
    resized = image.resize((width, height), resampling)

    side = profile.crop or target
    left = crop_offset(width, side)
    top = crop_offset(height, side)
    return np.asarray(resized.crop((left, top, left + side, top + side)))
