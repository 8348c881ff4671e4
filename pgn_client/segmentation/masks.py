"""A folder of images with masks: ``images/NAME.png`` and ``masks/NAME.png``, and ``classes.json``
beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pgn_client.arrays import Pixels
from pgn_client.errors import ConfigurationError, ImageError, ShapeError
from pgn_client.imaging.codecs import open_image
from pgn_client.segmentation.iou import IGNORED


@dataclass(frozen=True)
class Masked:
    """Images with masks.

    Attributes:
        images: (n, 3, H, W) uint8, RGB.
        masks: (n, H, W) uint8 in [0, C), or ``IGNORED``; 0 is the background.
        classes: the C class names, the background's first.
    """

    images: Tensor
    masks: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def load_masked(folder: Path) -> Masked:
    """Read one split.

    Args:
        folder: with ``images/*.png`` and ``masks/*.png``, 8-bit grey or with a palette; beside it
            ``classes.json``, a list of names, the background's first.

    Returns:
        The images in the order of their names; all have one size.

    Raises:
        ConfigurationError: no images, a mask or image without its partner, a class that has no
            name, or no readable ``classes.json``.
        ShapeError: images or masks of another size.
        ImageError: a file that is no image, or a mask in colour.
    """
    classes = _classes(folder.parent / "classes.json")
    names = _names(folder)
    images = [np.asarray(open_image(folder / "images" / name)) for name in names]
    masks = [_mask(folder / "masks" / name, len(classes)) for name in names]
    for name, image, mask in zip(names, images, masks, strict=True):
        if image.shape[:2] != mask.shape:
            raise ShapeError(
                f"mask {name} in {folder}: got {mask.shape}, expected its image's {image.shape[:2]}"
            )
        if image.shape != images[0].shape:
            raise ShapeError(
                f"image {name} in {folder}: got {image.shape[:2]}, expected "
                f"{images[0].shape[:2]} as of the "
                "first; bring all to one size"
            )
    return Masked(
        torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), _stacked(masks), classes
    )


def _stacked(masks: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(masks))


def _names(folder: Path) -> list[str]:
    """Return the names of images, each of which has a mask."""
    images, masks = (
        {p.name for p in (folder / kind).glob("*.png")} for kind in ("images", "masks")
    )
    if not images:
        raise ConfigurationError(
            f"masked images: got none in {folder / 'images'}, expected NAME.png"
        )
    for name in sorted(images ^ masks):
        there, missing = ("images", "masks") if name in images else ("masks", "images")
        raise ConfigurationError(
            f"masked images: got {there}/{name} alone in {folder}, expected {missing}/{name} "
            "too; add or remove one"
        )
    return sorted(images)


def _mask(path: Path, classes: int) -> Pixels:
    """(H, W) uint8; values of a palette are its indices."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise ImageError(
                    f"mask {path}: got mode {image.mode}, expected 8-bit grey or a palette (L, P)"
                )
            mask = np.array(image, dtype=np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise ImageError(f"mask {path}: got {error}, expected a PNG; write it anew") from error
    foreign = np.setdiff1d(mask, [*range(classes), IGNORED])
    if len(foreign):
        raise ConfigurationError(
            f"mask {path}: got the value {foreign[0]}, expected 0 to {classes - 1}, or {IGNORED} "
            "for ignored; name the "
            "class in classes.json"
        )
    return mask


def _classes(path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"classes {path}: got {error}, expected a JSON list of names"
        ) from error
    if (
        not isinstance(names, list)
        or not 2 <= len(names) <= IGNORED
        or not all(isinstance(n, str) for n in names)
    ):
        raise ConfigurationError(
            f"classes {path}: expected a JSON list of 2 to {IGNORED} names, the background's first"
        )
    return tuple(names)
