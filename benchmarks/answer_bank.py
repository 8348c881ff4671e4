"""An answer bank: what endpoints returned, kept array by array, so that every question about it is
answered offline.

A bank is a folder ``SET/SEED/NAME.npz``. ``targets`` holds class indices of the parts, file names
and class names. Every other name is one source of rows, part by part (``fit``, ``copy0``, ...,
``choose``, ``test``):

- ``HOSTED/raw``, ``HOSTED/frame``, ``HOSTED/SURROGATE-ARM``: log-probabilities (n, S) of a hosted
  model;
- ``SURROGATE/local`` and ``heads``: log-probabilities (n, C) of local heads;
- ``SURROGATE/features``: features (n, D) of a surrogate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgn_client.imaging.files import whole_file

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]


class Location(NamedTuple):
    """A set and a seed."""

    set: str
    seed: int


@dataclass(frozen=True)
class Bank:
    """The folder of a bank."""

    root: Path

    def path(self, place: Location, name: str, suffix: str = ".npz") -> Path:
        """Return where a source of rows lies."""
        return self.root / place.set / str(place.seed) / f"{name}{suffix}"

    def has(self, place: Location, name: str) -> bool:
        """Return whether a source is there; what is there is whole."""
        return self.path(place, name).exists()

    def put(self, place: Location, name: str, arrays: Arrays) -> None:
        """Write a source, whole or not at all."""
        write_arrays(self.path(place, name), arrays)

    def get(self, place: Location, name: str) -> dict[str, NDArray[Any]]:
        """Read a source."""
        with np.load(self.path(place, name)) as file:
            return {key: file[key] for key in file.files}

    def places(self) -> Iterator[Location]:
        """Yield every set and seed that has targets, in order."""
        for path in sorted(self.root.glob("*/*/targets.npz")):
            yield Location(path.parent.parent.name, int(path.parent.name))

    def names(self, place: Location) -> list[str]:
        """Return the names of all sources of a set and seed, targets included."""
        folder = self.root / place.set / str(place.seed)
        return sorted(
            str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.npz")
        )


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an npz file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
