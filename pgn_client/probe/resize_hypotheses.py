"""Hypotheses about a square image: to which R x R pixels it is resized, which central C x C of
them a crop keeps.

Each says how much of a wave or of a frame, laid over an image of ``SIDE`` pixels, reaches the
model.
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
SMALLEST, LARGEST = 32, 640  # sides that are looked for
FRAME = 80.0  # grey levels by which a frame brightens
USUAL = {224: 30.0, 64: 10.0, 32: 5.0, 256: 5.0, 384: 8.0, 336: 4.0, 448: 4.0, 518: 3.0}
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
}
OTHERS |= {400, 416, 480, 490, 512, 560, 576, 600}
# whole patches of 8, 14, 16 px
CROPS = {*USUAL, *OTHERS, *range(0, LARGEST + 1, 8), *range(0, LARGEST + 1, 14)}
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
    """H servers and models, (H,) each.

    Attributes:
        resize: R in pixels.
        crop: C in pixels.
        kernel: place in ``KERNELS``.
        heard: how well the model hears waves.
        weights: before all answers.
    """

    resize: Integers
    crop: Integers
    kernel: Integers
    heard: Floats
    weights: Floats

    def amplitudes(self, question: Question, which: Which) -> Floats:
        """(H',) grey levels that are left of a wave or a frame, under some of the hypotheses."""
        resize, crop, kernel = self.resize[which], self.crop[which], self.kernel[which]
        if isinstance(question, Wave):
            return np.asarray(
                np.hypot(REST, self.heard[which] * _wave(question, resize, crop, kernel))
            )
        return _frame(question, resize, crop, kernel)


def _wave(wave: Wave, resize: Integers, crop: Integers, kernel: Integers) -> Floats:
    return np.asarray(
        wave.seen(resize, crop) * _by_kernel(Kernel.passes, kernel, wave.target / 2 / resize)
    )


def _frame(width: int, resize: Integers, crop: Integers, kernel: Integers) -> Floats:
    """A few rows of pixels are left of it on each of four sides."""
    first = np.round((resize - crop) / 2)
    reach = [
        width * resize / SIDE - offset - 0.5 for offset in (first, resize - crop - first)
    ]  # sides of an odd margin
    rows = sum(2 * _by_kernel(Kernel.covers, kernel, rows) for rows in reach)
    return np.asarray(FRAME * np.sqrt(np.minimum(1.0, rows / crop)))


def _by_kernel(
    function: Callable[[Kernel, Floats], Floats], kernel: Integers, values: Floats
) -> Floats:
    return np.choose(kernel, [function(each, values) for each in KERNELS])


class Kernel:
    """A symmetric kernel of a resize, stretched to the pixels of the smaller image."""

    def __init__(self, values: Floats) -> None:
        self._x = np.linspace(-4, 4, len(values))
        self._values = values / values.sum()
        self._frequencies = np.linspace(0, 4, 401)
        self._passes = np.abs(
            np.cos(2 * np.pi * np.outer(self._frequencies, self._x)) @ self._values
        )
        edge = np.cumsum(self._values)
        self._covers = sum(np.interp(self._x - row, self._x, edge) ** 2 for row in range(8))

    def passes(self, frequency: Floats) -> Floats:
        """Return what is left of a wave of so many periods per pixel."""
        return np.asarray(np.interp(frequency, self._frequencies, self._passes))

    def covers(self, reach: Floats) -> Floats:
        """Return the sum of squares over the rows 0, 1, … of what an edge that reaches ``reach``
        rows brightens.
        """
        beyond = np.maximum(reach - self._x[-1], 0)
        return np.asarray(np.interp(reach, self._x, self._covers) + beyond)


def _bilinear(x: Floats) -> Floats:
    return np.asarray(np.maximum(0.0, 1 - np.abs(x)))


def _bicubic(x: Floats) -> Floats:
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS = tuple(
    Kernel(kernel(np.linspace(-4, 4, 4001))) for kernel in (_bicubic, _bilinear, _lanczos)
)
SHARES = (0.55, 0.4, 0.05)  # their weights


@functools.cache
def hypotheses() -> Hypotheses:
    """Every likely crop from 32 to 640 px, every side that it is two thirds of or more; the usual
    ones weigh more.
    """
    rows = []
    for crop in (crop for crop in range(SMALLEST, LARGEST + 1) if crop in CROPS):
        usual = USUAL.get(crop, 0.5 if crop in OTHERS else 0.02)
        for resize in range(crop, min(LARGEST, crop * 3 // 2) + 1):
            rows.append((resize, crop, usual * _resize_weight(resize, crop)))
    resizes, crops, weight = (np.array(column) for column in zip(*rows, strict=True))
    square, kernel, ear = (
        axis.ravel() for axis in np.indices((len(rows), len(KERNELS), len(HEARD)))
    )
    weights = weight[square] * np.array(SHARES)[kernel] * EAR[ear]
    return Hypotheses(resizes[square], crops[square], kernel, HEARD[ear], weights / weights.sum())


def _resize_weight(resize: int, crop: int) -> float:
    if resize == crop:
        return 6.0
    by_percentage = max(
        (w for share, w in PERCENTAGES.items() if resize == int(crop / share)), default=0.2
    )
    return max(by_percentage, 2.0 if resize == crop + 32 else 0.5 if resize % 8 == 0 else 0.0)
