"""The same image twice: equal bytes, and images that look alike.

Images look alike if their 64-bit hashes differ in few bits and their small gray copies correlate.
The hash finds candidates among many images quickly; the correlation keeps the false ones out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pgn_client.arrays import Booleans, Floats32, Integers, Pixels
from pgn_client.errors import PGNError
from pgn_client.imaging.codecs import MAX_PIXELS, describe, open_image
from pgn_client.imaging.opening import sha256_of

SIDE = 32
"""Side of the small gray copy, in pixels."""
CELLS = 8
"""Side of the grid that the hash compares; it has CELLS x CELLS = 64 bits."""
MOST_BITS = 10
"""Largest number of bits in which the hashes of similar images differ."""
LEAST_CORRELATION = 0.99
"""Least correlation of the small gray copies of similar images."""
_BLOCK = 4_000_000
"""Number of pairs that are compared at a time, which limits memory."""


@dataclass(frozen=True)
class Look:
    """What one image file holds, in little memory.

    Attributes:
        sha256: SHA-256 of the file's bytes, in hex; ``None`` if it cannot be read.
        gray: Small gray copy, (32, 32) uint8; ``None`` if the file cannot be decoded.
        error: Why the file cannot be decoded, without its name; ``None`` if it can.
    """

    sha256: str | None
    gray: Pixels | None
    error: str | None

    @classmethod
    def at(cls, path: Path, max_pixels: int = MAX_PIXELS) -> Look:
        """Read and decode an image file.

        Args:
            path: Path of the file.
            max_pixels: Limit for the width times the height of an image.
        """
        digest = sha256_of(path)
        try:
            image = open_image(path, max_pixels=max_pixels)
        except PGNError as error:
            return cls(digest, None, str(error).removeprefix(f"{describe(path)}: "))
        small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return cls(digest, np.asarray(small.convert("L")), None)


def same_bytes(looks: Mapping[Path, Look]) -> list[tuple[Path, ...]]:
    """Return the groups of at least two files with the same bytes, in the order of ``looks``."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, look in looks.items():
        if look.sha256 is not None:
            groups[look.sha256].append(path)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def look_alikes(
    looks: Mapping[Path, Look], parts: Sequence[Sequence[Path]]
) -> Iterator[tuple[Path, Path]]:
    """Yield pairs of images in different parts that look alike but differ in their bytes.

    Args:
        looks: What the files hold; files without a gray copy are left out.
        parts: Paths of each part, such as the training and the test images.
    """
    named = [[path for path in part if _is_readable(looks.get(path))] for part in parts]
    prepared = [_Prepared.of([looks[path] for path in part]) for part in named]
    for second in range(len(named)):
        for first in range(second):
            for i, j in prepared[first].pairs(prepared[second]):
                a = named[first][i]
                b = named[second][j]
                if looks[a].sha256 != looks[b].sha256:
                    yield a, b


def _is_readable(look: Look | None) -> bool:
    return look is not None and look.gray is not None


@dataclass(frozen=True)
class _Prepared:
    """Images of one part, ready to be compared.

    Attributes:
        signs: Bits of the hashes as -1 and 1, (n, 64) float32.
        patterns: Small gray copies of mean 0 and length 1, (n, 1024) float32; zeros for an image of
            one color, which correlates with nothing.
    """

    signs: Floats32
    patterns: Floats32

    @classmethod
    def of(cls, looks: Sequence[Look]) -> _Prepared:
        gray = np.zeros((len(looks), SIDE, SIDE), dtype=np.float32)
        for row, look in zip(gray, looks, strict=True):
            row[:] = look.gray
        step = SIDE // CELLS
        cells = gray.reshape(-1, CELLS, step, CELLS, step).mean(axis=(2, 4))
        # Each cell against its neighbor to the right, and the last against the first.
        brighter: Booleans = cells > np.roll(cells, -1, axis=2)
        signs = np.where(brighter.reshape(len(looks), CELLS**2), 1, -1).astype(np.float32)

        patterns = gray.reshape(len(looks), SIDE**2)
        patterns = patterns - patterns.mean(axis=1, keepdims=True)
        lengths = np.linalg.norm(patterns, axis=1, keepdims=True)
        # Below one gray level on average, the pattern is rounding noise.
        patterns = np.where(lengths >= SIDE, patterns / np.maximum(lengths, 1), 0)
        return cls(signs, patterns.astype(np.float32))

    def pairs(self, other: _Prepared) -> Iterator[tuple[int, int]]:
        """Yield the indices of images here and in ``other`` that look alike."""
        # The dot product of two hashes of 64 signs is 64 - 2 * (number of different bits).
        least = CELLS**2 - 2 * MOST_BITS
        rows = max(1, _BLOCK // max(1, len(other.signs)))
        for start in range(0, len(self.signs), rows):
            close = self.signs[start : start + rows] @ other.signs.T >= least
            ours, theirs = np.nonzero(close)
            for i, j in _correlated(self.patterns, ours + start, other.patterns, theirs):
                yield int(i), int(j)


def _correlated(
    a: Floats32, rows_a: Integers, b: Floats32, rows_b: Integers
) -> Iterator[tuple[int, int]]:
    """Yield those pairs of rows whose patterns correlate."""
    step = _BLOCK // SIDE**2
    for start in range(0, len(rows_a), step):
        ours = rows_a[start : start + step]
        theirs = rows_b[start : start + step]
        correlation = np.einsum("np,np->n", a[ours], b[theirs])
        for k in np.flatnonzero(correlation >= LEAST_CORRELATION):
            yield ours[k], theirs[k]
