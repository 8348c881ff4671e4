"""Few-shot episodes: small segmentation tasks that are drawn at random.

An episode has a few classes, a few support images of each to train on, and query images to test on.
"""

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
    """One small segmentation task of N classes and the background.

    Attributes:
        classes: N + 1 class names, the background first.
        support: Images to train on, K for each of N classes, (N K, 3, H, W) uint8.
        support_masks: Masks of the support images, (N K, H, W) uint8 in [0, N] or ``IGNORED``.
        query: Q images to test on, (Q, 3, H, W) uint8.
        query_masks: Masks of the query images, (Q, H, W) uint8 in [0, N] or ``IGNORED``.
    """

    classes: tuple[str, ...]
    support: Tensor
    support_masks: Tensor
    query: Tensor
    query_masks: Tensor


def sample(
    train: Masked, test: Masked, *, ways: int, shots: int, queries: int, seed: int
) -> Episode:
    """Draw a few-shot episode at random: classes, support images and query images.

    Only images that show no class outside the episode are drawn. So no other class has to be
    ignored or counted as background. The classes take turns: for each class in turn, an image that
    shows the class is drawn, until there are enough. No image is drawn twice.

    Args:
        train: Images that the support is drawn from.
        test: Images that the queries are drawn from, with the same classes as ``train``.
        ways: Number N of classes without the background.
        shots: Number K of support images per class; they may show other classes of the episode
            as well.
        queries: Number Q of query images, at least N so that each class is shown.
        seed: Seed for the draw.

    Raises:
        ConfigurationError: The classes of ``train`` and ``test`` differ, there are too few classes
            or images, or there are fewer queries than classes.
    """
    if train.classes != test.classes:
        raise ConfigurationError(
            f"episode: got test classes {test.classes}, expected those of train {train.classes}"
        )
    if not 1 <= ways < len(train.classes) or shots < 1 or queries < ways:
        raise ConfigurationError(
            f"episode: got {ways} ways, {shots} shots and {queries} queries, expected 1 to "
            f"{len(train.classes) - 1} ways, at least 1 shot, and at least as many queries as ways"
        )

    rng = np.random.default_rng(seed)
    # Sorted, so that the numbers of the classes do not depend on the order of the draw.
    chosen = np.sort(rng.choice(np.arange(1, len(train.classes)), size=ways, replace=False))
    support = _images(train, chosen, ways * shots, rng)
    query = _images(test, chosen, queries, rng)
    names = [train.classes[c] for c in chosen]
    return Episode(
        (train.classes[0], *names),
        train.images[support],
        _renumbered(train.masks[support], chosen),
        test.images[query],
        _renumbered(test.masks[query], chosen),
    )


def _images(masked: Masked, chosen: Integers, count: int, rng: np.random.Generator) -> list[int]:
    """Draw images that show no class except the chosen ones and the background.

    The chosen classes take turns, and each time an image that shows the class is drawn.

    Args:
        masked: Images and masks to draw from.
        chosen: Indices of the chosen classes.
        count: Number of images to draw.
        rng: Random number generator.

    Returns:
        Indices of the drawn images, all different.

    Raises:
        ConfigurationError: There are too few images.
    """
    shown = [set(np.unique(mask)) - {0, IGNORED} for mask in masked.masks.numpy()]
    candidates = [int(i) for i in rng.permutation(len(shown)) if shown[i] <= set(chosen)]

    drawn: list[int] = []
    for turn in range(count):
        class_index = chosen[turn % len(chosen)]
        drawn.append(_first(i for i in candidates if class_index in shown[i] and i not in drawn))
    return drawn


def _first(images: Iterable[int]) -> int:
    """Return the first of the images that remain for a draw.

    Args:
        images: Indices of the images.

    Raises:
        ConfigurationError: No image remains.
    """
    for image in images:
        return image
    raise ConfigurationError(
        "episode: got too few images that show no class but the chosen, expected more; draw fewer "
        "images or more ways"
    )


def _renumbered(masks: Tensor, chosen: Integers) -> Tensor:
    """Return masks whose chosen classes are numbered 1, 2, … in the order of ``chosen``.

    Background and ignored pixels keep their values; pixels of other classes become ignored.
    """
    # One entry for each uint8 value, so that indexing with a mask renumbers it in one step.
    table = torch.full((256,), IGNORED, dtype=torch.uint8)
    table[0] = 0
    table[torch.from_numpy(chosen)] = torch.arange(1, len(chosen) + 1, dtype=torch.uint8)
    return table[masks.long()]
