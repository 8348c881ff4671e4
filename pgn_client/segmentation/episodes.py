"""Few-shot episodes: some classes, few images of each to learn from, others to be tested on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgn_client.arrays import Integers
from pgn_client.errors import ConfigurationError
from pgn_client.segmentation.iou import IGNORED
from pgn_client.segmentation.masks import Masked


@dataclass(frozen=True)
class Episode:
    """One task of N classes and the background.

    Attributes:
        classes: N + 1 names, the background's first.
        support: (N K, 3, H, W) uint8 images to learn from. support_masks: (N K, H, W) uint8 in
            [0, N], or ``IGNORED``.
        query: (Q, 3, H, W) uint8 images to be tested on. query_masks: (Q, H, W) uint8.
    """

    classes: tuple[str, ...]
    support: Tensor
    support_masks: Tensor
    query: Tensor
    query_masks: Tensor


def sample(
    train: Masked, test: Masked, *, ways: int, shots: int, queries: int, seed: int
) -> Episode:
    """Draw an episode.

    Only images are taken that show no class but the episode's: nothing has to be ignored, and no
    texture is called background. Each class in turn gives an image that shows it, until there are
    enough; none is taken twice.

    Args:
        train: where the support comes from.
        test: where the queries come from; the same classes.
        ways: N classes, without the background.
        shots: K support images for each class; they may show another of the N as well.
        queries: Q query images, at least N, so that each class is there.
        seed: of the draw.

    Raises:
        ConfigurationError: classes that differ, more classes or images than there are, or too few
            queries.
    """
    if train.classes != test.classes:
        raise ConfigurationError(
            f"episode: got test classes {test.classes}, expected those of train {train.classes}"
        )
    if not 1 <= ways < len(train.classes) or shots < 1 or queries < ways:
        raise ConfigurationError(
            f"episode: got {ways} ways, {shots} shots and {queries} queries, expected 1 to "
            f"{len(train.classes) - 1} "
            "ways, 1 shot or more, and as many queries as ways or more"
        )
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(np.arange(1, len(train.classes)), size=ways, replace=False))
    support = _images(train, chosen, ways * shots, rng)
    query = _images(test, chosen, queries, rng)
    return Episode(
        (train.classes[0], *(train.classes[c] for c in chosen)),
        train.images[support],
        _renumbered(train.masks[support], chosen),
        test.images[query],
        _renumbered(test.masks[query], chosen),
    )


def _images(masked: Masked, chosen: Integers, count: int, rng: np.random.Generator) -> list[int]:
    """Draw images that show nothing but the chosen classes, for each class in turn one that shows
    it.
    """
    shown = [set(np.unique(mask)) - {0, IGNORED} for mask in masked.masks.numpy()]
    order = [int(i) for i in rng.permutation(len(shown)) if shown[i] <= set(chosen)]
    drawn: list[int] = []
    for number in range(count):
        wanted = chosen[number % len(chosen)]
        drawn.append(_first(i for i in order if wanted in shown[i] and i not in drawn))
    return drawn


def _first(images: Iterable[int]) -> int:
    for image in images:
        return image
    raise ConfigurationError(
        "episode: got too few images that show no class but the chosen, expected more; ask for "
        "fewer images, "
        "or for more ways"
    )


def _renumbered(masks: Tensor, chosen: Integers) -> Tensor:
    """Call the chosen classes 1, 2, …; background and what is ignored stay."""
    table = torch.full((256,), IGNORED, dtype=torch.uint8)
    table[0] = 0
    table[torch.from_numpy(chosen)] = torch.arange(1, len(chosen) + 1, dtype=torch.uint8)
    return table[masks.long()]
