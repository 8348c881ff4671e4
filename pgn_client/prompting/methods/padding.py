"""VP: one learned border, added to every image (Bahng et al., "Exploring Visual Prompts", arXiv
2203.17274).

Published, the border is added to *normalised* images and bounded by nothing: no file holds such an
image, and an endpoint cannot be sent it. :class:`Padding` adds it to the pixels and stays within
[0, 255], which can be sent; :class:`PublishedPadding` is the published form, for comparison,
measured on the surrogate alone.
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

WIDTH = 30 / 224  # of the border, as a share of the image's side, as published


class Border(nn.Module):
    """The pixels of a border, and only they, as free numbers: 69,840 at 224 px.

    Args:
        values: (3, n) float, the n border pixels, row-major.
        size: H = W, in pixels.
    """

    def __init__(self, values: Tensor, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.size = size

    @classmethod
    def create(cls, size: int) -> Border:
        """Start with nothing added."""
        return cls(torch.zeros(3, int(border_mask(size).sum())), size)

    def forward(self) -> Tensor:
        """Return (3, H, W), zero within the border."""
        mask = border_mask(self.size).to(self.values.device)
        return torch.zeros(3, self.size, self.size, device=self.values.device).masked_scatter(
            mask, self.values
        )


def border_mask(size: int) -> Tensor:
    """Return (H, W) bool, true on the border."""
    width = max(1, round(WIDTH * size))
    mask = torch.ones(size, size, dtype=torch.bool)
    mask[width : size - width, width : size - width] = False
    return mask


class Padding(WholeImage):
    """VP within valid pixels: clamp(x + border).

    Args:
        generator: the local classifier beside it; the border does not depend on the image.
        border: what is added, unit scale.

    Deviation: the sum is clamped to [0, 1], and rounded when it is sent; Adam with a warm label
    mapping, as for all methods here, instead of SGD at rate 40.
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
        """Start with a border that adds nothing."""
        require_layout(setting, cls)
        return cls(LocalClassifier(setting.classes), Border.create(setting.canvas.size))

    def paint(self, code: None, unit: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → the same with the border."""
        painted: Tensor = (unit + self.border()).clamp(0, 1)
        return painted

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return the border; decaying it would pull it towards no prompt, so it is not decayed."""
        return [{"params": [self.border.values], "lr": self.rate, "weight_decay": 0.0}]


class PublishedPadding(WhiteBox):
    """VP as published: the border is added in the normalised space, without bounds.

    Args:
        border: what is added, normalised scale.
    """

    name = "padding_published"
    reads_features = False
    title = "VP as published"
    rate = 0.1
    """Learning rate of the border, in normalised scale."""

    def __init__(self, border: Border) -> None:
        super().__init__()
        self.border = border

    @classmethod
    def create(cls, setting: Setting) -> PublishedPadding:
        """Start with a border that adds nothing."""
        require_layout(setting, cls)
        return cls(Border.create(setting.canvas.size))

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """See ``Method``: what the surrogate answers to images that no file can hold."""
        std = torch.tensor(surrogate.backbone.std, device=images.device).view(3, 1, 1)
        return surrogate.pixel_scores(images.float() + 255 * std * self.border())

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return the border."""
        return [{"params": [self.border.values], "lr": self.rate, "weight_decay": 0.0}]
