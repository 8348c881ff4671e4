"""Full fine-tuning: all weights of the model are trained.

It needs the inside of the model, and is the most expensive method.
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
    """Full fine-tuning: a copy of the backbone is trained, with a linear mapping as the head.

    Args:
        backbone: The model to copy; it stays frozen itself.
    """

    name = "fine_tune"
    title = "fine-tuning"
    rate = 5e-5
    """Learning rate of all weights except the head's; not searched (``benchmarks/LOG.md``)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        # Only the weights are trained, so only they are copied; the frozen model stays as it is.
        self.backbone = copy(backbone)
        self.backbone.model = deepcopy(backbone.model).requires_grad_(True)
        # A Backbone is no module: torch finds the parameters through this attribute.
        self.model = self.backbone.model
        self.model.head = nn.Identity()  # The label mapping takes its place.

    @classmethod
    def create(cls, setting: Setting) -> FineTune:
        """Create a copy of the setting's backbone, to be fine-tuned.

        Raises:
            ConfigurationError: The setting has no backbone, or the layout has prompt cells.
        """
        require_layout(setting, cls)
        if setting.backbone is None:
            raise ConfigurationError(
                f"method {cls.name}: got no backbone, expected the one to copy; put it in Setting"
            )
        return cls(setting.backbone)

    def train(self, mode: bool = True) -> FineTune:
        """Stay in evaluation mode, whatever ``mode`` is; return self.

        The modes differ only in dropout, which ``class_token_block`` does not have.
        """
        return super().train(False)

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the frozen backbone's pooled features: (B, 3, H, W) uint8 → (B, D)."""
        return surrogate.backbone.features_from_tokens(surrogate.backbone.tokens(images))

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the trained copy's pooled features of (B, 3, H, W) uint8 images, (B, D)."""
        tokens = self.backbone.tokens(images)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=surrogate.half):
            return self.backbone.features_from_tokens(tokens).float()

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return one optimizer group of all weights of the copy, with the default weight decay."""
        return [{"params": list(self.model.parameters()), "lr": self.rate}]
