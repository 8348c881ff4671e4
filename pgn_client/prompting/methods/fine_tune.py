"""Full fine-tuning: every weight of the model learns. White box, and the most that can be paid for
a task.
"""

from __future__ import annotations

from copy import copy, deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting.methods.base import Groups, Rates, Setting, WhiteBox, require_layout
from pgn_client.surrogate.backbone import Backbone

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate


class FineTune(WhiteBox):
    """A copy of the backbone, trained whole; the linear mapping on its pooled features is its head.

    Args:
        backbone: what is copied; it stays frozen itself.
    """

    name = "fine_tune"
    title = "fine-tuning"
    rate = 5e-5
    """Learning rate of all weights but the head's."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = copy(backbone)
        self.model = self.backbone.model = deepcopy(backbone.model).requires_grad_(True)
        self.model.head = nn.Identity()  # the mapping takes its place

    @classmethod
    def create(cls, setting: Setting) -> FineTune:
        """Start as the backbone is.

        Raises:
            ConfigurationError: the setting names no backbone.
        """
        require_layout(setting, cls)
        if setting.backbone is None:
            raise ConfigurationError(
                f"method {cls.name}: got no backbone, expected the one to copy; put it in Setting"
            )
        return cls(setting.backbone)

    def train(self, mode: bool = True) -> FineTune:
        """Stay in evaluation mode: it only concerns dropout, which ``class_token_block`` does not
        have.
        """
        return super().train(False)

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """(B, 3, H, W) uint8 → (B, D), the frozen backbone's own pooled features."""
        return surrogate.backbone.features_from_tokens(surrogate.backbone.tokens(images))

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """See ``Method``: (B, D) pooled features of the copy."""
        tokens = self.backbone.tokens(images)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=surrogate.half):
            return self.backbone.features_from_tokens(tokens).float()

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return all weights of the copy, which decay as the recipe has it."""
        return [{"params": list(self.model.parameters()), "lr": self.rate}]
