"""Gratings in the middle of a picture: they tell whether R is odd, and how near a guess it is.

A needle (see :mod:`pgn_client.probe.pictures`) asks for one R alone. In the middle of the picture, u = t - 1/2, the
centres of the pixels after a resize lie at (k + 1/2)/R for even R and at k/R for odd R. So the wave cos(pi T u) is zero
there for even R near T, and sin(pi T u) for odd R near T; how near is near, the width of the burst decides. The two are
sent as a pair, and each is the other's control.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgn_client.probe.pictures import Floats, positions

WIDTHS = (3.0, 6.0, 12.0, 24.0)  # standard deviations, in pixels after the resize
GUESSES = 24  # the likeliest sides, around which bursts are considered
EVEN, ODD, NEITHER, OPEN = 0, 1, 2, 3  # which of a pair vanishes
GONE, SHOWN, ALIKE = 0.25, 0.5, 0.75  # of the full amplitude, as predicted; of the other one
GONE_SEEN, ALIKE_SEEN = 0.3, 0.6  # of the other's response, as measured: models saturate
DOUBT = 0.03  # weight that a contradicted side keeps

Outcomes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pair:
    """A question: two bursts around ``target`` pixels, ``width`` pixels wide."""

    target: int
    width: float


def burst(side: int, pair: Pair, amplitude: float, *, odd: bool) -> Floats:
    """(side,) a wave in the middle of one edge that vanishes when it is resized to an even, or odd, target."""
    u = positions(side) - 0.5
    return np.asarray(amplitude * _wave(u, pair, odd=odd))


def outcome(even: float, odd: float) -> int:
    """Return which of two responses is as good as nothing beside the other."""
    small, large = sorted((even, odd))
    if small < GONE_SEEN * large:
        return EVEN if even < odd else ODD
    return NEITHER if small > ALIKE_SEEN * large else OPEN


def best_pair(weights: Floats, asked: Collection[Pair]) -> tuple[Pair, float]:
    """Return the new pair that tells most about the (R + 1,) weights of the sides, and how many bits."""
    likely = np.argsort(-weights)[:GUESSES]
    pairs = [Pair(int(target), width) for target in likely for width in WIDTHS]
    gains = [0.0 if pair in asked else _bits(weights, predicted(pair, len(weights))) for pair in pairs]
    best = int(np.argmax(gains))
    return pairs[best], gains[best]


def updated(weights: Floats, pair: Pair, seen: int) -> Floats:
    """Return the weights after an outcome: sides that predicted another one keep little."""
    if seen == OPEN:
        return weights
    told = predicted(pair, len(weights))
    return np.where((told != seen) & (told != OPEN), DOUBT * weights, weights)


@functools.cache
def predicted(pair: Pair, sides: int) -> Outcomes:
    """(sides,) outcomes of a pair, for each side that the picture may be resized to."""
    told = np.full(sides, OPEN)
    for side in range(max(2, pair.target // 2), min(sides, 2 * pair.target)):
        u = positions(side) - 0.5
        full = np.sqrt(np.sum(np.exp(-((u * pair.target / pair.width) ** 2))))
        even, odd = (float(np.linalg.norm(_wave(u, pair, odd=is_odd)) / full) for is_odd in (False, True))
        passes = np.sinc(pair.target / side / 2) ** 2 / np.sinc(0.5) ** 2  # of the kernels, the softest
        small, large = sorted((even, odd))
        if passes * large > SHOWN and small < GONE * large:
            told[side] = EVEN if even < odd else ODD
        elif passes * large > SHOWN and small > ALIKE * large:
            told[side] = NEITHER
    return told


def _wave(u: Floats, pair: Pair, *, odd: bool) -> Floats:
    window = np.exp(-0.5 * (u * pair.target / pair.width) ** 2)
    return np.asarray(window * (np.sin if odd else np.cos)(np.pi * pair.target * u))


def _bits(weights: Floats, told: Outcomes) -> float:
    """Entropy of the outcome, without what is open."""
    shares = np.array([weights[told == kind].sum() for kind in (EVEN, ODD, NEITHER)]) / max(weights.sum(), 1e-300)
    known = shares[shares > 0]
    return float(-(known * np.log2(known / known.sum())).sum()) if known.size else 0.0
