"""The images that a probe sends: a smooth colourful base, and what is laid over it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.imaging.geometry import crop_offset

LOW, HIGH = 88, 168  # of the smooth base: room for a grating on both sides
SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}  # Pillow's numbers


def to_image(pixels: Floats) -> Image.Image:
    """Return (H, W, 3) values, rounded and clipped to uint8, as an image."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def smooth(width: int, height: int, seed: int) -> Floats:
    """Coloured blobs, (height, width, 3) in [88, 168], pixel space; the same at every size."""
    blobs = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(LOW + np.asarray(image, np.float64) * (HIGH - LOW) / 255)


def mosaic(side: int, seed: int) -> Floats:
    """Flat 8 x 8 blocks of random colours, (side, side, 3): in the middle of each block JPEG has
    nothing to lose.
    """
    blocks = np.random.default_rng(seed).integers(80, 177, (side // 8, side // 8, 3))
    return np.asarray(np.kron(blocks, np.ones((8, 8, 1))), np.float64)


def framed(pixels: Floats, width: int, amplitude: float) -> Floats:
    """Brighten a frame of so many pixels."""
    frame = np.full(pixels.shape[:2], amplitude)
    frame[width:-width, width:-width] = 0
    return np.asarray(pixels + frame[:, :, None])


def outlined(pixels: Floats, side: int) -> Floats:
    """Turn all but the central ``side`` x ``side`` pixels of a square black or white, whichever is
    farther away.
    """
    start = crop_offset(len(pixels), side)
    kept = np.zeros((*pixels.shape[:2], 1), bool)
    kept[start : start + side, start : start + side] = True
    return np.where(kept, pixels, np.where(pixels.mean(axis=2, keepdims=True) > 127.5, 0.0, 255.0))


def recode(pixels: Floats, quality: int, subsampling: str) -> Floats:
    """Return (H, W, 3) as they come back from JPEG."""
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "JPEG", quality=quality, subsampling=SUBSAMPLINGS[subsampling])
    return np.asarray(Image.open(buffer), np.float64)


def rms(values: Floats) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))
