"""Augmentation of fitted images: whole grey values in, whole grey values out, so that training
sees what is sent.

Which one a task allows only its owner knows: digits may be shifted, never flipped; aerial images
have no up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pgn_client.errors import ConfigurationError

SHIFT = 1 / 12  # of the side, at most
COPIES = 4
"""Augmented copies of each training image that a label mapping or linear probe may learn from
(see ``LOG.md``).
"""

Augmentation = Callable[[Tensor], Tensor]


def none(images: Tensor) -> Tensor:
    """Leave the images alone."""
    return images


def shift(images: Tensor) -> Tensor:
    """Move each image by up to a twelfth of its side; its edge is repeated."""
    _, _, height, width = images.shape
    dy, dx = max(1, round(height * SHIFT)), max(1, round(width * SHIFT))
    padded = F.pad(images.float(), (dx, dx, dy, dy), mode="replicate").to(images.dtype)
    tops = torch.randint(0, 2 * dy + 1, (len(images),)).tolist()
    lefts = torch.randint(0, 2 * dx + 1, (len(images),)).tolist()
    moved = [
        p[:, t : t + height, x : x + width] for p, t, x in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved)


def flip(images: Tensor) -> Tensor:
    """Shift, and mirror half of the images left to right."""
    return torch.stack(
        [p.flip(-1) if coin else p for p, coin in zip(shift(images), _coins(images), strict=True)]
    )


def dihedral(images: Tensor) -> Tensor:
    """Shift, mirror half, and turn by 0, 90, 180 or 270 degrees (0 or 180 where the box is not
    square).
    """
    square = images.shape[-1] == images.shape[-2]
    turns = torch.randint(0, 4, (len(images),)) * (1 if square else 2)
    turned = [p.rot90(k, (-2, -1)) for p, k in zip(flip(images), turns.tolist(), strict=True)]
    return torch.stack(turned)


def paper(images: Tensor) -> Tensor:
    """The published recipe: RandomResizedCrop, colour jitter 0.4 (p 0.8), grey (p 0.2), solarize (p
    0.2), flip.
    """
    from torchvision.transforms import v2

    height, width = images.shape[-2:]
    transform = v2.Compose([
        v2.RandomResizedCrop((height, width), antialias=True),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.4)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomSolarize(threshold=128, p=0.2),
        v2.RandomHorizontalFlip(),
    ])  # fmt: skip
    return torch.stack([transform(p) for p in images])


def _coins(images: Tensor) -> list[bool]:
    return [bool(c) for c in (torch.rand(len(images)) < 0.5).tolist()]


REGISTRY: dict[str, Augmentation] = {f.__name__: f for f in (none, shift, flip, dihedral, paper)}


def copies(name: str) -> int:
    """How many augmented copies of each training image there are; copies of images left alone
    teach nothing.
    """
    return 0 if name == none.__name__ else COPIES


def get(name: str) -> Augmentation:
    """Return an augmentation, (B, 3, h, w) uint8 → the same, by name.

    Raises:
        ConfigurationError: unknown.
    """
    if name not in REGISTRY:
        raise ConfigurationError(
            f"augmentation: got {name!r}, expected one of {', '.join(REGISTRY)}"
        )
    return REGISTRY[name]
