"""Labeled images in memory, where training computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgn_client.arrays import Floats, Pixels
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import fit_to_canvas
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.training import Split
from pgn_client.training.progress import bar as progress_bar


@dataclass(frozen=True)
class Examples:
    """One split in memory: images (n, 3, h, w) uint8 and targets (n,) int64."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, size: int) -> int:
        """Return how many shuffled batches an epoch has."""
        return sum(1 for rows in torch.arange(len(self)).split(size) if len(rows) > 1)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, targets) in batches; a last batch of one is dropped in training
        (BatchNorm needs two).
        """
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for rows in order.split(size):
            if len(rows) > 1 or not shuffle:
                yield self.images[rows], self.targets[rows]


def load_images(split: Split, canvas: Canvas, tick: Callable[[], object] | None = None) -> Tensor:
    """Fit all images of a split into the canvas's box: (n, 3, h, w) uint8, pixel space.

    Raises:
        ImageError: a file that cannot be read; it is named.
    """
    _, _, height, width = canvas.box
    images = np.empty((len(split), height, width, 3), dtype=np.uint8)
    for row, path in zip(images, split.paths, strict=True):
        row[:] = fit_to_canvas(open_image(path), canvas)
        if tick:
            tick()
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def load_examples(
    split: Split, canvas: Canvas, device: torch.device, *, shown: bool = False
) -> Examples:
    """Load a split as :func:`load_images` does, where training computes; ``shown`` tells
    progress.
    """
    with progress_bar(len(split), "reading", "img", shown=shown) as bar:
        images = load_images(split, canvas, bar.update)
    return Examples(images.to(device), torch.from_numpy(split.labels).to(device))


@dataclass(frozen=True)
class FittedSplit:
    """One split as a checkpoint sees it.

    Attributes:
        split: files and their targets.
        fitted: (n, h, w, 3) uint8, as they stand on the canvas.
        looked_at: (n, r, r, 3) uint8, what the generator looks at; ``None`` where that is
            ``fitted``.
    """

    split: Split
    fitted: Pixels
    looked_at: Pixels | None

    @classmethod
    def of(cls, split: Split, adapter: PromptAdapter) -> FittedSplit:
        """Decode a split, one image at a time."""
        fitted, looked_at = [], []
        for image in map(open_image, split.paths):
            fitted.append(fit_to_canvas(image, adapter.canvas))
            looked_at.append(adapter.looked_at([image]))
        crops = [crop for crop in looked_at if crop is not None]
        return cls(split, np.stack(fitted), np.concatenate(crops) if crops else None)

    @property
    def prompted_by(self) -> Pixels:
        """What the prompts are made from."""
        return self.fitted if self.looked_at is None else self.looked_at

    def rendered(self, adapter: PromptAdapter) -> tuple[Pixels, Floats]:
        """Return what is painted, and (n, C) log-probabilities of the local head."""
        painted, local = adapter.render(self.fitted, prompted_by=self.prompted_by)
        return painted, local
