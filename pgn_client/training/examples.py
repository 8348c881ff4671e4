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
    """The images and class indices of one split (such as the training images), in memory.

    Attributes:
        images: RGB images, resized to their place on the canvas (the image that the model sees),
            (n, 3, h, w) uint8.
        targets: Class indices, (n,) int64.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, size: int) -> int:
        """Return the number of shuffled batches of at most ``size`` images in an epoch."""
        # Counted as `batches` yields them: a schedule must not get more steps than its length.
        return sum(1 for rows in torch.arange(len(self)).split(size) if len(rows) > 1)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of at most ``size`` images with their class indices.

        With ``shuffle``, the order is random. A last batch of one image is then dropped, because
        BatchNorm needs two images in training.
        """
        # Drawn on the CPU, because a resumed run restores the state of the CPU's generator.
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for rows in order.split(size):
            if len(rows) > 1 or not shuffle:
                yield self.images[rows], self.targets[rows]


def load_images(split: Split, canvas: Canvas, tick: Callable[[], object] | None = None) -> Tensor:
    """Read the images of a split, resized to their place on the canvas.

    Args:
        split: Files to read.
        canvas: The image that the model sees; its ``box`` is the place of the user's image.
        tick: Called after each image; ``None`` for no calls.

    Returns:
        The images, (n, 3, h, w) uint8.

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
    """Load the images and class indices of a split onto a device.

    Args:
        split: Files to read and their class indices.
        canvas: The image that the model sees, with a place for the user's image.
        device: Device that the tensors are moved to.
        shown: Whether a progress bar is drawn.
    """
    with progress_bar(len(split), "reading", "img", shown=shown) as bar:
        images = load_images(split, canvas, bar.update)
    return Examples(images.to(device), torch.from_numpy(split.labels).to(device))


@dataclass(frozen=True)
class FittedSplit:
    """The images of one split, resized and cropped as a checkpoint needs them.

    Attributes:
        split: Files and their class indices.
        fitted: Images, resized to their place on the canvas (the image that the model sees),
            (n, h, w, 3) uint8.
        looked_at: Separate crops that the prompt generator reads, (n, r, r, 3) uint8; ``None`` if
            the generator reads ``fitted``.
    """

    split: Split
    fitted: Pixels
    looked_at: Pixels | None

    @classmethod
    def of(cls, split: Split, adapter: PromptAdapter) -> FittedSplit:
        """Read the images of a split and prepare them for a checkpoint.

        The images are read one at a time to limit memory.
        """
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
        """The images that the prompt generator reads, (n, r, r, 3) or (n, h, w, 3) uint8."""
        return self.fitted if self.looked_at is None else self.looked_at

    def rendered(self, adapter: PromptAdapter) -> tuple[Pixels, Floats]:
        """Make the prompts of a checkpoint for these images.

        Returns:
            The uint8 prompt patches of each image, or its whole canvas from a method that paints on
            the image itself (``PromptAdapter.render`` has the shapes); and (n, C) log-probabilities
            of the local head, the checkpoint's own small classifier.
        """
        return adapter.render(self.fitted, prompted_by=self.prompted_by)
