"""EXPRES: output tokens and residual prompts (Das et al., "Learning Expressive Prompting With
Residuals for Vision Transformers", CVPR 2023, arXiv 2303.15591).

A few learned tokens, the prompts, pass through the frozen model together with the patch tokens. The
label mapping reads what the model makes of the prompts, the output tokens. Residual prompts, also
learned, are added to the prompts' activations inside each block. White box: it runs where the model
runs.
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
"""Sites, the outputs inside a transformer block to which EXPRES can add learned residuals."""

# Site → path of the submodule whose output holds it. q, k and v are thirds of one output.
PARTS = {"norm1": "norm1", "q": "attn.qkv", "k": "attn.qkv", "v": "attn.qkv", "proj": "attn.proj"}
PARTS |= {"norm2": "norm2", "mlp": "mlp"}


class EXPRES(WhiteBox):
    """EXPRES: learned tokens in a frozen ViT, with learned residuals added inside each block.

    In block l, for the rows i of the sequence z that hold prompts::

        u = LN1(z);  u_i += d_norm1[l, i]
        q, k, v = Wq u, Wk u, Wv u;  q_i += d_q[l, i];  k_i += d_k[l, i];  v_i += d_v[l, i]
        y = Wo MSA(q, k, v);  y_i += d_proj[l, i];  z = z + y;  z = z + MLP(LN2(z))

    The features are the mean over the prompts' rows after the last block and the final norm.

    Args:
        prompts: Prompt tokens that the first block reads behind all others, (m, D) float32.
        residuals: Residuals by site, a name in ``SITES``; (depth, m, D) float32 each.

    Reference: section 3 of the paper, as its abstract and figures describe it. Deviation: residuals
    start at zero, and prompts at uniform(-v, v), v = sqrt(6 / (3 P² + D)), as VPT's. A linear map
    reads the mean over the output tokens. The sites ``norm2`` and ``mlp``, off by default, are our
    own. In a model with ``qk_norm``, the residuals of q and k are added before that norm. One m,
    one rate, no weight decay, and AdamW with a warm head, as for all methods here.
    """

    name = "expres"
    title = "EXPRES"
    rate: ClassVar[float] = 0.1
    """Learning rate of prompts and residuals, chosen on validation (``benchmarks/LOG.md``)."""

    def __init__(self, prompts: Tensor, residuals: dict[str, Tensor]) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.residuals = nn.ParameterDict(residuals)

    @classmethod
    def create(cls, setting: Setting) -> EXPRES:
        """Create EXPRES with random prompts and zero residuals.

        Raises:
            ConfigurationError: A site is unknown, or the layout has prompt cells.
        """
        require_layout(setting, cls)
        unknown = [site for site in setting.sites if site not in SITES]
        if unknown:
            raise ConfigurationError(
                f"EXPRES: got the site {unknown[0]!r}, expected some of {', '.join(SITES)}"
            )

        v = math.sqrt(6 / (3 * setting.canvas.patch**2 + setting.width))
        prompts = torch.empty(setting.prompt_tokens, setting.width).uniform_(-v, v)
        residuals = {site: torch.zeros(setting.depth, *prompts.shape) for site in setting.sites}
        return cls(prompts, residuals)

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the (B, D) features of (B, 3, H, W) uint8 images before the prompts are trained.

        They are the mean of the output tokens; the linear head is first fitted to them.
        """
        return self.scores(None, images, surrogate)

    def scores(self, code: None, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the (B, D) features of images: the mean of the output tokens; differentiable.

        Raises:
            ConfigurationError: The model's blocks lack a part that a site needs: ``norm1``,
                ``attn.qkv``, ``attn.proj``, ``norm2`` or ``mlp``.
        """
        tokens = surrogate.backbone.tokens(images)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=surrogate.half):
            return self.output_tokens(tokens, surrogate.backbone).mean(dim=1).float()

    def output_tokens(self, tokens: Tensor, backbone: Backbone) -> Tensor:
        """Return what the model makes of the m prompts, (B, m, D), after the final norm.

        Args:
            tokens: Patch tokens without position embedding, (B, N, D).
            backbone: The frozen model.
        """
        return self.encoded(tokens, backbone)[1]

    def encoded(self, tokens: Tensor, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """Run the frozen model on patch tokens, with the prompts behind all other tokens.

        Args:
            tokens: Patch tokens without position embedding, (B, N, D).
            backbone: The frozen model.

        Returns:
            (B, N, D) patch tokens and (B, m, D) output tokens, both after the final norm.
        """
        m: Any = backbone.model
        image_tokens = m.norm_pre(m.patch_drop(m._pos_embed(tokens)))
        x = torch.cat([image_tokens, self.prompts.expand(len(tokens), -1, -1)], dim=1)

        with self._added(backbone):
            for block in m.blocks:
                x = block(x)
        # timm puts the final norm before or after pooling; the other of the two is the identity.
        x = m.fc_norm(m.norm(x))

        # The order is class token and registers, if there are any, then patches, then prompts.
        end = image_tokens.shape[1]
        return x[:, end - tokens.shape[1] : end], x[:, end:]

    @contextlib.contextmanager
    def _added(self, backbone: Backbone) -> Iterator[None]:
        """Return a context in which hooks add the residuals inside the model's blocks.

        The model's own code, with its fused attention, runs unchanged.
        """
        with contextlib.ExitStack() as hooks:
            # A dict instead of a set: without repetitions, and in a fixed order.
            paths = dict.fromkeys(PARTS[site] for site in self.residuals)
            for number, block in enumerate(backbone.model.blocks):
                for path in paths:
                    hook = _adding(self._residual(path, number))
                    handle = _part(block, path, backbone).register_forward_hook(hook)
                    hooks.callback(handle.remove)
            yield

    def _residual(self, path: str, block: int) -> Tensor:
        """Return the residual for the output of one submodule of a block, (m, D) for m prompts.

        For q, k and v, which are one output, it is (m, 3 D); a site that is off gets zeros.
        """
        # Of all parts, only the joint projection to q, k and v has more than one site.
        if path != PARTS["q"]:
            (site,) = (site for site in self.residuals if PARTS[site] == path)
            residual: Tensor = self.residuals[site][block]
            return residual

        zero = torch.zeros_like(self.prompts)
        return torch.cat(
            [self.residuals[s][block] if s in self.residuals else zero for s in ("q", "k", "v")],
            dim=-1,
        )

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return one optimizer group of the prompts and the residuals, without weight decay."""
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
        """Write a checkpoint that is uploaded to a server and runs there with its model.

        ``tests/contract/adapters/README.md`` describes such a server.

        Args:
            path: Path to write.
            backbone: The model that the prompts were trained on.
            classes: Names of the C task classes.
            beside: Tensors that read the output tokens, including ``mapping.weight`` (D, C) and
                ``mapping.bias`` (C,).
            profile: The server's resize and crop; ``None`` takes the backbone's own.
            card: Card (metadata) about the training, without backbone and mapping; ``None`` for a
                card without such facts.

        Returns:
            The card as it was written.

        Raises:
            CheckpointError: The file cannot be written.
        """
        names = tuple(classes)
        backbone_card = replace(
            BackboneCard.from_json(backbone.card()), features_sha256=backbone.features_sha256()
        )
        complete = replace(
            card or Card(method=HOSTED, classes=names),
            classes=names,
            backbone=backbone_card,
            profile=profile or str(backbone.profile),
            layout=self.layout,
            mapping=MappingCard("linear"),
        )

        tensors = self.state_dict() | dict(beside)
        arrays = {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
        return checkpoint.write(path, complete.to_json(), arrays)


def multiply_adds(tokens: int, width: int, depth: int) -> int:
    """Return the number of multiply-adds of a ViT's blocks for one image: depth (12 n D² + 2 n² D).

    Args:
        tokens: Number of tokens in the sequence, n, with class token and prompts.
        width: Width of a token, D.
        depth: Number of blocks.
    """
    return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)


def _adding(residual: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a forward hook that adds (m, D) residuals to the last m tokens, the prompts."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        added = residual.to(output.dtype).expand(len(output), -1, -1)
        count = residual.shape[0]
        return torch.cat([output[:, :-count], output[:, -count:] + added], dim=1)

    return hook


def _part(block: nn.Module, path: str, backbone: Backbone) -> nn.Module:
    """Return the submodule of a transformer block at a dotted path, such as ``attn.qkv``.

    Raises:
        ConfigurationError: The block has no such submodule.
    """
    try:
        return block.get_submodule(path)
    except AttributeError:
        raise ConfigurationError(
            f"backbone {backbone.name}: got a {type(block).__name__} without {path}, expected the "
            "blocks of a plain ViT for EXPRES; choose another model"
        ) from None
