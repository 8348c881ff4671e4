"""Controls without a prompt: the same training loop on the same augmented images trains only the
label mapping and the local classifier.

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
    """The image squashed into the canvas, without a prompt."""

    name = "no_prompt"
    title = "no prompt"

    @classmethod
    def create(cls, setting: Setting) -> NoPrompt:
        """Create the method; only its local classifier has parameters."""
        require_layout(setting, cls)
        return cls(LocalClassifier(setting.classes))

    def paint(self, code: None, unit: Tensor) -> Tensor:
        """Return the images unchanged."""
        return unit

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return no groups, because there is no prompt."""
        return []


class GreyFrame(RGBMethod):
    """The image in a layout whose prompt cells stay gray.

    Args:
        generator: The local classifier.
        canvas: Canvas with the prompt cells.
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
        """Return gray patches; see ``RGBMethod``."""
        side = self.canvas.patch
        return torch.full(
            (len(images), self.canvas.prompts, 3, side, side), GREY / 255, device=images.device
        )

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return no groups, because there is no prompt."""
        return []
