"""SMM: one shared pattern under a mask per image (Cai et al., ICML 2024, arXiv 2406.03150).

The prompted image is clamp(x + pattern ⊙ mask(x)). The mask is the output of a small CNN; it has
three channels and is constant on patches of the image.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgn_client.prompting.generator import LocalClassifier
from pgn_client.prompting.methods.base import Groups, Rates, Setting, WholeImage, require_layout

CHANNELS = (3, 8, 16, 32, 64, 128)
"""Channels of the mask generator's input and of its hidden layers."""
POOLS = 3
"""Number of pooling layers, one after each of the first convolutions of the mask generator."""


class MaskGenerator(nn.Sequential):
    """The six-layer CNN that computes the mask of an image, as published for ViTs.

    It has 102,339 parameters. It maps (B, 3, r, r) float images, normalized, to (B, 3, r/8, r/8)
    masks.
    """

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(CHANNELS)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
            if i < POOLS:
                # A small canvas has a small input, which may not be a multiple of 8: rounding up
                # keeps its last row and column.
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        super().__init__(*layers, nn.Conv2d(CHANNELS[-1], 3, 3, padding=1))


class MaskedPrompt(WholeImage):
    """SMM: one learned pattern for all images, multiplied by a mask for each image.

    Args:
        generator: The local classifier.
        pattern: The pattern, (3, H, W) float, unit scale; zero at the start.

    Deviation: the mask is computed from the generator's input (at most 96 px) and enlarged to the
    image by nearest-neighbor interpolation, so its patches are larger than the published 8 px. The
    sum is clamped to [0, 1].
    """

    name = "masked"
    title = "SMM"
    pattern_rate = 0.02
    """Learning rate of the pattern, in unit scale."""
    mask_rate = 1e-3
    """Learning rate of the mask generator."""

    def __init__(self, generator: LocalClassifier, pattern: Tensor) -> None:
        super().__init__(generator)
        self.pattern = nn.Parameter(pattern)
        self.mask = MaskGenerator()

    @classmethod
    def create(cls, setting: Setting) -> MaskedPrompt:
        """Create SMM with a pattern of zeros, which adds nothing to images."""
        require_layout(setting, cls)
        return cls(
            LocalClassifier(setting.classes),
            torch.zeros(3, setting.canvas.size, setting.canvas.size),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masks, (B, 3, r/8, r/8), and local logits, (B, C), of (B, 3, r, r) images."""
        return self.mask(x), self.generator.classify(x)

    def paint(self, code: Tensor, unit: Tensor) -> Tensor:
        """Return (B, 3, H, W) images in [0, 1] with the masked pattern added.

        Args:
            code: Masks of the images, (B, 3, r/8, r/8).
            unit: Images, (B, 3, H, W) in [0, 1].
        """
        masks = F.interpolate(code.float(), size=unit.shape[-2:], mode="nearest")
        return (unit + self.pattern * masks).clamp(0, 1)

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return one optimizer group for the pattern and one for the mask generator."""
        # Weight decay suits the network, but would pull the pattern towards no prompt.
        return [
            {"params": [self.pattern], "lr": self.pattern_rate, "weight_decay": 0.0},
            {"params": list(self.mask.parameters()), "lr": self.mask_rate},
        ]
