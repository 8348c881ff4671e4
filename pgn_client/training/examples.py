"""Labeled images in memory, where training computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import fit_picture
from pgn_client.imaging.geometry import Canvas
from pgn_client.training.progress import bar as progress_bar


@dataclass(frozen=True)
class Examples:
    """One split in memory: pictures (n, 3, h, w) uint8 and targets (n,) int64."""

    pictures: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, size: int) -> int:
        """Return how many shuffled batches an epoch has."""
        return sum(1 for rows in torch.arange(len(self)).split(size) if len(rows) > 1)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pictures, targets) in batches; a last batch of one is dropped in training (BatchNorm needs two)."""
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for rows in order.split(size):
            if len(rows) > 1 or not shuffle:
                yield self.pictures[rows], self.targets[rows]


def load_pictures(split: Split, canvas: Canvas, tick: Callable[[], object] | None = None) -> Tensor:
    """Fit all pictures of a split into the canvas's box: (n, 3, h, w) uint8, pixel space.

    Raises:
        ImageError: a file that cannot be read; it is named.
    """
    _, _, height, width = canvas.box
    pictures = np.empty((len(split), height, width, 3), dtype=np.uint8)
    for row, path in zip(pictures, split.paths, strict=True):
        row[:] = fit_picture(open_image(path), canvas)
        if tick:
            tick()
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def load_examples(split: Split, canvas: Canvas, device: torch.device, *, shown: bool = False) -> Examples:
    """Load a split as :func:`load_pictures` does, where training computes; ``shown`` tells progress."""
    with progress_bar(len(split), "reading", "img", shown=shown) as bar:
        pictures = load_pictures(split, canvas, bar.update)
    return Examples(pictures.to(device), torch.from_numpy(split.labels).to(device))
