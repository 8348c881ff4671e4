"""A low-rank prompt all over the image (Jin et al., "LoR-VP", ICLR 2025, arXiv 2502.00896).

Rows of the image share what they learn, and so do columns: per channel the prompt is a product of
two thin matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgn_client.prompting.generator import LocalClassifier
from pgn_client.prompting.methods.base import Groups, Rates, Setting, WholeImage, require_layout

RANK = 4


class LowRank(WholeImage):
    """clamp(x + up · down), one prompt for all images.

    Args:
        generator: the local classifier beside it.
        up: (3, H, R) float, zero at the start. down: (3, R, W) float, N(0, 1) at the start, unit
            scale.

    Deviation: the sum is clamped to [0, 1]; published, it is unbounded in the normalised space.
    """

    name = "low_rank"
    title = "LoR-VP"
    rate = 0.005
    """Learning rate of both factors."""

    def __init__(self, generator: LocalClassifier, up: Tensor, down: Tensor) -> None:
        super().__init__(generator)
        self.up, self.down = nn.Parameter(up), nn.Parameter(down)

    @classmethod
    def create(cls, setting: Setting) -> LowRank:
        """Start with a prompt that adds nothing."""
        require_layout(setting, cls)
        size = setting.canvas.size
        return cls(
            LocalClassifier(setting.classes), torch.zeros(3, size, RANK), torch.randn(3, RANK, size)
        )

    def paint(self, code: None, unit: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → the same with the prompt."""
        return (unit + self.up @ self.down).clamp(0, 1)

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return both factors."""
        return [{"params": [self.up, self.down], "lr": self.rate, "weight_decay": 0.0}]
