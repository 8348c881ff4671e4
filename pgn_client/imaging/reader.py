"""The one reader of image data for all commands: labeled data sets, and images without labels.

A labeled data set is a folder per class, split folders with a folder per class, or a manifest. The
files in subfolders of a class belong to the class, and links to folders are followed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pgn_client.errors import ConfigurationError, reason
from pgn_client.imaging.codecs import IMAGE_SUFFIXES, MAX_PIXELS, describe
from pgn_client.imaging.duplicates import Look
from pgn_client.imaging.lists import STDIN, ImageList, read_list
from pgn_client.imaging.opening import PathLike
from pgn_client.imaging.scan import (
    NOT_ALONE,
    Scan,
    Skipped,
    Walk,
    entries,
    is_hidden,
    promises_image,
    scan_folder,
)

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Name of a split folder, in small letters → split."""
NO_CLASS = "in no class folder"
NO_SPLIT = "beside the folders of the splits"
NO_LABEL = "no label in the manifest"
TWICE = "listed twice"
"""Reasons why a labeled data set does not use a file."""


class NoLabelsError(ConfigurationError):
    """The images have no labels; commands that need none take them."""


@dataclass(frozen=True)
class LabeledFile:
    """One image file of a data set.

    Attributes:
        path: Path of the file.
        label: Class name; empty in a data set without labels.
        split: ``train``, ``val`` or ``test``; ``None`` in a data set that is not divided.
    """

    path: Path
    label: str
    split: str | None = None


@dataclass(frozen=True)
class Dataset:
    """What a folder or manifest holds, for all commands alike.

    Attributes:
        name: Folder or manifest, for messages.
        classes: The class names, sorted; empty without labels.
        files: Image files, by split, class and path.
        skipped: Files and folders that are not used, with the reason.
        looks: Path → what the file holds; empty until ``checked`` has opened the files.
    """

    name: str
    classes: tuple[str, ...]
    files: tuple[LabeledFile, ...]
    skipped: tuple[Skipped, ...] = ()
    looks: Mapping[Path, Look] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, source: PathLike) -> Dataset:
        """Return the labeled images of a folder or manifest; no image is opened yet.

        Args:
            source: Folder with one folder per class, or with two or more of the folders ``train``,
                ``val`` (``valid``, ``validation``) and ``test`` that hold them; or a manifest.

        Raises:
            ConfigurationError: There is no such folder or manifest, it has fewer than two classes,
                or a split has a class that ``train`` does not have.
        """
        root = Path(source)
        if root.is_dir():
            return _of_folder(root)
        if not _exists(root) or promises_image(root):
            raise ConfigurationError(
                f"data: got {describe(root)}, expected a folder with train/, val/, test/ or one "
                "folder per class, or a manifest with the columns path and label"
            )
        return _of_manifest(root, read_list(root))

    @classmethod
    def unlabeled(cls, name: str, scan: Scan) -> Dataset:
        """Return images without labels as a data set."""
        files = tuple(LabeledFile(path, "") for path in scan.files)
        return cls(name, (), files, scan.skipped)

    def __str__(self) -> str:
        return self.name

    @property
    def is_divided(self) -> bool:
        """Whether the data set has splits of its own."""
        return any(file.split is not None for file in self.files)

    def checked(
        self, *, max_pixels: int = MAX_PIXELS, tick: Callable[[], object] = lambda: None
    ) -> Dataset:
        """Return the data set after reading and decoding every file, one at a time.

        Args:
            max_pixels: Limit for the width times the height of an image.
            tick: Called after each file.
        """
        looks: dict[Path, Look] = {}
        for file in self.files:
            if file.path not in looks:
                looks[file.path] = Look.at(file.path, max_pixels)
            tick()
        return replace(self, looks=looks)

    @property
    def unreadable(self) -> tuple[Skipped, ...]:
        """The files that ``checked`` could not decode, with the reason."""
        return tuple(
            Skipped(path, look.error) for path, look in self.looks.items() if look.error is not None
        )

    def is_usable(self, path: Path) -> bool:
        """Whether a file can be decoded, as far as it was checked."""
        look = self.looks.get(path)
        return look is None or look.error is None


def scan(sources: Sequence[PathLike]) -> Scan:
    """Return the images of folders, image files or one list, each once, in this order.

    Args:
        sources: Folders and image files; or one list or manifest, or ``-`` for a list on stdin,
            alone.

    Raises:
        ConfigurationError: A source does not exist, or there are no images.
    """
    files: dict[Path, None] = {}
    skipped: list[Skipped] = []
    for source in sources:
        part = _scan_one(source, alone=len(sources) == 1)
        skipped += [Skipped(path, TWICE) for path in part.files if path in files]
        skipped += part.skipped
        files |= dict.fromkeys(part.files)
    if not files:
        names = ", ".join(describe(source) for source in sources)
        kind = "a folder without images" if Path(sources[0]).is_dir() else "no images"
        held = f" (but {skipped[0]})" if skipped else ""
        raise ConfigurationError(
            f"{names}: got {kind}{held}, expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return Scan(tuple(files), tuple(skipped))


def _scan_one(source: PathLike, *, alone: bool) -> Scan:
    """Return the images of one source.

    Args:
        source: Folder, image file, list, manifest or ``-``.
        alone: Whether there are no other sources; only then a text file is read as a list, because
            ``photos/*`` may include notes.
    """
    if os.fspath(source) == STDIN:
        return _scan_list(source)

    path = Path(source)
    if path.is_dir():
        return scan_folder(path)
    if not _exists(path):
        raise ConfigurationError(f"{describe(path)}: no such file or folder; check the path")
    if promises_image(path):
        return Scan((path,))
    return _scan_list(path) if alone else Scan((), (Skipped(path, NOT_ALONE),))


def _scan_list(source: PathLike) -> Scan:
    files: dict[Path, None] = {}
    skipped: list[Skipped] = []
    for image in read_list(source).images:
        if image.path in files:
            skipped.append(Skipped(image.path, TWICE))
        files[image.path] = None
    return Scan(tuple(files), tuple(skipped))


def _exists(path: Path) -> bool:
    """Whether there is a file, folder or link; a text that cannot be a path is none."""
    try:
        return os.path.lexists(path)
    # A NUL character raises a ValueError.
    except (OSError, ValueError):
        return False


def _of_folder(root: Path) -> Dataset:
    try:
        inside = entries(root)
    except OSError as error:
        raise ConfigurationError(
            f"data: {describe(root)} cannot be read ({reason(error)}); check its permissions"
        ) from None

    splits = _split_folders(root, inside)
    files: list[LabeledFile] = []
    skipped: list[Skipped] = []
    if not splits:
        classes = _class_names(root, NoLabelsError)
        _read_classes(root, None, files, skipped)
        return Dataset(str(root), classes, tuple(files), tuple(skipped))

    classes = _class_names(splits["train"], ConfigurationError)
    for split in SPLITS:
        if split in splits:
            _check_known(splits[split], classes)
            _read_classes(splits[split], split, files, skipped)
    walk = Walk(root)
    for path in inside:
        if path not in splits.values():
            skipped += _refused(walk.below(path), NO_SPLIT)
    return Dataset(str(root), classes, tuple(files), tuple(skipped))


def _split_folders(root: Path, inside: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of each split; empty if the folders are classes.

    Two names of splits must stand side by side, one of them with class folders, because a class may
    be called ``train``. A ``train`` with at least two class folders that is alone in its folder is
    a split too.

    Raises:
        ConfigurationError: Two folders are for the same split, or there is none for training.
    """
    folders = [path for path in inside if path.is_dir() and not is_hidden(path)]
    named = [path for path in folders if path.name.lower() in SPLIT_NAMES]
    alone = len(folders) == 1 and len(named) == 1 and len(_subfolders(named[0])) > 1
    together = len(named) > 1 and any(_subfolders(path) for path in named)
    if not alone and not together:
        return {}

    splits: dict[str, Path] = {}
    for path in named:
        split = SPLIT_NAMES[path.name.lower()]
        if split in splits:
            raise ConfigurationError(
                f"data: got two folders for the split {split} in {describe(root)}, "
                f"{splits[split].name} and {path.name}, expected one; join or move them"
            )
        splits[split] = path
    if "train" not in splits:
        names = ", ".join(path.name for path in named)
        raise ConfigurationError(
            f"data: got the splits {names} in {describe(root)}, expected train/ too; add it"
        )
    return splits


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones."""
    try:
        return [p.name for p in entries(folder) if p.is_dir() and not is_hidden(p)]
    except OSError:
        return []


def _class_names(folder: Path, kind: type[ConfigurationError]) -> tuple[str, ...]:
    names = tuple(_subfolders(folder))
    if len(names) < 2:
        raise kind(
            f"data: got {len(names)} class folders in {describe(folder)}, expected at least 2, one "
            "per class"
        )
    return names


def _check_known(folder: Path, classes: tuple[str, ...]) -> None:
    unknown = sorted(set(_subfolders(folder)) - set(classes))
    if unknown:
        raise ConfigurationError(
            f"data: {describe(folder)} has classes {unknown[:3]} that the training split does not "
            "have; add or remove them"
        )


def _read_classes(
    folder: Path, split: str | None, files: list[LabeledFile], skipped: list[Skipped]
) -> None:
    """Add the images in the class folders of a folder to ``files``, the rest to ``skipped``."""
    walk = Walk(folder)
    for path in entries(folder):
        found = walk.below(path)
        if is_hidden(path) or not path.is_dir():
            skipped += _refused(found, NO_CLASS)
            continue
        for item in found:
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                files.append(LabeledFile(item, path.name, split))


def _refused(found: Iterator[Path | Skipped], reason: str) -> Iterator[Skipped]:
    for item in found:
        yield item if isinstance(item, Skipped) else Skipped(item, reason)


def _of_manifest(path: Path, images: ImageList) -> Dataset:
    name = describe(path)
    if not images.is_manifest:
        raise NoLabelsError(
            f"data: got the list {name} without labels, expected a manifest: a first line "
            "path,label and a line for each image"
        )

    is_divided = any(image.split for image in images.images)
    rows: dict[tuple[Path, str], LabeledFile] = {}
    skipped: list[Skipped] = []
    for image in images.images:
        if image.label is None:
            skipped.append(Skipped(image.path, NO_LABEL))
            continue
        split = _split_of(image.split, name, image.line) if is_divided else None
        if (image.path, image.label) in rows:
            skipped.append(Skipped(image.path, TWICE))
            continue
        rows[image.path, image.label] = LabeledFile(image.path, image.label, split)

    classes = tuple(sorted({row.label for row in rows.values()}))
    if len(classes) < 2:
        kind = ConfigurationError if classes else NoLabelsError
        raise kind(
            f"data: got {len(classes)} labels in {name}, expected at least 2 in the column label"
        )
    files = sorted(rows.values(), key=lambda row: (_order(row.split), row.label))
    return Dataset(name, classes, tuple(files), tuple(skipped))


def _split_of(text: str | None, name: str, line: int) -> str:
    split = SPLIT_NAMES.get((text or "").lower())
    if split is None:
        raise ConfigurationError(
            f"{name}: line {line} has the split {text or ''!r}, expected one of "
            f"{', '.join(SPLIT_NAMES)} in every line, or in none"
        )
    return split


def _order(split: str | None) -> int:
    return 0 if split is None else SPLITS.index(split)
