"""Waves near the resolution of a resize: whether they vanish tells to how many pixels.

A wave of T half periods per edge meets the pixels after a resize to R = T once per half period: in
one phase they all lie on its zeros (every symmetric kernel sums it to nothing), in the other on its
crests. At R = T + d the samples beat, one beat per edge for d = 1. A *needle*, a wave over the
whole edge, so asks for one R alone. A *burst*, a wave in a window around the place u, sees few
beats and asks R modulo something: around u = 1/2 the phase tells odd R from even ones, around 1/3
the rest of a division by three; how near R must be to T, the width of the window decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from pgn_client.arrays import Floats

# standard deviations of the window, in pixels after a resize to T
WIDTHS = (3.0, 6.0, 12.0, 24.0, 48.0)
REST = 0.4  # grey levels that uint8 rounding leaves of what vanished
PLACES = tuple(Fraction(*place) for place in ((1, 2), (1, 3), (2, 5), (1, 4)))


@dataclass(frozen=True, slots=True)
class Wave:
    """cos(pi T (t - u) - phase) under a window, t in [0, 1] along an edge.

    Attributes:
        target: T, half periods per edge: it vanishes, or peaks, when the edge is resized to T
            pixels.
        width: standard deviation of a Gaussian window, in pixels of 1/T; ``None``: sin(pi t)^2,
            over the whole edge.
        place: u, the middle of the window; where there is none, 0.
        phase: radians.
        amplitude: grey levels.
    """

    target: int
    width: float | None = None
    place: Fraction = Fraction(0)
    phase: float = 0.0
    amplitude: float = 70.0

    def __call__(self, side: int) -> Floats:
        """(side,) pixel space, to be added to a row of pixels."""
        t = positions(side)
        u = t - float(self.place)
        window = (
            np.sin(np.pi * t) ** 2
            if self.width is None
            else np.exp(-0.5 * (u * self.target / self.width) ** 2)
        )
        return np.asarray(self.amplitude * window * np.cos(np.pi * self.target * u - self.phase))

    def seen(self, resize: ArrayLike, crop: ArrayLike) -> Floats:
        """Return what is left of it after a resize to R and a centre crop to C, before what the
        kernel takes.

        The root of the mean square over the crop, grey levels. By Poisson's summation over the
        pixels' centres, of which the first alias alone is near: (1 - rho cos(2 pi R u + 2 phase)) /
        2 of the window's energy.
        """
        resize, crop = np.asarray(resize, float), np.asarray(crop, float)
        away = resize - self.target
        if self.width is None:
            kept = crop / resize
            energy = 3 / 8 + (np.sin(np.pi * kept) / 2 + np.sin(2 * np.pi * kept) / 16) / (
                np.pi * kept
            )
            # the transform of sin^4
            rho = np.interp(np.abs(away), (0, 1, 2, 3), (1, -2 / 3, 1 / 6, 0))
        else:
            energy = self.width * np.sqrt(np.pi) / self.target * resize / crop
            rho = np.exp(-((np.pi * self.width * away / self.target) ** 2))
        beat = rho * np.cos(2 * np.pi * (resize * float(self.place) % 1) + 2 * self.phase)
        return np.asarray(self.amplitude * np.sqrt(energy * np.maximum(0.0, 1 - beat) / 2))


def quadrature(wave: Wave) -> Wave:
    """Return the same wave a quarter of a period on: it peaks where the other vanishes."""
    return Wave(wave.target, wave.width, wave.place, wave.phase + np.pi / 2, wave.amplitude)


def needle(target: int, amplitude: float = 70.0) -> Wave:
    """Return the wave that vanishes when an edge is resized to exactly so many pixels."""
    return Wave(target, amplitude=amplitude)


def around(targets: Iterable[int]) -> Iterator[Wave]:
    """Yield the waves that vanish when an edge is resized to one of some numbers of pixels."""
    for target in targets:
        yield needle(target)
        for place in PLACES:
            phase = float(-np.pi * (target * place % 1))
            for width in (width for width in WIDTHS if 3 * width < target * place):
                yield Wave(target, width, place, phase)


def middle(target: int) -> list[Wave]:
    """Return the bursts in the middle of an edge that vanish when it is resized to so many
    pixels.
    """
    return [wave for wave in around([target]) if wave.place == PLACES[0]]


def positions(side: int) -> Floats:
    """The centres of ``side`` pixels as (side,) fractions of the edge."""
    return np.asarray((np.arange(side) + 0.5) / side)
