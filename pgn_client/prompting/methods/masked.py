"""SMM: one shared pattern, seen through a mask of each image's own (Cai et al., ICML 2024, arXiv
2406.03150).

clamp(x + pattern ⊙ mask(x)),  mask: a small CNN, three channels, constant on patches of the image
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgn_client.prompting.generator import LocalClassifier
from pgn_client.prompting.methods.base import Groups, Rates, Setting, WholeImage, require_layout

CHANNELS = (3, 8, 16, 32, 64, 128)
POOLS = 3  # after the first convolutions: a mask patch is 2³ pixels of the generator's input wide


class MaskGenerator(nn.Sequential):
    """The published six-layer CNN for ViTs, 102,339 numbers: (B, 3, r, r) normalised → (B, 3, r/8,
    r/8) masks.
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
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        super().__init__(*layers, nn.Conv2d(CHANNELS[-1], 3, 3, padding=1))


class Masked(WholeImage):
    """A shared pattern under a mask that each image gets of its own.

    Args:
        generator: the local classifier beside it.
        pattern: (3, H, W) float, unit scale, zero at the start.

    Deviation: the mask is drawn from the generator's input (at most 96 px) and spread over the
    canvas by nearest-neighbour interpolation, so its patches are larger than the published 8 px;
    the sum is clamped to [0, 1].
    """

    name = "masked"
    title = "SMM"
    pattern_rate = 0.02
    """Learning rate of the pattern, in unit scale."""
    mask_rate = 1e-3
    """Learning rate of the mask generator."""

    def __init__(self, generator: LocalClassifier, pattern: Tensor) -> None:
        super().__init__(generator)
        self.pattern, self.mask = nn.Parameter(pattern), MaskGenerator()

    @classmethod
    def create(cls, setting: Setting) -> Masked:
        """Start with a pattern that adds nothing."""
        require_layout(setting, cls)
        return cls(
            LocalClassifier(setting.classes),
            torch.zeros(3, setting.canvas.size, setting.canvas.size),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, r, r) → (B, 3, r/8, r/8) masks and (B, C) local logits."""
        return self.mask(x), self.generator.classify(x)

    def paint(self, code: Tensor, unit: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → the same with the masked pattern."""
        masks = F.interpolate(code.float(), size=unit.shape[-2:], mode="nearest")
        return (unit + self.pattern * masks).clamp(0, 1)

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return pattern and mask generator."""
        return [
            {"params": [self.pattern], "lr": self.pattern_rate, "weight_decay": 0.0},
            {"params": list(self.mask.parameters()), "lr": self.mask_rate},
        ]
