"""Synthetic images of a probe: smooth or blocky base images, and changes to them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.imaging.geometry import crop_offset

# Range of the smooth base image, in gray levels; it leaves room for a grating on both sides.
LOW = 88
HIGH = 168
SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}  # the numbers that Pillow uses


def to_image(pixels: Floats) -> Image.Image:
    """Round and clip pixel values (H, W, 3) to uint8; return them as an image."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def smooth(width: int, height: int, seed: int) -> Floats:
    """Return an image of smooth colored blobs, (height, width, 3) in [88, 168], pixel space.

    With the same seed, the blobs are the same at every size.
    """
    blobs = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(LOW + np.asarray(image, np.float64) * (HIGH - LOW) / 255)


def mosaic(side: int, seed: int) -> Floats:
    """Return an image of flat 8 x 8 blocks in random colors, (side, side, 3).

    Its pixel values lie in [80, 176]. A flat block has no other DCT coefficient than its mean, so
    JPEG keeps the middle of a block flat.
    """
    blocks = np.random.default_rng(seed).integers(80, 177, (side // 8, side // 8, 3))
    return np.asarray(np.kron(blocks, np.ones((8, 8, 1))), np.float64)


def framed(pixels: Floats, width: int, amplitude: float) -> Floats:
    """Return an image with a brighter frame, ``width`` pixels wide, along its four edges.

    Args:
        pixels: Image, (H, W, 3), pixel space.
        width: Width of the frame in pixels, at least 1.
        amplitude: Added brightness in gray levels.
    """
    frame = np.full(pixels.shape[:2], amplitude)
    frame[width:-width, width:-width] = 0
    return np.asarray(pixels + frame[:, :, None])


def outlined(pixels: Floats, side: int) -> Floats:
    """Return a square image, painted outside its central ``side`` x ``side`` pixels.

    Bright pixels are painted black, dark ones white.
    """
    start = crop_offset(len(pixels), side)
    inside = np.zeros((*pixels.shape[:2], 1), bool)
    inside[start : start + side, start : start + side] = True
    farther = np.where(pixels.mean(axis=2, keepdims=True) > 127.5, 0.0, 255.0)
    return np.where(inside, pixels, farther)


def recode(pixels: Floats, quality: int, subsampling: str) -> Floats:
    """Return pixel values (H, W, 3) after encoding as JPEG and decoding."""
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "JPEG", quality=quality, subsampling=SUBSAMPLINGS[subsampling])
    # Image.open rewinds the buffer.
    return np.asarray(Image.open(buffer), np.float64)


def rms(values: Floats) -> float:
    """Return the root of the mean square of all values."""
    return float(np.sqrt(np.mean(values**2)))
