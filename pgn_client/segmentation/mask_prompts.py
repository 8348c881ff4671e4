"""EXPRES for masks: what comes out of a class's prompts is the class's prototype, held against
every patch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting.methods import Setting
from pgn_client.prompting.methods.expres import EXPRES
from pgn_client.segmentation.linear import BATCH, LinearHead, check_size, enlarged, pixel_loss
from pgn_client.surrogate.backbone import Backbone

SCALE = 10.0
"""Of cosines, before the training."""
GATE = 1.0
"""Before the training. From 0, where it begins as the linear head, the gate hardly opened (see
``LOG.md``).
"""


class MaskPrompts(nn.Module):
    """Scores of patches, from prompts that travel through the frozen model beside them.

    With patch tokens x and output tokens o after the final norm, r output tokens for each of C
    classes::

        prototype_c = mean of o_{c r}, …, o_{c r + r - 1}
        prototype score of patch p and class c = scale · cos(x_p, prototype_c)
        score = x_p W + b + gate · prototype score

    The patches read the prompts, so x is not what the frozen model says of the image alone. With
    one term only there is no gate.

    Args:
        prompts: with C r of them.
        classes: C, background included.
        head: W and b to start from; ``None`` leaves that term out, and the gate too.
        prototypes: whether the prototype scores are added.

    Reference: Das et al., "Learning Expressive Prompting With Residuals for Vision Transformers",
    CVPR 2023, arXiv 2303.15591, reports semantic segmentation. How tokens become masks is our own
    here.

    Raises:
        ConfigurationError: no term is left, or prompts that cannot be shared out evenly.
    """

    def __init__(
        self, prompts: EXPRES, classes: int, head: LinearHead | None, *, prototypes: bool = True
    ) -> None:
        super().__init__()
        if head is None and not prototypes:
            raise ConfigurationError(
                "mask prompts: got neither head nor prototypes, expected one of them or both"
            )
        if len(prompts.prompts) % classes or not len(prompts.prompts):
            raise ConfigurationError(
                f"mask prompts: got {len(prompts.prompts)} prompts, expected as many for each of "
                f"{classes} classes"
            )
        self.prompts, self.classes, self.prototypes = prompts, classes, prototypes
        self.head = (
            None if head is None else nn.ParameterList([head.weight.clone(), head.bias.clone()])
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.gate = nn.Parameter(torch.tensor(GATE))

    @classmethod
    def create(
        cls,
        backbone: Backbone,
        classes: int,
        each: int,
        head: LinearHead | None,
        *,
        prototypes: bool = True,
    ) -> MaskPrompts:
        """Draw prompts, ``each`` of them for every class; residuals are at the method's own
        sites.
        """
        canvas = Canvas.build(backbone.input_size, backbone.patch_size, "full")
        setting = Setting(
            canvas, classes, backbone.width, backbone.depth, prompt_tokens=classes * each
        )
        return cls(EXPRES.create(setting), classes, head, prototypes=prototypes).to(backbone.device)

    def forward(self, images: Tensor, backbone: Backbone) -> Tensor:
        """(n, 3, H, W) uint8 → (n, N, C) float32 scores of the patches."""
        return self._together(*self.parts(images, backbone))

    def loss(self, images: Tensor, masks: Tensor, backbone: Backbone) -> Tensor:
        """Cross-entropy by pixels of the scores, and where there is a head also of the prototypes'
        alone.

        Without the second term the head, which starts well, would leave the prototypes nothing to
        learn.

        Args:
            images: (n, 3, H, W) uint8.
            masks: (n, H, W) uint8.
            backbone: the frozen model.
        """
        by_head, by_prototypes = self.parts(images, backbone)
        loss = pixel_loss(self._together(by_head, by_prototypes), masks)
        if by_head is None or by_prototypes is None:
            return loss
        return loss + pixel_loss(by_prototypes, masks)

    @torch.no_grad()
    def predict(self, images: Tensor, backbone: Backbone) -> Tensor:
        """(n, 3, H, W) uint8 → (n, H, W) int64 classes of the pixels.

        Raises:
            ShapeError: images of another size than the model's.
        """
        check_size(backbone, images)
        size = images.shape[-1]
        return torch.cat(
            [enlarged(self(x, backbone), size).argmax(1).cpu() for x in images.split(BATCH)]
        )

    def save(
        self,
        path: str | os.PathLike[str],
        backbone: Backbone,
        classes: Sequence[str],
        profile: str | None = None,
    ) -> dict[str, Any]:
        """Write what a server of adapters hosts for ``/v1/segment``; see
        ``tests/contract/adapters/README.md``.

        Args:
            path: of the file.
            backbone: the model that the prompts were trained on.
            classes: C names, the background's first.
            profile: the server's resize and crop; ``None`` takes the backbone's own.

        Returns:
            The card.

        Raises:
            ConfigurationError: other classes than the prompts have.
            CheckpointError: the file cannot be written.
        """
        if len(classes) != self.classes:
            raise ConfigurationError(
                f"mask prompts: got {len(classes)} names, expected one for each of "
                f"{self.classes} classes"
            )
        width = self.prompts.prompts.shape[1]
        weight, bias = self.head or (torch.zeros(width, self.classes), torch.zeros(self.classes))
        scale = self.log_scale.exp() * (1 if self.head is None else self.gate) * self.prototypes
        beside = {
            "mapping.weight": weight,
            "mapping.bias": bias,
            "prototypes.weight": scale.reshape(1),
        }
        return self.prompts.save(path, backbone, classes, beside, profile=profile)

    def parts(self, images: Tensor, backbone: Backbone) -> tuple[Tensor | None, Tensor | None]:
        """(n, 3, H, W) uint8 → the head's and the prototypes' scores, (n, N, C); ``None`` for what
        is left out.
        """
        patches, outputs = self.prompts.encoded(
            backbone.tokens(images.to(backbone.device)), backbone
        )
        by_head = None if self.head is None else LinearHead(*self.head)(patches)
        return by_head, self.prototype_scores(patches, outputs) if self.prototypes else None

    def _together(self, by_head: Tensor | None, by_prototypes: Tensor | None) -> Tensor:
        if by_head is None or by_prototypes is None:
            (alone,) = (part for part in (by_head, by_prototypes) if part is not None)
            return alone
        return by_head + self.gate * by_prototypes

    def prototype_scores(self, patches: Tensor, outputs: Tensor) -> Tensor:
        """(n, N, D) patch tokens and (n, C r, D) output tokens → (n, N, C)."""
        prototypes = outputs.unflatten(1, (self.classes, -1)).mean(2)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)
        return self.log_scale.exp() * cosines
