"""Training on a support set, by pixels: of a linear head alone, and of prompts."""

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
HEAD_STEPS = 20
"""Steps of a linear head alone for each support image."""


@dataclass(frozen=True)
class Numbers:
    """Numbers of the prompts' training; all were chosen on development episodes, which no table
    shows.

    Attributes:
        steps: of AdamW; its rates fall to zero as half a cosine.
        batch: images of a step, at most.
        each: prompts of a class.
        rate: learning rate of prompts and residuals.
        head_rate: of the linear head.
        gate_rate: of gate and scale.
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
    """Train a linear head on by the pixels' cross-entropy, on tokens that stay as they are.

    What prompts are compared with: the same loss and the same versions of the images.

    Args:
        head: where to start.
        seen: the images to learn from.
        batch: versions of images in a step.
        seed: of their order.
    """
    noise = torch.Generator().manual_seed(seed)
    weight, bias = (nn.Parameter(p.clone()) for p in (head.weight, head.bias))

    def loss() -> Tensor:
        rows = torch.randint(0, len(seen.masks), (batch,), generator=noise)
        return pixel_loss(seen.tokens[rows] @ weight + bias, seen.masks[rows])

    minimise(
        loss,
        [{"params": [weight, bias], "lr": HEAD_RATE}],
        HEAD_STEPS * len(seen.masks) // VERSIONS,
    )
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
    """Train prompts on an episode's support; its queries are not looked at.

    Args:
        episode: images at the model's size.
        backbone: the model; it stays frozen.
        head: where the linear head starts; ``None`` leaves it out.
        prototypes: whether prototype scores are added.
        numbers: of the training.
        seed: of prompts, order and versions of the images.

    Raises:
        ShapeError: images of another size than the model's.
        ConfigurationError: neither head nor prototypes.
    """
    check_size(backbone, episode.support)
    numbers = numbers or Numbers()
    torch.manual_seed(seed)
    model = MaskPrompts.create(
        backbone, len(episode.classes), numbers.each, head, prototypes=prototypes
    )
    batches = drawn(episode, numbers.batch)
    minimise(lambda: model.loss(*next(batches), backbone), groups(model, numbers), numbers.steps)
    return model


def groups(model: MaskPrompts, numbers: Numbers) -> list[dict[str, Any]]:
    """Return optimiser groups of all that learns."""
    head = [] if model.head is None else list(model.head)
    return [
        {"params": list(model.prompts.parameters()), "lr": numbers.rate},
        {"params": head, "lr": numbers.head_rate},
        {"params": [model.gate, model.log_scale], "lr": numbers.gate_rate},
    ]


def drawn(episode: Episode, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (b, 3, H, W) images and (b, H, W) masks of the support without end, each turned and
    mirrored at random.

    Every image comes once before any comes again, in a new order each time.
    """
    while True:
        for rows in torch.randperm(len(episode.support)).split(batch):
            turns = torch.randint(0, VERSIONS, (len(rows),)).tolist()
            images = [version(episode.support[i], v) for i, v in zip(rows, turns, strict=True)]
            masks = [version(episode.support_masks[i], v) for i, v in zip(rows, turns, strict=True)]
            yield torch.stack(images), torch.stack(masks)


def minimise(loss: Callable[[], Tensor], parameters: Iterable[dict[str, Any]], steps: int) -> None:
    """Take steps of AdamW without decay of weights; the rates fall to zero as half a cosine."""
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: (1 + math.cos(math.pi * i / max(steps, 1))) / 2
    )
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()
