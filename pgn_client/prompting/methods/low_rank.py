"""A low-rank prompt on the whole image (Jin et al., "LoR-VP", ICLR 2025, arXiv 2502.00896).

In each channel the prompt is a product of two thin matrices, so the rows of the image share
parameters, and so do its columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgn_client.prompting.generator import LocalClassifier
from pgn_client.prompting.methods.base import Groups, Rates, Setting, WholeImage, require_layout

RANK = 4
"""Rank R of the low-rank prompt, as in the authors' script."""


class LowRank(WholeImage):
    """LoR-VP: one low-rank prompt for all images; image x becomes clamp(x + up · down).

    Args:
        generator: The local classifier.
        up: Left factor, (3, H, R) float, unit scale; zero at the start.
        down: Right factor, (3, R, W) float; N(0, 1) at the start.

    Deviation: the sum is clamped to [0, 1]. The published sum is unbounded, in the normalized
    space.
    """

    name = "low_rank"
    title = "LoR-VP"
    rate = 0.005
    """Learning rate of both factors of the low-rank prompt."""

    def __init__(self, generator: LocalClassifier, up: Tensor, down: Tensor) -> None:
        super().__init__(generator)
        self.up = nn.Parameter(up)
        self.down = nn.Parameter(down)

    @classmethod
    def create(cls, setting: Setting) -> LowRank:
        """Create LoR-VP with a left factor of zeros, so that the prompt adds nothing."""
        require_layout(setting, cls)
        size = setting.canvas.size
        return cls(
            LocalClassifier(setting.classes), torch.zeros(3, size, RANK), torch.randn(3, RANK, size)
        )

    def paint(self, code: None, unit: Tensor) -> Tensor:
        """Return (B, 3, H, W) images in [0, 1] with the low-rank prompt added and clamped."""
        return (unit + self.up @ self.down).clamp(0, 1)

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return one optimizer group of both factors of the prompt, without weight decay."""
        # Weight decay would pull the factors towards no prompt.
        return [{"params": [self.up, self.down], "lr": self.rate, "weight_decay": 0.0}]
