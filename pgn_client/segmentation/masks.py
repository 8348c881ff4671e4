"""Images with segmentation masks, read from a folder.

The folder has ``images/NAME.png`` and ``masks/NAME.png``. The class names are in ``classes.json``
next to the folder.
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
from pgn_client.imaging.opening import open_regular
from pgn_client.segmentation.iou import IGNORED


@dataclass(frozen=True)
class Masked:
    """Images with segmentation masks, which give the class of each pixel.

    Attributes:
        images: RGB images, (n, 3, H, W) uint8.
        masks: Masks, (n, H, W) uint8 in [0, C) or ``IGNORED``; 0 is the background.
        classes: The C class names, the background first.
    """

    images: Tensor
    masks: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def load_masked(folder: Path) -> Masked:
    """Read the images and segmentation masks of one split, such as the training images.

    Args:
        folder: Folder with ``images/*.png`` and ``masks/*.png``, the masks 8-bit gray or with a
            palette. Its parent has ``classes.json``, a list of class names, the background first.

    Returns:
        The images and masks, sorted by file name; all have one size.

    Raises:
        ConfigurationError: There are no images, an image or mask has no partner, a mask has a value
            without a class name, or ``classes.json`` cannot be read.
        ShapeError: The images differ in size, or a mask has another size than its image.
        ImageError: A file is not an image, or a mask is in color.
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
                f"image {name} in {folder}: got {image.shape[:2]}, expected the first image's "
                f"{images[0].shape[:2]}; resize all images and masks to one size"
            )

    # The copy has its channels first in memory; torch would keep the strides of the view.
    channels_first = np.stack(images).transpose(0, 3, 1, 2).copy()
    stacked_masks = np.stack(masks)
    return Masked(torch.from_numpy(channels_first), torch.from_numpy(stacked_masks), classes)


def _names(folder: Path) -> list[str]:
    """Return the sorted file names of the images in a folder, each of which has a mask.

    Raises:
        ConfigurationError: There are no images, or an image or mask has no partner.
    """
    images = {path.name for path in (folder / "images").glob("*.png")}
    masks = {path.name for path in (folder / "masks").glob("*.png")}
    if not images:
        raise ConfigurationError(
            f"masked images: got none in {folder / 'images'}, expected NAME.png"
        )
    unpaired = sorted(images ^ masks)
    if unpaired:
        name = unpaired[0]
        present, missing = ("images", "masks") if name in images else ("masks", "images")
        raise ConfigurationError(
            f"masked images: got {present}/{name} alone in {folder}, expected {missing}/{name} "
            "too; add or remove one"
        )
    return sorted(images)


def _mask(path: Path, classes: int) -> Pixels:
    """Read a segmentation mask from a PNG file.

    Returns:
        Class indices, (H, W) uint8: the gray values, or the indices into the file's palette.
    """
    try:
        # Not open_image, which converts to RGB: that would replace a palette's indices by colors.
        with open_regular(path) as file, Image.open(file, formats=("PNG",)) as image:
            if image.mode not in ("L", "P"):
                raise ImageError(
                    f"mask {path}: got mode {image.mode}, expected 8-bit gray or a palette (L, P)"
                )
            mask = np.array(image, dtype=np.uint8)
    except UnidentifiedImageError:
        raise ImageError(f"mask {path}: got another file, expected a PNG; save it again") from None
    # Pillow's decoders raise many types on a damaged file, and a bomb is refused by its header.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"mask {path}: got {error}, expected a PNG; save it again") from error

    unnamed = np.setdiff1d(mask, [*range(classes), IGNORED])
    if len(unnamed):
        raise ConfigurationError(
            f"mask {path}: got the value {unnamed[0]}, expected 0 to {classes - 1}, or {IGNORED} "
            "for ignored pixels; name the class in classes.json"
        )
    return mask


def _classes(path: Path) -> tuple[str, ...]:
    """Read the class names from a ``classes.json``, the background first."""
    try:
        with open_regular(path) as file:
            names = json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"classes {path}: got {error}, expected a JSON list of names"
        ) from error
    # At most IGNORED classes, so that their indices stay below it.
    if (
        not isinstance(names, list)
        or not 2 <= len(names) <= IGNORED
        or not all(isinstance(n, str) for n in names)
    ):
        raise ConfigurationError(
            f"classes {path}: expected a JSON list of 2 to {IGNORED} names, the background first"
        )
    return tuple(names)
