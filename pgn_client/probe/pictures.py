"""The pictures that a probe sends: a smooth colourful base, and what is laid over it."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgn_client.geometry import crop_offset

Floats = NDArray[np.float64]

LOW, HIGH = 88, 168  # of the smooth base: room for a grating on both sides
SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}  # Pillow's numbers


def picture(pixels: Floats) -> Image.Image:
    """Return (H, W, 3) values, rounded and clipped to uint8, as a picture."""
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def smooth(width: int, height: int, seed: int) -> Floats:
    """Coloured blobs, (height, width, 3) in [88, 168], pixel space; the same at every size."""
    blobs = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(LOW + np.asarray(image, np.float64) * (HIGH - LOW) / 255)


def mosaic(side: int, seed: int) -> Floats:
    """Flat 8 x 8 blocks of random colours, (side, side, 3): in the middle of each block JPEG has nothing to lose."""
    blocks = np.random.default_rng(seed).integers(80, 177, (side // 8, side // 8, 3))
    return np.asarray(np.kron(blocks, np.ones((8, 8, 1))), np.float64)


def positions(side: int) -> Floats:
    """The centres of ``side`` pixels as (side,) fractions of the edge."""
    return np.asarray((np.arange(side) + 0.5) / side)


def grating(side: int, cycles: float, amplitude: float) -> Floats:
    """(side,) a plain wave along one edge."""
    return np.asarray(amplitude * np.cos(2 * np.pi * cycles * positions(side)))


def needle(side: int, target: int, amplitude: float, *, quadrature: bool = False) -> Floats:
    """(side,) a wave that vanishes when the edge is resized to exactly ``target`` pixels.

    cos(pi R t), with R = ``target``, is antisymmetric about the centre t = (x + 1/2)/R of every pixel x after the
    resize, so every symmetric kernel sums it to zero. At R + d the samples beat: |sin(pi d t)|, full contrast in the
    middle for d = 1. The quadrature sin(pi R t) is what R shows at full contrast. Faded out at the edges, where the
    kernels are cut.
    """
    t = positions(side)
    wave = np.sin(np.pi * target * t) if quadrature else np.cos(np.pi * target * t)
    return np.asarray(amplitude * np.sin(np.pi * t) ** 2 * wave)


def framed(pixels: Floats, width: int, amplitude: float) -> Floats:
    """Brighten a frame of so many pixels."""
    frame = np.full(pixels.shape[:2], amplitude)
    frame[width:-width, width:-width] = 0
    return np.asarray(pixels + frame[:, :, None])


def outlined(pixels: Floats, side: int) -> Floats:
    """Turn all but the central ``side`` x ``side`` pixels of a square black or white, whichever is farther away."""
    start = crop_offset(len(pixels), side)
    kept = np.zeros((*pixels.shape[:2], 1), bool)
    kept[start : start + side, start : start + side] = True
    return np.where(kept, pixels, np.where(pixels.mean(axis=2, keepdims=True) > 127.5, 0.0, 255.0))


def recode(pixels: Floats, quality: int, subsampling: str) -> Floats:
    """Return (H, W, 3) as they come back from JPEG."""
    buffer = io.BytesIO()
    picture(pixels).save(buffer, "JPEG", quality=quality, subsampling=SUBSAMPLINGS[subsampling])
    return np.asarray(Image.open(buffer), np.float64)


def rms(values: Floats) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))
