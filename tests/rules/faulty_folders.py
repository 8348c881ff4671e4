"""Small folders of images with one fault each, made by code."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A noisy RGB image that looks like no other."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def put(path: Path, content: bytes | int, format: str = "PNG") -> None:
    """Write bytes, or the noisy image with this number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(noise(content), format) if isinstance(content, int) else content)


def fill(folder: Path, *classes: str, images: int = 5, start: int = 0) -> None:
    """Write so many images of each class."""
    for number, name in enumerate(classes):
        for i in range(images):
            put(folder / name / f"{i}.png", start + 100 * number + i)


@dataclass(frozen=True)
class Case:
    """A folder with one fault, and what every reader has to say about it.

    Attributes:
        make: Writes the folder.
        images: Number of images that can be used.
        broken: Names of files that promise an image and cannot be decoded.
        skipped: Name of another file → part of the reason why it is not used.
        unlabeled: Names of images that only commands without labels can use.
        remarks: Keys of the serious remarks of ``pgn check``.
        classes: The class names.
    """

    make: Callable[[Path], None]
    images: int = 10
    broken: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    unlabeled: tuple[str, ...] = ()
    remarks: frozenset[str] = frozenset()
    classes: tuple[str, ...] = ("cat", "dog")


def splits(root: Path, *names: str, images: int = 2) -> None:
    for number, name in enumerate(names):
        fill(root / name, "cat", "dog", images=images, start=1000 * number)


def with_file(name: str, content: bytes | int, format: str = "PNG") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        fill(root, "cat", "dog")
        put(root / name, content, format)

    return make


def sub_folders(root: Path) -> None:
    fill(root, "cat", "dog")
    put(root / "cat" / "indoors" / "a.png", 7)
    put(root / "cat" / "indoors" / "asleep" / "b.png", 8)


def linked_class(root: Path) -> None:
    fill(root, "cat")
    fill(root.parent / "elsewhere", "dog", start=500)
    (root / "dog").symlink_to(root.parent / "elsewhere" / "dog")


def linked_in_a_circle(root: Path) -> None:
    fill(root, "cat", "dog")
    (root / "cat" / "again").symlink_to(root)


def odd_suffixes(root: Path) -> None:
    fill(root, "cat", "dog")
    put(root / "cat" / "a.jfif", 7, "JPEG")
    put(root / "cat" / "b", 8)
    put(root / "dog" / "c.dat", 9, "WEBP")
    put(root / "dog" / "D.JPEG", 10, "JPEG")


def pipe(root: Path) -> None:
    fill(root, "cat", "dog")
    os.mkfifo(root / "cat" / "a.png")


def hidden_folder(root: Path) -> None:
    fill(root, "cat", "dog")
    put(root / ".trash" / "a.png", 7)
    put(root / "cat" / ".thumbs" / "b.png", 8)


def dangling(root: Path) -> None:
    fill(root, "cat", "dog")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")


def flat_test(root: Path) -> None:
    splits(root, "train", "val")
    put(root / "test" / "a.png", 7)


def copied(source: str, target: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        splits(root, "train", "val", "test")
        put(root / target, (root / source).read_bytes())

    return make


def look_alike(root: Path) -> None:
    splits(root, "train", "val", "test")
    with Image.open(root / "train" / "cat" / "0.png") as image:
        larger = image.resize((48, 48), Image.Resampling.BICUBIC)
    put(root / "test" / "cat" / "z.jpg", encoded(larger, "JPEG", quality=90))


def no_test_of_a_class(root: Path) -> None:
    splits(root, "train", "val")
    fill(root / "test", "cat", images=2, start=2000)


CUT = encoded(noise(3, (64, 64)))[:200]
S = frozenset
CASES = {
    "a folder per class": Case(lambda root: fill(root, "cat", "dog")),
    "splits": Case(lambda root: splits(root, "train", "val", "test"), 12),
    "other names of splits": Case(lambda root: splits(root, "train", "valid", "test"), 12),
    "splits with capitals": Case(lambda root: splits(root, "Train", "Validation", "Test"), 12),
    "train alone": Case(lambda root: splits(root, "train", images=5)),
    "a class called train": Case(lambda root: fill(root, "train", "bus"), classes=("bus", "train")),
    "classes called train and test": Case(
        lambda root: fill(root, "train", "test"), classes=("test", "train")
    ),
    "sub-folders of a class": Case(sub_folders, 12),
    "a link to a class": Case(linked_class),
    "a link in a circle": Case(
        linked_in_a_circle, skipped={"again": "a link"}, remarks=S({"skipped"})
    ),
    "odd suffixes": Case(odd_suffixes, 14),
    "a text called png": Case(
        with_file("cat/x.png", b"hello"), broken=("x.png",), remarks=S({"unreadable"})
    ),
    "a cut image": Case(with_file("cat/x.png", CUT), broken=("x.png",), remarks=S({"unreadable"})),
    "an empty file": Case(
        with_file("dog/x.jpg", b""), broken=("x.jpg",), remarks=S({"unreadable"})
    ),
    "a page called png": Case(
        with_file("dog/x.png", EPS), broken=("x.png",), remarks=S({"unreadable"})
    ),
    "a pipe": Case(pipe, broken=("a.png",), remarks=S({"unreadable"})),
    "a link to nothing": Case(dangling, broken=("gone.png",), remarks=S({"unreadable"})),
    "notes": Case(with_file("cat/notes.txt", b"fed"), skipped={"notes.txt": "not an image"}),
    "a hidden image": Case(
        with_file("cat/.x.png", 7), skipped={".x.png": "hidden"}, remarks=S({"skipped"})
    ),
    "a hidden folder": Case(
        hidden_folder, skipped={"a.png": "hidden", "b.png": "hidden"}, remarks=S({"skipped"})
    ),
    "hidden files of the system": Case(with_file("cat/._0.png", b"Mac OS X")),
    "a format that is not supported": Case(
        with_file("cat/x.heic", b"\0\0\0\x18ftypheic" + bytes(16)),
        skipped={"x.heic": "not supported"},
        remarks=S({"skipped"}),
    ),
    "an image without a class": Case(
        with_file("x.png", 7), unlabeled=("x.png",), remarks=S({"skipped"})
    ),
    "a flat test": Case(flat_test, 8, unlabeled=("a.png",), remarks=S({"skipped"})),
    "a test image copied from training": Case(
        copied("train/cat/0.png", "test/cat/z.png"), 13, remarks=S({"test_copies"})
    ),
    "a validation image copied from training": Case(
        copied("train/cat/0.png", "val/cat/z.png"), 13, remarks=S({"val_copies"})
    ),
    "an image under two labels": Case(
        copied("train/cat/0.png", "train/dog/z.png"), 13, remarks=S({"two_labels"})
    ),
    "an image twice in a class": Case(copied("train/cat/0.png", "train/cat/z.png"), 13),
    "images that look alike": Case(look_alike, 13, remarks=S({"look_alikes"})),
    "classes that differ in case": Case(
        lambda root: fill(root, "Cat", "cat"), remarks=S({"twins"}), classes=("Cat", "cat")
    ),
    "classes that differ in Unicode form": Case(
        lambda root: fill(root, "caf\u00e9", "cafe\u0301"),
        remarks=S({"twins"}),
        classes=("cafe\u0301", "caf\u00e9"),
    ),
    "a class without test images": Case(
        no_test_of_a_class, 10, remarks=S({"classes_without_test"})
    ),
}
