"""Segmentation with EXPRES, which adds learned prompt tokens inside a frozen vision transformer.

Each class has its own prompts. The model turns them into output tokens, whose mean is the prototype
of the class: patches that resemble it get a high score.
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
"""Factor of the cosine similarities between patches and class prototypes, before training."""
GATE = 1.0
"""Gate, the weight of the prototype scores beside the linear head's scores, before training.

A gate that started at 0, where the model equals the linear head, hardly grew in training (see
``benchmarks/LOG.md``).
"""


class MaskPrompts(nn.Module):
    """A segmentation model: prompts pass through a frozen model and help to score its patches.

    x are the patch tokens and o the output tokens of the prompts, both after the final norm. There
    are r output tokens for each of C classes::

        prototype_c = mean of o_{c r}, …, o_{c r + r - 1}
        prototype score of patch p and class c = scale · cos(x_p, prototype_c)
        score = x_p W + b + gate · prototype score

    Patches attend to the prompts, so x differs from the patch tokens of the image alone. The first
    term, x_p W + b, or the second, the prototype score, can be left out; then there is no gate.

    Args:
        prompts: EXPRES with C r prompts, grouped by class.
        classes: Number C of classes, the background included.
        head: Linear head whose W and b the training starts from; ``None`` leaves out x_p W + b.
        prototypes: Whether the prototype scores are added.

    Reference: Das et al., "Learning Expressive Prompting With Residuals for Vision Transformers",
    CVPR 2023, arXiv 2303.15591, which reports semantic segmentation. The step from tokens to
    masks is ours.

    Raises:
        ConfigurationError: Both terms are left out, or the prompts cannot be divided evenly among
            the classes.
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
        self.prompts = prompts
        self.classes = classes
        self.prototypes = prototypes
        self.head = (
            None if head is None else nn.ParameterList([head.weight.clone(), head.bias.clone()])
        )
        # The logarithm is trained, so that the scale stays positive.
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
        """Create a segmentation model with random prompts, on the backbone's device.

        Args:
            backbone: The frozen model.
            classes: Number C of classes, the background included.
            each: Number r of prompts per class.
            head: Linear head on the patch tokens to start from; ``None`` for no such term.
            prototypes: Whether scores by the classes' prototypes are added.
        """
        canvas = Canvas.build(backbone.input_size, backbone.patch_size, "full")
        setting = Setting(
            canvas, classes, backbone.width, backbone.depth, prompt_tokens=classes * each
        )
        model = cls(EXPRES.create(setting), classes, head, prototypes=prototypes)
        return model.to(backbone.device)

    def forward(self, images: Tensor, backbone: Backbone) -> Tensor:
        """Return the class scores of the patches of images.

        Args:
            images: Images, (n, 3, H, W) uint8.
            backbone: The frozen model.

        Returns:
            Scores of C classes for the N patches of each image, (n, N, C) float32.
        """
        return self._together(*self.parts(images, backbone))

    def loss(self, images: Tensor, masks: Tensor, backbone: Backbone) -> Tensor:
        """Return the training loss: the mean cross-entropy per pixel of the class scores.

        If the model has both a linear head and prototypes, the cross-entropy of the prototype
        scores alone is added. Without that, the head, which already starts well, would leave the
        prototypes nothing to learn.

        Args:
            images: Images, (n, 3, H, W) uint8.
            masks: Masks of the images, (n, H, W) uint8.
            backbone: The frozen model.
        """
        by_head, by_prototypes = self.parts(images, backbone)
        loss = pixel_loss(self._together(by_head, by_prototypes), masks)
        if by_head is None or by_prototypes is None:
            return loss
        return loss + pixel_loss(by_prototypes, masks)

    @torch.no_grad()
    def predict(self, images: Tensor, backbone: Backbone) -> Tensor:
        """Return the predicted class of each pixel.

        Args:
            images: Images, (n, 3, H, W) uint8.
            backbone: The frozen model.

        Returns:
            Class indices, (n, H, W) int64, on the CPU.

        Raises:
            ShapeError: The images do not have the model's input size.
        """
        check_size(backbone, images)
        size = images.shape[-1]
        parts = []
        for batch in images.split(BATCH):
            scores = enlarged(self(batch, backbone), size)
            parts.append(scores.argmax(1).cpu())
        return torch.cat(parts)

    def save(
        self,
        path: str | os.PathLike[str],
        backbone: Backbone,
        classes: Sequence[str],
        profile: str | None = None,
    ) -> dict[str, Any]:
        """Save the model to a file, for a server that hosts adapters and answers ``/v1/segment``.

        The file's format is in ``tests/contract/adapters/README.md``.

        Args:
            path: Path to write.
            backbone: The model that the prompts were trained on.
            classes: C class names, the background first.
            profile: The server's resize and crop; ``None`` for the backbone's own preprocessing.

        Returns:
            The card, the metadata that was written to the file.

        Raises:
            ConfigurationError: The number of names is not C.
            CheckpointError: The file cannot be written.
        """
        if len(classes) != self.classes:
            raise ConfigurationError(
                f"mask prompts: got {len(classes)} names, expected one for each of "
                f"{self.classes} classes"
            )

        # The format has both terms always; a term that is left out is written as zeros. It has no
        # gate, so the gate is a factor of the scale; so is `prototypes`, 0 or 1.
        width = self.prompts.prompts.shape[1]
        weight, bias = self.head or (torch.zeros(width, self.classes), torch.zeros(self.classes))
        gate = 1 if self.head is None else self.gate
        scale = self.log_scale.exp() * gate * self.prototypes
        tensors = {
            "mapping.weight": weight,
            "mapping.bias": bias,
            "prototypes.weight": scale.reshape(1),
        }
        return self.prompts.save(path, backbone, classes, tensors, profile=profile)

    def parts(self, images: Tensor, backbone: Backbone) -> tuple[Tensor | None, Tensor | None]:
        """Return the scores by the linear head and the scores by the prototypes, separately.

        Args:
            images: Images, (n, 3, H, W) uint8.
            backbone: The frozen model.

        Returns:
            Scores of the head and scores of the prototypes, each (n, N, C) for N patches and C
            classes; ``None`` for the scores that this model leaves out.
        """
        tokens = backbone.tokens(images.to(backbone.device))
        patches, outputs = self.prompts.encoded(tokens, backbone)
        by_head = None if self.head is None else LinearHead(*self.head)(patches)
        by_prototypes = self.prototype_scores(patches, outputs) if self.prototypes else None
        return by_head, by_prototypes

    def _together(self, by_head: Tensor | None, by_prototypes: Tensor | None) -> Tensor:
        """Return the head's scores plus the gated prototype scores.

        If one of the two is ``None``, the other is returned as it is, without the gate.
        """
        if by_head is None or by_prototypes is None:
            # The constructor refuses a model without any term, so exactly one is left.
            (single,) = (part for part in (by_head, by_prototypes) if part is not None)
            return single
        return by_head + self.gate * by_prototypes

    def prototype_scores(self, patches: Tensor, outputs: Tensor) -> Tensor:
        """Score patches by their cosine similarity to the prototype of each class.

        Args:
            patches: Patch tokens after the final norm, (n, N, D).
            outputs: Output tokens of the prompts after the final norm, (n, C r, D): r tokens for
                each of C classes.

        Returns:
            Scores, (n, N, C): the cosines times the trained scale.
        """
        prototypes = outputs.unflatten(1, (self.classes, -1)).mean(2)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(prototypes, dim=-1).transpose(1, 2)
        return self.log_scale.exp() * cosines
