"""Train a linear head or prompts for segmentation, on the support images of a few-shot episode."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgn_client.segmentation.episodes import Episode
from pgn_client.segmentation.linear import (
    VERSIONS,
    LinearHead,
    Versions,
    check_size,
    pixel_loss,
    version,
)
from pgn_client.segmentation.mask_prompts import MaskPrompts
from pgn_client.surrogate.backbone import Backbone

HEAD_RATE = 1e-3
"""Learning rate of the linear head, alone or together with prompts."""
HEAD_STEPS = 20
"""Number of steps per support image in the training of a linear head alone."""


@dataclass(frozen=True)
class Numbers:
    """Hyperparameters of the training of segmentation prompts.

    They were chosen on development episodes, which are not among the reported episodes.

    Attributes:
        steps: Number of AdamW steps; the learning rates fall to zero along half a cosine.
        batch: Largest number of images in a step.
        each: Number of prompts per class.
        rate: Learning rate of the prompts and of the residuals, learned offsets inside the model.
        head_rate: Learning rate of the linear head.
        gate_rate: Learning rate of the prototype scores' two factors, the gate and the scale.
    """

    steps: int = 20
    batch: int = 4
    each: int = 3
    rate: float = 0.1
    head_rate: float = HEAD_RATE
    gate_rate: float = 0.02


def tuned(
    head: LinearHead, seen: Versions, *, batch: int = Numbers.batch, seed: int = 0
) -> LinearHead:
    """Train a linear head further with the cross-entropy per pixel, on fixed patch tokens.

    This is the baseline for prompts: it has the same loss per pixel and the same rotated and
    mirrored versions of the images.

    Args:
        head: Linear head to start from; it does not change.
        seen: Patch tokens and masks of all versions of the training images.
        batch: Number of versions of images in a step.
        seed: Seed for the draw of the versions.

    Returns:
        The trained linear head.
    """
    noise = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(head.weight.clone())
    bias = nn.Parameter(head.bias.clone())

    def loss() -> Tensor:
        rows = torch.randint(0, len(seen.masks), (batch,), generator=noise)
        return pixel_loss(seen.tokens[rows] @ weight + bias, seen.masks[rows])

    # `seen` holds every image VERSIONS times, and the number of steps is per image.
    steps = HEAD_STEPS * len(seen.masks) // VERSIONS
    minimise(loss, [{"params": [weight, bias], "lr": HEAD_RATE}], steps)
    return LinearHead(weight.detach(), bias.detach())


def fit_prompts(
    episode: Episode,
    backbone: Backbone,
    head: LinearHead | None,
    *,
    prototypes: bool = True,
    numbers: Numbers | None = None,
    seed: int = 0,
) -> MaskPrompts:
    """Train segmentation prompts on the support images of a few-shot episode.

    The query images are not read.

    Args:
        episode: Episode with images of the model's input size.
        backbone: The model; it stays frozen.
        head: Linear head to start from; ``None`` trains without one.
        prototypes: Whether patches are also scored by their similarity to class prototypes.
        numbers: Hyperparameters of the training; ``None`` for the defaults.
        seed: Seed for the prompts, and for the order and versions of the images.

    Raises:
        ShapeError: The images do not have the model's input size.
        ConfigurationError: There is neither a head nor prototypes.
    """
    check_size(backbone, episode.support)
    numbers = numbers or Numbers()

    # The global seed, because the prompts are drawn inside EXPRES, which takes no generator.
    torch.manual_seed(seed)
    model = MaskPrompts.create(
        backbone, len(episode.classes), numbers.each, head, prototypes=prototypes
    )
    batches = drawn(episode, numbers.batch)
    minimise(lambda: model.loss(*next(batches), backbone), groups(model, numbers), numbers.steps)
    return model


def groups(model: MaskPrompts, numbers: Numbers) -> list[dict[str, Any]]:
    """Return the parameters of a segmentation model in optimizer groups, with their learning rates.

    Args:
        model: The segmentation model to train.
        numbers: Hyperparameters, for the learning rates.
    """
    head = [] if model.head is None else list(model.head)
    return [
        {"params": list(model.prompts.parameters()), "lr": numbers.rate},
        {"params": head, "lr": numbers.head_rate},
        # With one term these may have no gradient; AdamW then leaves them as they are.
        {"params": [model.gate, model.log_scale], "lr": numbers.gate_rate},
    ]


def drawn(episode: Episode, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of an episode's support images and masks, without end.

    Each image is rotated and mirrored at random. Every image is used once before any is used again,
    in a new random order each time.

    Args:
        episode: The few-shot episode.
        batch: Largest number of images in a batch.

    Yields:
        Images (b, 3, H, W) and masks (b, H, W) of a batch of b images.
    """
    while True:
        for rows in torch.randperm(len(episode.support)).split(batch):
            numbers = torch.randint(0, VERSIONS, (len(rows),)).tolist()
            images = []
            masks = []
            for row, number in zip(rows, numbers, strict=True):
                images.append(version(episode.support[row], number))
                masks.append(version(episode.support_masks[row], number))
            yield torch.stack(images), torch.stack(masks)


def minimise(loss: Callable[[], Tensor], parameters: Iterable[dict[str, Any]], steps: int) -> None:
    """Minimize a loss with AdamW, without weight decay; the parameters change in place.

    Args:
        loss: Returns the loss of the next batch.
        parameters: Optimizer groups with their learning rates.
        steps: Number of steps; the learning rates fall to zero along half a cosine.
    """
    # Without weight decay AdamW is Adam; it is named like in the other trainings.
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        # LambdaLR calls this once before the first step, also where there are no steps.
        optimizer,
        lambda step: (1 + math.cos(math.pi * step / max(steps, 1))) / 2,
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
