"""EXPRES: output tokens and residual prompts (Das et al., "Learning Expressive Prompting With
Residuals for Vision Transformers", CVPR 2023, arXiv 2303.15591).

A few learned tokens travel through the frozen model beside the patches, and what comes out *of
them* is read: output tokens. Residual prompts, learned too, are added to their rows inside each
block. White box: it runs where the model runs.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pgn_client import checkpoint
from pgn_client.checkpoint.card import HOSTED, BackboneCard, Card, MappingCard
from pgn_client.errors import ConfigurationError
from pgn_client.prompting.methods.base import Groups, Rates, Setting, WhiteBox, require_layout
from pgn_client.surrogate.backbone import Backbone

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate

SITES = ("norm1", "q", "k", "v", "proj", "norm2", "mlp")
"""Where residuals can be added: to what comes out of a block's part; ``q``, ``k`` and ``v`` are
parts of one.
"""
PARTS = {"norm1": "norm1", "q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "proj": "attn.proj"}
PARTS |= {"norm2": "norm2", "mlp": "mlp"}


class EXPRES(WhiteBox):
    """Output tokens with residual prompts.

    For block l and the rows i of the prompts::

        u = LN1(z);  u_i += d_norm1[l, i]
        q, k, v = Wq u, Wk u, Wv u;  q_i += d_q[l, i];  k_i += d_k[l, i];  v_i += d_v[l, i]
        y = Wo MSA(q, k, v);  y_i += d_proj[l, i];  z = z + y;  z = z + MLP(LN2(z))

    The features are the mean over the prompts' rows after the last block and the final norm.

    Args:
        prompts: (m, D) float32, tokens as the first block reads them, behind all others.
        residuals: site → (depth, m, D) float32, for some of ``SITES``.

    Reference: section 3 of the paper, as its abstract and figures describe it. Deviation: residuals
    start at zero; prompts at uniform(-v, v), v = sqrt(6 / (3 P² + D)), as VPT's; the mean over the
    output tokens, and a linear map on it; ``norm2`` and ``mlp``, which are off, are our own sites.
    With ``qk_norm`` the residuals of q and k are added before that norm. One m, one rate, no weight
    decay, and AdamW with a warm head, as for all methods here.
    """

    name = "expres"
    title = "EXPRES"
    rate: ClassVar[float] = 0.1
    """Learning rate of prompts and residuals."""

    def __init__(self, prompts: Tensor, residuals: dict[str, Tensor]) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.residuals = nn.ParameterDict(residuals)

    @classmethod
    def create(cls, setting: Setting) -> EXPRES:
        """Draw a new one.

        Raises:
            ConfigurationError: an unknown site, or a layout with prompt cells.
        """
        require_layout(setting, cls)
        unknown = [site for site in setting.sites if site not in SITES]
        if unknown:
            raise ConfigurationError(
                f"EXPRES: got the site {unknown[0]!r}, expected some of {', '.join(SITES)}"
            )
        v = math.sqrt(6 / (3 * setting.canvas.patch**2 + setting.width))
        prompts = torch.empty(setting.prompt_tokens, setting.width).uniform_(-v, v)
        return cls(
            prompts, {site: torch.zeros(setting.depth, *prompts.shape) for site in setting.sites}
        )

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """(B, 3, H, W) uint8 → (B, D), the output tokens as they are before the training."""
        return self.scores(None, images, surrogate)

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """See ``Method``: (B, D) features of the output tokens.

        Raises:
            ConfigurationError: a model whose blocks are not made of ``norm1``, ``attn.qkv``,
                ``attn.proj``, ``norm2`` and ``mlp``.
        """
        tokens = surrogate.backbone.tokens(images)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=surrogate.half):
            return self.output_tokens(tokens, surrogate.backbone).mean(dim=1).float()

    def output_tokens(self, tokens: Tensor, backbone: Backbone) -> Tensor:
        """(B, N, D) patch tokens, without position embedding → (B, m, D) output tokens after the
        final norm.
        """
        return self.encoded(tokens, backbone)[1]

    def encoded(self, tokens: Tensor, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Let the prompts travel along.

        Args:
            tokens: (B, N, D) patch tokens, without position embedding.
            backbone: the frozen model.

        Returns:
            (B, N, D) patch tokens and (B, m, D) output tokens, both after the final norm.
        """
        m: Any = backbone.model
        own = m.norm_pre(m.patch_drop(m._pos_embed(tokens)))
        x = torch.cat([own, self.prompts.expand(len(own), -1, -1)], dim=1)
        with self._added(backbone):
            for block in m.blocks:
                x = block(x)
        x = m.fc_norm(m.norm(x))
        return x[:, own.shape[1] - tokens.shape[1] : own.shape[1]], x[:, own.shape[1] :]

    @contextlib.contextmanager
    def _added(self, backbone: Backbone) -> Iterator[None]:
        """Add the residuals for the time of one forward pass: the model's own code runs, fused
        attention and all.
        """
        with contextlib.ExitStack() as hooks:
            for number, block in enumerate(backbone.model.blocks):
                for path in dict.fromkeys(PARTS[site] for site in self.residuals):
                    hook = _adding(self._residual(path, number))
                    hooks.callback(_part(block, path, backbone).register_forward_hook(hook).remove)
            yield

    def _residual(self, path: str, block: int) -> Tensor:
        """(m, D), or (m, 3 D) of q, k and v side by side; zeros where a site is off."""
        if path != PARTS["q"]:
            (site,) = (site for site in self.residuals if PARTS[site] == path)
            own: Tensor = self.residuals[site][block]
            return own
        zero = torch.zeros_like(self.prompts)
        return torch.cat(
            [self.residuals[s][block] if s in self.residuals else zero for s in ("q", "k", "v")],
            dim=-1,
        )

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return prompts and residuals."""
        return [
            {
                "params": [self.prompts, *self.residuals.values()],
                "lr": self.rate,
                "weight_decay": 0.0,
            }
        ]

    def save(
        self,
        path: str | os.PathLike[str],
        backbone: Backbone,
        classes: Sequence[str],
        beside: Mapping[str, Tensor],
        *,
        profile: str | None = None,
        card: Card | None = None,
    ) -> dict[str, Any]:
        """Write what a server of adapters hosts; see ``tests/contract/adapters/README.md``.

        Args:
            path: of the file.
            backbone: the model that the prompts were trained on.
            classes: C names.
            beside: tensors that read the tokens, ``mapping.weight`` (D, C) and ``mapping.bias``
                (C,) among them.
            profile: the server's resize and crop; ``None`` takes the backbone's own.
            card: What is known of the training, without backbone and mapping.

        Returns:
            The card.

        Raises:
            CheckpointError: the file cannot be written.
        """
        names = tuple(classes)
        own = BackboneCard.from_json(backbone.card())
        whole = replace(
            card or Card(method=HOSTED, classes=names),
            classes=names,
            backbone=replace(own, features_sha256=backbone.features_sha256()),
            profile=profile or str(backbone.profile),
            layout=self.layout,
            mapping=MappingCard("linear"),
        )
        tensors = {
            k: t.detach().float().cpu().numpy()
            for k, t in (self.state_dict() | dict(beside)).items()
        }
        return checkpoint.write(path, whole.to_json(), tensors)


def multiply_adds(tokens: int, width: int, depth: int) -> int:
    """Return how many multiplications and additions a ViT's blocks take for one image: depth (12
    n D² + 2 n² D).

    Args:
        tokens: n, with class token and prompts.
        width: D.
        depth: of the model, in blocks.
    """
    return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)


def _adding(residual: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that adds to the last rows, which are the prompts'."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        added = residual.to(output.dtype).expand(len(output), -1, -1)
        count = residual.shape[0]
        return torch.cat([output[:, :-count], output[:, -count:] + added], dim=1)

    return hook


def _part(block: nn.Module, path: str, backbone: Backbone) -> nn.Module:
    try:
        return block.get_submodule(path)
    except AttributeError:
        raise ConfigurationError(
            f"backbone {backbone.name}: got a {type(block).__name__} without {path}, expected the "
            "blocks of a plain "
            "ViT for EXPRES; choose another model"
        ) from None
