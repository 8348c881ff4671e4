"""The controls without a prompt: only the label mapping is trained, in the same loop, on the same
augmented images.

:class:`NoPrompt` sends the image alone; what a prompt gains over it is the prompt's own.
:class:`GreyFrame` sends it in the frame that a prompt would fill, and shows how much of a gain is
the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pgn_client.imaging.compositor import GREY
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting.generator import LocalClassifier
from pgn_client.prompting.methods.base import (
    Groups,
    Rates,
    RGBMethod,
    Setting,
    WholeImage,
    require_layout,
)

if TYPE_CHECKING:
    from pgn_client.surrogate.patch_embedding import PatchEmbedding


class NoPrompt(WholeImage):
    """The image, squashed into the canvas, and nothing else."""

    name = "no_prompt"
    title = "no prompt"

    @classmethod
    def create(cls, setting: Setting) -> NoPrompt:
        """Draw the local classifier; nothing else learns but the mapping."""
        require_layout(setting, cls)
        return cls(LocalClassifier(setting.classes))

    def paint(self, code: None, unit: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → the same."""
        return unit

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return nothing: there is no prompt."""
        return []


class GreyFrame(RGBMethod):
    """The image in a layout whose prompt cells stay grey.

    Args:
        generator: the local classifier beside it.
        canvas: whose cells they are.
    """

    name = "grey_frame"
    title = "grey frame"

    def __init__(self, generator: LocalClassifier, canvas: Canvas) -> None:
        super().__init__(generator)
        self.canvas = canvas

    @classmethod
    def create(cls, setting: Setting) -> GreyFrame:
        """Draw the local classifier; nothing else learns but the mapping."""
        require_layout(setting, cls)
        return cls(LocalClassifier(setting.classes), setting.canvas)

    def painted(
        self, code: None, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """See ``RGBMethod``: grey patches."""
        side = self.canvas.patch
        return torch.full(
            (len(images), self.canvas.prompts, 3, side, side), GREY / 255, device=images.device
        )

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return nothing: there is no prompt."""
        return []
