"""Augmentations of training images: random shifts, flips, rotations and the published recipe.

Every augmentation takes and returns (B, 3, h, w) uint8 images, the pixel type that is sent to the
classifier. The user chooses one that suits the task: digits may be shifted but never flipped;
aerial images may also be rotated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pgn_client.errors import ConfigurationError

SHIFT = 1 / 12
"""Largest distance that an augmentation shifts an image, as a share of the image's side."""
COPIES = 4
"""Number of augmented copies of each training image for fitting a label mapping or linear probe.

Up to 8 copies, nearly every one lowered the log-loss on other images (see ``benchmarks/LOG.md``).
But for a fit to raw images, each copy costs a query to the endpoint.
"""

Augmentation = Callable[[Tensor], Tensor]


def none(images: Tensor) -> Tensor:
    """Return the images unchanged: the augmentation ``none``."""
    return images


def shift(images: Tensor) -> Tensor:
    """Move each image at random by up to a twelfth of its side.

    The pixels of the image's edge are repeated to fill the gap.
    """
    _, _, height, width = images.shape
    # A share of a very small image rounds to 0, which would leave the image where it is.
    dy = max(1, round(height * SHIFT))
    dx = max(1, round(width * SHIFT))

    # Replicate padding works on floats only; uint8 values survive the way there and back.
    padded = F.pad(images.float(), (dx, dx, dy, dy), mode="replicate").to(images.dtype)
    tops = torch.randint(0, 2 * dy + 1, (len(images),)).tolist()
    lefts = torch.randint(0, 2 * dx + 1, (len(images),)).tolist()
    moved = [
        p[:, t : t + height, x : x + width] for p, t, x in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved)


def flip(images: Tensor) -> Tensor:
    """Shift each image at random, and mirror it left to right with probability one half."""
    shifted = shift(images)
    coins = _coins(images)
    return torch.stack([p.flip(-1) if coin else p for p, coin in zip(shifted, coins, strict=True)])


def dihedral(images: Tensor) -> Tensor:
    """Shift, mirror and rotate each image at random, by 0, 90, 180 or 270 degrees.

    Images that are not square are rotated by 0 or 180 degrees only, which keeps their shape.
    """
    square = images.shape[-1] == images.shape[-2]
    # Quarter turns: doubled, they are 0, 2, 4 or 6, so half of the images turn by 180 degrees.
    turns = torch.randint(0, 4, (len(images),)) * (1 if square else 2)
    flipped = flip(images)
    turned = [p.rot90(k, (-2, -1)) for p, k in zip(flipped, turns.tolist(), strict=True)]
    return torch.stack(turned)


def paper(images: Tensor) -> Tensor:
    """Augment images as the published PGN recipe does.

    The steps are random resized crop, color jitter, grayscale, solarize and horizontal flip.

    Color jitter has strength 0.4 and probability 0.8; grayscale and solarize have probability 0.2.
    """
    # Not at the top of the module: torchvision loads slowly, and only this augmentation needs it.
    from torchvision.transforms import v2

    height, width = images.shape[-2:]
    transform = v2.Compose([
        v2.RandomResizedCrop((height, width), antialias=True),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.4)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomSolarize(threshold=128, p=0.2),
        v2.RandomHorizontalFlip(),
    ])  # fmt: skip
    # One call an image, because v2 draws its random numbers once for all images of a call.
    return torch.stack([transform(p) for p in images])


def _coins(images: Tensor) -> list[bool]:
    """Toss a fair coin for each image, and return the results."""
    return [bool(c) for c in (torch.rand(len(images)) < 0.5).tolist()]


REGISTRY: dict[str, Augmentation] = {f.__name__: f for f in (none, shift, flip, dihedral, paper)}


def copies(name: str) -> int:
    """Return the number of copies of each training image that an augmentation should make.

    It is 0 for ``none``, which would only repeat the image.

    Args:
        name: Name of the augmentation.
    """
    return 0 if name == none.__name__ else COPIES


def get(name: str) -> Augmentation:
    """Return an augmentation by its name.

    Args:
        name: One of ``none``, ``shift``, ``flip``, ``dihedral`` and ``paper``.

    Returns:
        A function from (B, 3, h, w) uint8 images to augmented images of the same shape and type.

    Raises:
        ConfigurationError: No augmentation has this name.
    """
    if name not in REGISTRY:
        raise ConfigurationError(
            f"augmentation: got {name!r}, expected one of {', '.join(REGISTRY)}"
        )
    return REGISTRY[name]
