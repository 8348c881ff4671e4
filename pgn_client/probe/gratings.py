"""Waves that vanish, or peak, if a server resizes an edge to a certain number of pixels.

Take a wave with T half periods along an edge of an image. If the server resizes the edge to R = T
pixels, the wave has one half period per pixel. In one phase, every pixel lies on a zero of the
wave, and every symmetric resize kernel sums the wave to nothing. In the other phase (the
*quadrature*), every pixel lies on a crest. If R = T + d, the pixels drift from zeros to crests and
back. For d = 1, they do so once along the edge; each such cycle is a *beat*.

- A *needle* is a wave over the whole edge. It tests one value of R.
- A *burst* is a wave in a window around the place u. It covers few beats, so it tests R modulo a
  number: around u = 1/2, the phase separates odd R from even R; around u = 1/3, it gives the
  remainder of a division by three. The width of the window decides how close R must be to T.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from pgn_client.arrays import Floats

# Standard deviations of the windows of bursts, in pixels after a resize to T. One of 1.5 pixels was
# too narrow: it is not symmetric about each pixel, and waves did not always vanish.
WIDTHS = (3.0, 6.0, 12.0, 24.0, 48.0)
REST = 0.4  # gray levels that remain of a vanished wave, because images are rounded to uint8
# Middles of the windows. 2/5 tells the remainder of a division by five as well as 1/5 would, and is
# farther from the edge, which a crop may remove.
PLACES = (Fraction(1, 2), Fraction(1, 3), Fraction(2, 5), Fraction(1, 4))


@dataclass(frozen=True, slots=True)
class Wave:
    """The wave cos(pi T (t - u) - phase) under a window, with t in [0, 1] along an edge.

    Attributes:
        target: T, the number of half periods per edge. The wave vanishes, or peaks, if the edge is
            resized to T pixels.
        width: Standard deviation of a Gaussian window, in units of 1/T; ``None`` for the window
            sin(pi t)^2 over the whole edge.
        place: Middle u of the Gaussian window, as a fraction of the edge; 0 without one.
        phase: Phase in radians.
        amplitude: Amplitude in gray levels; with 70, a wave on ``smooth`` is not clipped.
    """

    target: int
    width: float | None = None
    place: Fraction = Fraction(0)
    phase: float = 0.0
    amplitude: float = 70.0

    def __call__(self, side: int) -> Floats:
        """Return the gray levels that the wave adds to a row of ``side`` pixels, (side,)."""
        t = positions(side)
        u = t - float(self.place)
        if self.width is None:
            window = np.sin(np.pi * t) ** 2
        else:
            window = np.exp(-0.5 * (u * self.target / self.width) ** 2)
        return np.asarray(self.amplitude * window * np.cos(np.pi * self.target * u - self.phase))

    def seen(self, resize: ArrayLike, crop: ArrayLike) -> Floats:
        """Return the gray levels of this wave that remain after a resize and a center crop.

        The value is the root of the mean square over the crop, without the loss in the resize
        kernel. By Poisson summation over the centers of the pixels, where only the first alias
        matters, the mean square is (1 - rho cos(2 pi R u + 2 phase)) / 2 times the energy of the
        window. Here, rho is the Fourier transform of the squared window at R - T, scaled to 1 at 0.

        Args:
            resize: R, the side of the resized image in pixels, any shape.
            crop: C, the side of the crop in pixels; broadcast with ``resize``.
        """
        resize = np.asarray(resize, float)
        crop = np.asarray(crop, float)
        away = resize - self.target
        if self.width is None:
            share = crop / resize
            # The mean of the squared window, sin(pi t)^4, over the central share of the edge.
            energy = 3 / 8 + (np.sin(np.pi * share) / 2 + np.sin(2 * np.pi * share) / 16) / (
                np.pi * share
            )
            # The Fourier transform of the squared window, sin^4, at whole frequencies.
            rho = np.interp(np.abs(away), (0, 1, 2, 3), (1, -2 / 3, 1 / 6, 0))
        else:
            # The integral of the squared Gaussian, all of which lies within the crop.
            energy = self.width * np.sqrt(np.pi) / self.target * resize / crop
            rho = np.exp(-((np.pi * self.width * away / self.target) ** 2))
        beat = rho * np.cos(2 * np.pi * (resize * float(self.place) % 1) + 2 * self.phase)
        # 1 - beat is 0 for a vanished wave, and rounding may make it negative.
        return np.asarray(self.amplitude * np.sqrt(energy * np.maximum(0.0, 1 - beat) / 2))


def quadrature(wave: Wave) -> Wave:
    """Return the wave moved by a quarter of a period; it peaks where the given wave vanishes."""
    return Wave(wave.target, wave.width, wave.place, wave.phase + np.pi / 2, wave.amplitude)


def needle(target: int, amplitude: float = 70.0) -> Wave:
    """Return the whole-edge wave that vanishes only if the edge is resized to ``target`` pixels."""
    return Wave(target, amplitude=amplitude)


def around(targets: Iterable[int]) -> Iterator[Wave]:
    """Yield the waves that vanish if an edge is resized to one of the target numbers of pixels.

    For each target, these are the needle, over the whole edge, and bursts, each in a short window.
    """
    for target in targets:
        yield needle(target)
        for place in PLACES:
            # This phase puts zeros of the wave on the centers of all T pixels.
            phase = float(-np.pi * (target * place % 1))
            for width in WIDTHS:
                # The window must end before the edge does.
                if 3 * width < target * place:
                    yield Wave(target, width, place, phase)


def middle(target: int) -> list[Wave]:
    """Return short waves mid-edge that vanish if the edge is resized to ``target`` pixels."""
    return [wave for wave in around([target]) if wave.place == PLACES[0]]


def positions(side: int) -> Floats:
    """Return the centers of ``side`` pixels as fractions of the edge, (side,)."""
    return np.asarray((np.arange(side) + 0.5) / side)
