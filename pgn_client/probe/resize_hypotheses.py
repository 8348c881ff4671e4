"""Hypotheses about a square image: a server resizes it to R x R pixels and crops the central C x C.

Each hypothesis predicts how much of a wave or of a bright frame, laid over an image of ``SIDE``
pixels, reaches the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pgn_client.arrays import Floats, Integers
from pgn_client.probe.gratings import REST, Wave
from pgn_client.probe.posterior import EAR, HEARD, Which

SIDE = 1024  # pixels
SMALLEST = 32  # smallest and largest side of a model's input that is considered, in pixels
LARGEST = 640
FRAME = 80.0  # gray levels by which a frame brightens an image
# Input sizes of common models, with their prior weights. 64 is that of the bundled model.
USUAL = {224: 30.0, 64: 10.0, 32: 5.0, 256: 5.0, 384: 8.0, 336: 4.0, 448: 4.0, 518: 3.0}
# Input sizes of other models; each has the prior weight 0.5.
OTHERS = {
    48,
    96,
    112,
    128,
    144,
    160,
    176,
    192,
    196,
    208,
    232,
    240,
    248,
    260,
    280,
    288,
    299,
    300,
    320,
    352,
    378,
    392,
    400,
    416,
    480,
    490,
    512,
    560,
    576,
    600,
}
# Only these crops are considered: the sizes above, and whole patches of 8, 14 or 16 px, because the
# input of a ViT consists of whole patches.
CROPS = {*USUAL, *OTHERS, *range(0, LARGEST + 1, 8), *range(0, LARGEST + 1, 14)}
# Usual quotients of crop and resize (timm's ``crop_pct``), with their prior weights.
PERCENTAGES = {
    0.875: 5.0,
    0.9: 2.0,
    0.95: 1.5,
    0.96: 1.0,
    0.965: 0.5,
    0.93: 0.5,
    0.85: 0.5,
    0.8: 0.5,
}

Question = Wave | int  # a wave, or the width of a frame in pixels


@dataclass(frozen=True)
class Hypotheses:
    """H hypotheses, each about a server's resize and crop and its model's sensitivity to waves.

    Every attribute has the shape (H,).

    Attributes:
        resize: Side R in pixels to which the server resizes.
        crop: Side C in pixels of the central crop.
        kernel: Index of the resize kernel in ``KERNELS``.
        heard: Sensitivity of the model to waves, relative to the control.
        weights: Prior weights, which sum to 1.
    """

    resize: Integers
    crop: Integers
    kernel: Integers
    heard: Floats
    weights: Floats

    def amplitudes(self, question: Question, which: Which) -> Floats:
        """Return the gray levels of a wave or frame that reach the model, for H' hypotheses, (H',).

        Args:
            question: Wave, or the width of a frame in pixels.
            which: Indices of H' hypotheses.
        """
        resize = self.resize[which]
        crop = self.crop[which]
        kernel = self.kernel[which]
        if not isinstance(question, Wave):
            return _frame(question, resize, crop, kernel)
        return np.asarray(np.hypot(REST, self.heard[which] * _wave(question, resize, crop, kernel)))


def _wave(wave: Wave, resize: Integers, crop: Integers, kernel: Integers) -> Floats:
    """Return the gray levels of a wave that remain after each hypothesis's resize and crop."""
    periods_per_pixel = wave.target / 2 / resize
    passed = _by_kernel(Kernel.passes, kernel, periods_per_pixel)
    return np.asarray(wave.seen(resize, crop) * passed)


def _frame(width: int, resize: Integers, crop: Integers, kernel: Integers) -> Floats:
    """Return the gray levels of a frame that remain after each hypothesis's resize and crop.

    Args:
        width: Width in pixels of the frame, a bright border along the four edges of the image.
        resize: Side in pixels to which the server resizes, by hypothesis.
        crop: Side in pixels of the central crop, by hypothesis.
        kernel: Index in ``KERNELS``, by hypothesis.
    """
    # The crop removes a margin of pixels; an odd margin is not the same on both sides.
    first = np.round((resize - crop) / 2)
    margins = (first, resize - crop - first)

    # Vertical and horizontal edges are alike, so each margin occurs twice. The 0.5 is the distance
    # from the edge of a row to its center.
    rows = sum(
        2 * _by_kernel(Kernel.covers, kernel, width * resize / SIDE - margin - 0.5)
        for margin in margins
    )
    # The corners of the frame count twice, so a wide frame would exceed the whole image.
    return np.asarray(FRAME * np.sqrt(np.minimum(1.0, rows / crop)))


def _by_kernel(
    function: Callable[[Kernel, Floats], Floats], kernel: Integers, values: Floats
) -> Floats:
    """Return the results of a function, for each hypothesis with its own resize kernel.

    Args:
        function: Function of a resize kernel and of values.
        kernel: Index in ``KERNELS``, by hypothesis.
        values: Values, by hypothesis.
    """
    return np.choose(kernel, [function(each, values) for each in KERNELS])


class Kernel:
    """A symmetric filter for resizing images, in pixels of the resized, smaller image.

    Args:
        values: Kernel at equal distances in [-4, 4] pixels, (n,); any scale.
    """

    def __init__(self, values: Floats) -> None:
        self._x = np.linspace(-4, 4, len(values))
        self._values = values / values.sum()
        self._frequencies = np.linspace(0, 4, 401)
        self._passes = np.abs(
            np.cos(2 * np.pi * np.outer(self._frequencies, self._x)) @ self._values
        )
        edge = np.cumsum(self._values)
        # A kernel spans 8 pixels, so an edge at row 4 or before brightens no row from 8 on.
        self._covers = sum(np.interp(self._x - row, self._x, edge) ** 2 for row in range(8))

    def passes(self, frequency: Floats) -> Floats:
        """Return the share of a wave's amplitude that a resize with this kernel lets pass.

        Args:
            frequency: Periods of the wave per pixel of the resized image.
        """
        return np.asarray(np.interp(frequency, self._frequencies, self._passes))

    def covers(self, reach: Floats) -> Floats:
        """Return the energy that remains of a bright border after a resize with this kernel.

        The energy is the sum of the squared brightness of the pixel rows 0, 1, ….

        Args:
            reach: Position where the border ends, in rows of the resized image.
        """
        # Behind the kernel, the frame has its full brightness of 1 in every further row.
        beyond = np.maximum(reach - self._x[-1], 0)
        return np.asarray(np.interp(reach, self._x, self._covers) + beyond)


def _bilinear(x: Floats) -> Floats:
    return np.asarray(np.maximum(0.0, 1 - np.abs(x)))


def _bicubic(x: Floats) -> Floats:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS = tuple(
    Kernel(kernel(np.linspace(-4, 4, 4001))) for kernel in (_bicubic, _bilinear, _lanczos)
)
# Prior weights of the kernels: image processors usually configure bicubic or bilinear.
SHARES = (0.55, 0.4, 0.05)


@functools.cache
def hypotheses() -> Hypotheses:
    """Return all hypotheses about a server's resize and crop, with their prior weights.

    Each likely crop from 32 to 640 px is combined with every resize from 1 to 1.5 times the crop,
    up to 640 px, with every kernel, and with every sensitivity of the model. Usual pairs of a
    resize and a crop weigh more.
    """
    pairs = []
    for crop in sorted(CROPS):
        if not SMALLEST <= crop <= LARGEST:
            continue
        crop_weight = USUAL.get(crop, 0.5 if crop in OTHERS else 0.02)
        for resize in range(crop, min(LARGEST, crop * 3 // 2) + 1):
            pairs.append((resize, crop, crop_weight * _resize_weight(resize, crop)))
    resizes, crops, pair_weights = (np.array(column) for column in zip(*pairs, strict=True))

    # All combinations of a pair, a kernel and a sensitivity of the model.
    pair, kernel, sensitivity = (
        axis.ravel() for axis in np.indices((len(pairs), len(KERNELS), len(HEARD)))
    )
    weights = pair_weights[pair] * np.array(SHARES)[kernel] * EAR[sensitivity]
    return Hypotheses(
        resizes[pair], crops[pair], kernel, HEARD[sensitivity], weights / weights.sum()
    )


def _resize_weight(resize: int, crop: int) -> float:
    """Return the prior weight of a resize to ``resize`` px before a central crop to ``crop`` px."""
    if resize == crop:
        return 6.0
    # timm, too, divides the crop by the percentage and rounds down.
    by_percentage = max(
        (w for share, w in PERCENTAGES.items() if resize == int(crop / share)), default=0.2
    )
    # The usual resize to 256 px before a crop to 224 px, at other sizes, too.
    if resize == crop + 32:
        return max(by_percentage, 2.0)
    return max(by_percentage, 0.5 if resize % 8 == 0 else 0.0)
