"""Labeled images in memory, on the device that training runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgn_client.arrays import Floats, Pixels
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import fit_to_canvas
from pgn_client.imaging.dataset import Split
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.training.progress import bar as progress_bar


@dataclass(frozen=True)
class Examples:
    """One split in memory.

    Attributes:
        images: RGB images that are fitted to the canvas, (n, 3, h, w) uint8.
        targets: Class indices, (n,) int64.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, size: int) -> int:
        """Return the number of shuffled batches in an epoch."""
        # Counted as `batches` yields them: a schedule must not get more steps than its length.
        return sum(1 for rows in torch.arange(len(self)).split(size) if len(rows) > 1)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, targets) in batches of at most ``size``.

        With ``shuffle``, the order is random and a last batch of one image is dropped, because
        BatchNorm needs two images in training.
        """
        # Drawn on the CPU, because a resumed run restores the state of the CPU's generator.
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for rows in order.split(size):
            if len(rows) > 1 or not shuffle:
                yield self.images[rows], self.targets[rows]


def load_images(split: Split, canvas: Canvas, tick: Callable[[], object] | None = None) -> Tensor:
    """Read the images of a split and fit them to the canvas's box: (n, 3, h, w) uint8.

    Args:
        split: Files to read.
        canvas: Canvas whose box the images are fitted to.
        tick: Called after each image; ``None`` for no calls.

    Raises:
        ImageError: A file cannot be read; the message names it.
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
    """Load a split with :func:`load_images` onto a device; ``shown`` draws a progress bar."""
    with progress_bar(len(split), "reading", "img", shown=shown) as bar:
        images = load_images(split, canvas, bar.update)
    return Examples(images.to(device), torch.from_numpy(split.labels).to(device))


@dataclass(frozen=True)
class FittedSplit:
    """One split, prepared for a checkpoint.

    Attributes:
        split: Files and their targets.
        fitted: Images that are fitted to the canvas, (n, h, w, 3) uint8.
        looked_at: Separate crops that the generator reads, (n, r, r, 3) uint8; ``None`` if the
            generator reads ``fitted``.
    """

    split: Split
    fitted: Pixels
    looked_at: Pixels | None

    @classmethod
    def of(cls, split: Split, adapter: PromptAdapter) -> FittedSplit:
        """Read and prepare a split, one image at a time to limit memory."""
        fitted = []
        crops = []
        for image in map(open_image, split.paths):
            fitted.append(fit_to_canvas(image, adapter.canvas))
            crop = adapter.looked_at([image])
            if crop is not None:
                crops.append(crop)
        return cls(split, np.stack(fitted), np.concatenate(crops) if crops else None)

    @property
    def prompted_by(self) -> Pixels:
        """The images that the generator makes the prompts from."""
        return self.fitted if self.looked_at is None else self.looked_at

    def rendered(self, adapter: PromptAdapter) -> tuple[Pixels, Floats]:
        """Return the painted patches or canvases, and (n, C) log-probabilities of the local head.

        See ``PromptAdapter.render`` for the shapes.
        """
        return adapter.render(self.fitted, prompted_by=self.prompted_by)
