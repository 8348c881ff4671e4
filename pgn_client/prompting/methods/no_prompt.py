"""Controls without a prompt: only the label mapping and the local classifier are trained.

Training loop and augmented images are those of the prompts.

:class:`NoPrompt` sends the image alone; a gain over it is due to the prompt and its layout.
:class:`GreyFrame` sends the image in the frame that a prompt would fill, and shows the gain that is
due to the frame.
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
    """Control that sends the whole image, squashed to the model's input size, without a prompt."""

    name = "no_prompt"
    title = "no prompt"

    @classmethod
    def create(cls, setting: Setting) -> NoPrompt:
        """Create the method; only its local classifier has parameters."""
        require_layout(setting, cls)
        return cls(LocalClassifier(setting.classes))

    def paint(self, code: None, unit: Tensor) -> Tensor:
        """Return the (B, 3, H, W) images unchanged, because there is no prompt."""
        return unit

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return no groups, because there is no prompt."""
        return []


class GreyFrame(RGBMethod):
    """Control that sends the image in a gray frame, where prompts would be.

    Args:
        generator: The local classifier.
        canvas: Places of frame and image in the image that is sent.
    """

    name = "grey_frame"
    title = "grey frame"

    def __init__(self, generator: LocalClassifier, canvas: Canvas) -> None:
        super().__init__(generator)
        self.canvas = canvas

    @classmethod
    def create(cls, setting: Setting) -> GreyFrame:
        """Create the method; only its local classifier has parameters."""
        require_layout(setting, cls)
        return cls(LocalClassifier(setting.classes), setting.canvas)

    def painted(
        self, code: None, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """Return gray patches in place of prompts, (B, K, 3, P, P) in [0, 1], K for each image."""
        side = self.canvas.patch
        return torch.full(
            (len(images), self.canvas.prompts, 3, side, side), GREY / 255, device=images.device
        )

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return no groups, because there is no prompt."""
        return []
