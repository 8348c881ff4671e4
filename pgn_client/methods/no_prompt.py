"""The control without a prompt: pictures go out without one, and the label mapping is trained as with one.

It sees the same augmented pictures, for as many epochs, in the same loop. What a prompt gains over it is
the prompt's own.
"""

from __future__ import annotations

from torch import Tensor

from pgn_client.generator import LocalClassifier
from pgn_client.methods.base import Groups, Rates, Setting, WholePicture, require_layout


class NoPrompt(WholePicture):
    """The picture, squashed into the canvas, and nothing else."""

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
