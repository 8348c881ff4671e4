"""VP: one learned border, added to every image (Bahng et al., "Exploring Visual Prompts", arXiv
2203.17274).

The published method adds the border to *normalized* images, without bounds. No image file can hold
the result, so it cannot be sent to an endpoint. :class:`Padding` adds the border to the pixels and
stays within [0, 255], so its images can be sent. :class:`PublishedPadding` is the published form;
for comparison it is measured on the surrogate alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgn_client.prompting.generator import LocalClassifier
from pgn_client.prompting.methods.base import (
    Groups,
    Rates,
    Setting,
    WhiteBox,
    WholeImage,
    require_layout,
)

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate

WIDTH = 30 / 224
"""Width of the published border, as a share of the image's side."""


class Border(nn.Module):
    """A learned border around an image; its pixels are free parameters, 69,840 numbers at 224 px.

    Args:
        values: Values of the n border pixels, (3, n) float, row-major.
        size: Side of the image, H = W, in pixels.
    """

    def __init__(self, values: Tensor, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.size = size

    @classmethod
    def create(cls, size: int) -> Border:
        """Create a border of zeros, which adds nothing."""
        return cls(torch.zeros(3, int(border_mask(size).sum())), size)

    def forward(self) -> Tensor:
        """Return the border as an image, (3, H, W), zero inside the border."""
        device = self.values.device
        mask = border_mask(self.size).to(device)
        return torch.zeros(3, self.size, self.size, device=device).masked_scatter(mask, self.values)


def border_mask(size: int) -> Tensor:
    """Return an (H, W) bool mask of a square image, true on its border; H = W = ``size``."""
    width = max(1, round(WIDTH * size))
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[width : size - width, width : size - width] = False
    return mask


class Padding(WholeImage):
    """VP in valid pixels: image x becomes clamp(x + border), with one border for all images.

    Args:
        generator: The local classifier.
        border: Border to add, unit scale.

    Deviation: the sum is clamped to [0, 1], and rounded when it is sent. The optimizer is Adam with
    a warm label mapping, as for all methods here, instead of SGD at rate 40.
    """

    name = "padding"
    title = "VP"
    rate = 0.08
    """Learning rate of the border, in unit scale; 0.02 was worse (``benchmarks/LOG.md``)."""

    def __init__(self, generator: LocalClassifier, border: Border) -> None:
        super().__init__(generator)
        self.border = border

    @classmethod
    def create(cls, setting: Setting) -> Padding:
        """Create VP with a border of zeros, which adds nothing to images."""
        require_layout(setting, cls)
        return cls(LocalClassifier(setting.classes), Border.create(setting.canvas.size))

    def paint(self, code: None, unit: Tensor) -> Tensor:
        """Return (B, 3, H, W) images in [0, 1] with the border added, clamped to [0, 1]."""
        painted: Tensor = (unit + self.border()).clamp(0, 1)
        return painted

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return one optimizer group of the border's pixels.

        It has no weight decay, which would pull the border towards no prompt.
        """
        return [{"params": [self.border.values], "lr": self.rate, "weight_decay": 0.0}]


class PublishedPadding(WhiteBox):
    """VP as published: the border is added in the normalized space, without bounds.

    Args:
        border: Border to add, normalized scale.
    """

    name = "padding_published"
    reads_features = False
    title = "VP as published"
    rate = 0.1
    """Learning rate of the border, in normalized scale."""

    def __init__(self, border: Border) -> None:
        super().__init__()
        self.border = border

    @classmethod
    def create(cls, setting: Setting) -> PublishedPadding:
        """Create published VP with a border of zeros, which adds nothing to images."""
        require_layout(setting, cls)
        return cls(Border.create(setting.canvas.size))

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the surrogate's scores for images with the unbounded border, (B, S) float32."""
        # The surrogate normalizes pixel values, so the border is scaled to pixel values first.
        std = torch.tensor(surrogate.backbone.std, device=images.device).view(3, 1, 1)
        return surrogate.pixel_scores(images.float() + 255 * std * self.border())

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return one optimizer group of the border's pixels, without weight decay."""
        return [{"params": [self.border.values], "lr": self.rate, "weight_decay": 0.0}]
