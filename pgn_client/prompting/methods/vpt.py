"""VPT: learned tokens beside the patches (Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv
2203.12119).

They enter behind the patch embedding, where no image reaches: white box. The linear mapping on
the pooled features is the head that the paper trains along.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting.methods.base import Groups, Rates, Setting, WhiteBox, require_layout
from pgn_client.surrogate.backbone import Backbone, class_token_alone, class_token_block

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate


class VPTShallow(WhiteBox):
    """Prompts enter once, before the first block, and travel through all of them.

    Args:
        prompts: (1, m, D) float32, tokens as the first block reads them: with whatever position
            they want.

    Reference: sections 3.2 and 3.3; uniform(-v, v) at the start, v = sqrt(6 / (3 P² + D)), as in
    the authors' code. Deviation: one m, one rate, no weight decay, and AdamW with a warm head, as
    for all methods here, instead of SGD with a grid of each per task.
    """

    name = "vpt_shallow"
    title = "VPT-shallow"
    rate = 0.03
    """Learning rate of the prompts."""

    def __init__(self, prompts: Tensor) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)

    @classmethod
    def create(cls, setting: Setting) -> VPTShallow:
        """Draw a new one."""
        require_layout(setting, cls)
        v = math.sqrt(6 / (3 * setting.canvas.patch**2 + setting.width))
        shape = (cls.prompted_blocks(setting), setting.prompt_tokens, setting.width)
        return cls(torch.empty(shape).uniform_(-v, v))

    @classmethod
    def prompted_blocks(cls, setting: Setting) -> int:
        """Return how many blocks have prompts of their own."""
        return 1

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """(B, 3, H, W) uint8 → (B, D), the frozen backbone's own pooled features."""
        backbone = _pooled(surrogate.backbone)
        return backbone.features_from_tokens(backbone.tokens(images))

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """See ``Method``: (B, D) features, pooled as the model pools its own tokens.

        Raises:
            ConfigurationError: a model that pools neither its class token nor the mean of its patch
                tokens.
        """
        backbone = _pooled(surrogate.backbone)
        tokens = backbone.tokens(images)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=surrogate.half):
            return self._features(backbone.model, tokens).float()

    def _features(self, m: Any, tokens: Tensor) -> Tensor:
        """(B, N, D) patch tokens, without position embedding → (B, D); as
        ``Backbone.features_from_tokens``.
        """
        x = m.norm_pre(m.patch_drop(m._pos_embed(tokens)))
        # behind the class token; how many prompts are there already
        at, there = int(m.cls_token is not None), 0
        for i, block in enumerate(m.blocks):
            if i < len(self.prompts):
                prompts = self.prompts[i].expand(len(x), -1, -1)
                x, there = (
                    torch.cat([x[:, :at], prompts, x[:, at + there :]], dim=1),
                    prompts.shape[1],
                )
            if i == len(m.blocks) - 1 and class_token_alone(m):
                x, there = class_token_block(block, x), 0
            else:
                x = block(x)
        # the mean is over what the model itself has
        x = torch.cat([x[:, :at], x[:, at + there :]], dim=1)
        features: Tensor = m.forward_head(m.norm(x), pre_logits=True)
        return features

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return the prompts."""
        return [{"params": [self.prompts], "lr": self.rate, "weight_decay": 0.0}]


class VPTDeep(VPTShallow):
    """Every block reads prompts of its own; what the block before made of its prompts is dropped.

    Args:
        prompts: (depth, m, D) float32.
    """

    name = "vpt_deep"
    title = "VPT-deep"

    @classmethod
    def prompted_blocks(cls, setting: Setting) -> int:
        """All of them."""
        return setting.depth


def _pooled(backbone: Backbone) -> Backbone:
    """Refuse a model whose pooling would need to be told about the prompts."""
    pooling = backbone.model.global_pool
    if pooling not in ("token", "avg"):
        raise ConfigurationError(
            f"backbone {backbone.name}: got pooling {pooling or 'none'}, expected token or avg for "
            "VPT; choose a model "
            "that reads its class token or the mean of its patch tokens"
        )
    return backbone
