"""Compose images with exact masks: patches of texture on photographs of something else.

    python benchmarks/compose_masks.py TEXTURES BACKGROUNDS --out DIR --seed 0

TEXTURES and BACKGROUNDS hold ``{train,test}/CLASS/*``. Each image is a background, and on it one
or two smooth random blobs, together 15 to 40 % of it, each filled with a crop of a texture image.
The mask says 0 for background and 1 + c for texture class c. Training images are made of training
images alone, test images of test images. DIR gets ``{train,test}/images/NAME.png``,
``{train,test}/masks/NAME.png`` and ``classes.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.codecs import IMAGE_SUFFIXES, open_image

Bytes = NDArray[np.uint8]
SIZE = 224
SHARES = (0.15, 0.40)
"""Least and greatest share of an image that is texture."""
WAVES = 5
"""Side of the grid of random numbers whose smooth enlargement bends a blob's outline."""


def images_of(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class, classes and names in alphabetical order."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = {
        c.name: sorted(p for p in c.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        for c in classes
    }
    if not found or not all(found.values()):
        raise ConfigurationError(
            f"composing: got no CLASS/* images in {folder}, expected some for each class"
        )
    return found


def crop(path: Path, rng: np.random.Generator) -> Bytes:
    """(SIZE, SIZE, 3): a random square of 60 to 100 % of the image's shorter side, turned and
    mirrored at random.
    """
    image = open_image(path)
    side = round(min(image.size) * rng.uniform(0.6, 1.0))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    square = image.resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    pixels = np.rot90(np.asarray(square), int(rng.integers(4)))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def blob(share: float, free: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a smooth shape: where a smooth random field with a hill in it is highest.

    Args:
        share: Share of the image that the shape covers, in (0, 1).
        free: Where the shape may lie, (SIZE, SIZE).
        rng: Generator that draws hill and field.

    Returns:
        (SIZE, SIZE), round(share SIZE²) pixels of it true.
    """
    noise = Image.fromarray(rng.normal(size=(WAVES, WAVES)).astype(np.float32))
    field = np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    cy, cx = rng.uniform(0.25, 0.75, size=2)
    height = np.where(free, field - 20 * ((y - cy) ** 2 + (x - cx) ** 2), -np.inf)
    chosen = np.zeros(SIZE * SIZE, dtype=bool)
    chosen[np.argsort(height, axis=None)[-round(share * SIZE * SIZE) :]] = True
    return chosen.reshape(SIZE, SIZE)


def compose(
    textures: Mapping[str, Sequence[Path]], backgrounds: Sequence[Path], rng: np.random.Generator
) -> tuple[Bytes, Bytes]:
    """Return one image (SIZE, SIZE, 3) and its mask (SIZE, SIZE)."""
    image = crop(backgrounds[rng.integers(len(backgrounds))], rng).copy()
    mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
    blobs = int(rng.integers(1, 3))
    for c in rng.choice(len(textures), size=blobs, replace=False):
        paths = list(textures.values())[c]
        inside = blob(rng.uniform(*SHARES) / blobs, mask == 0, rng)
        image[inside] = crop(paths[rng.integers(len(paths))], rng)[inside]
        mask[inside] = 1 + c
    return image, mask


def write_split(
    textures: Path, backgrounds: Path, out: Path, count: int, rng: np.random.Generator
) -> list[str]:
    """Write one split's images and masks; return its texture classes."""
    by_class = images_of(textures)
    behind = [path for paths in images_of(backgrounds).values() for path in paths]
    for kind in ("images", "masks"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = compose(by_class, behind, rng)
        Image.fromarray(image).save(out / "images" / f"{number:04}.png")
        Image.fromarray(mask).save(out / "masks" / f"{number:04}.png")
    return list(by_class)


def main() -> None:
    """Compose both splits."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("textures", type=Path)
    p.add_argument("backgrounds", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--count", type=int, default=600, help="images of each split (default 600)")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    classes = [
        write_split(
            args.textures / split, args.backgrounds / split, args.out / split, args.count, rng
        )
        for split, rng in zip(
            ("train", "test"), np.random.default_rng(args.seed).spawn(2), strict=True
        )
    ]
    if classes[0] != classes[1]:
        raise ConfigurationError(
            f"composing: got textures {classes[0]} and {classes[1]}, expected the same in both"
        )
    (args.out / "classes.json").write_text(
        json.dumps(["background", *classes[0]], indent=1) + "\n", "utf-8"
    )


if __name__ == "__main__":
    main()
