"""VPT: learned tokens in the sequence of patch tokens (Jia et al., "Visual Prompt Tuning", ECCV
2022, arXiv 2203.12119).

White box: the tokens enter after the patch embedding, where no image has access. As in the paper, a
linear head on the pooled features, here the label mapping, is trained together with the tokens.
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
    """VPT-shallow: learned prompt tokens enter before a ViT's first block and pass all blocks.

    Args:
        prompts: Prompt tokens that the first block reads, (1, m, D) float32; no position embedding
            is added to them.

    Reference: sections 3.2 and 3.3 of arXiv 2203.12119. Prompts start at uniform(-v, v), v = sqrt(6
    / (3 P² + D)), as in the authors' code. Deviation: one m, one rate, no weight decay, and AdamW
    with a warm head, as for all methods here, instead of SGD with a grid search of each per task.
    """

    name = "vpt_shallow"
    title = "VPT-shallow"
    rate = 0.03
    """Learning rate of the prompts, chosen on validation (``benchmarks/LOG.md``)."""

    def __init__(self, prompts: Tensor) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)

    @classmethod
    def create(cls, setting: Setting) -> VPTShallow:
        """Create VPT with random prompt tokens."""
        require_layout(setting, cls)
        v = math.sqrt(6 / (3 * setting.canvas.patch**2 + setting.width))
        shape = (cls.prompted_blocks(setting), setting.prompt_tokens, setting.width)
        return cls(torch.empty(shape).uniform_(-v, v))

    @classmethod
    def prompted_blocks(cls, setting: Setting) -> int:
        """Return the number of blocks that have their own prompts."""
        return 1

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the frozen backbone's pooled features: (B, 3, H, W) uint8 → (B, D)."""
        backbone = _pooled(surrogate.backbone)
        return backbone.features_from_tokens(backbone.tokens(images))

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the (B, D) pooled features of images, with the prompts in the sequence.

        Only the model's own tokens are pooled.

        Raises:
            ConfigurationError: The model pools neither its class token nor the mean of its patch
                tokens.
        """
        backbone = _pooled(surrogate.backbone)
        tokens = backbone.tokens(images)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=surrogate.half):
            return self._features(backbone.model, tokens).float()

    def _features(self, m: Any, tokens: Tensor) -> Tensor:
        """Return the (B, D) pooled features of patch tokens, with the prompts in the sequence.

        Args:
            m: The timm model.
            tokens: Patch tokens without position embedding, (B, N, D).
        """
        x = m.norm_pre(m.patch_drop(m._pos_embed(tokens)))

        first = int(m.cls_token is not None)  # Prompts follow the class token, if there is one.
        count = 0  # Prompts in the sequence.
        for i, block in enumerate(m.blocks):
            if i < len(self.prompts):
                # A block's own prompts replace the outputs of the previous block's prompts.
                prompts = self.prompts[i].expand(len(x), -1, -1)
                x = torch.cat([x[:, :first], prompts, x[:, first + count :]], dim=1)
                count = prompts.shape[1]

            if i == len(m.blocks) - 1 and class_token_alone(m):
                # It returns the class token alone, so no prompts are left to cut out below.
                x = class_token_block(block, x)
                count = 0
            else:
                x = block(x)

        # Mean pooling covers the model's own tokens only.
        x = torch.cat([x[:, :first], x[:, first + count :]], dim=1)
        features: Tensor = m.forward_head(m.norm(x), pre_logits=True)
        return features

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return one optimizer group of the prompt tokens, without weight decay."""
        return [{"params": [self.prompts], "lr": self.rate, "weight_decay": 0.0}]


class VPTDeep(VPTShallow):
    """VPT-deep: every block of a ViT reads learned prompt tokens of its own.

    They replace the outputs of the previous block's prompts.

    Args:
        prompts: Prompt tokens of each block, (depth, m, D) float32.
    """

    name = "vpt_deep"
    title = "VPT-deep"

    @classmethod
    def prompted_blocks(cls, setting: Setting) -> int:
        """Return the number of all blocks of the backbone, since each has its own prompts."""
        return setting.depth


def _pooled(backbone: Backbone) -> Backbone:
    """Return the backbone after a check that its pooling can leave the prompts out.

    Raises:
        ConfigurationError: The model pools neither its class token nor the mean of its patch
            tokens.
    """
    pooling = backbone.model.global_pool
    if pooling not in ("token", "avg"):
        raise ConfigurationError(
            f"backbone {backbone.name}: got pooling {pooling or 'none'}, expected token or avg for "
            "VPT; choose a model that pools its class token or the mean of its patch tokens"
        )
    return backbone
