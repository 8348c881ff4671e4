"""What lies in a folder: its images, and everything else with the reason why it is not used.

An image is told by its content. A file whose name promises an image but whose content is none is
listed too, so that whoever opens it reports it by name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgn_client.errors import reason
from pgn_client.imaging.codecs import HEAD, IMAGE_SUFFIXES, describe, format_of
from pgn_client.imaging.opening import open_regular

NOT_IMAGE = "not an image"
NOT_ALONE = "not an image; a list or manifest must be the only input"
HIDDEN = "hidden"
CYCLE = "a link to a folder around it"
"""Reasons why a file or folder is not used."""
UNSUPPORTED = frozenset({".dng", ".eps", ".heic", ".heif", ".nef", ".psd", ".svg"})
"""Endings of image files that people keep among others, and that nothing here can decode."""
DEEPEST = 64
"""Largest number of folders inside each other that are searched."""
MOST_LINKS = 16
"""Largest number of times that one folder is searched, because several links lead to it."""


@dataclass(frozen=True, order=True)
class Skipped:
    """A file or folder that is not used.

    Attributes:
        path: Path of the file or folder.
        reason: Why it is not used, as a short phrase.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        """Return the path and the reason as one line of printable text."""
        return f"{describe(self.path)} ({self.reason})"


@dataclass(frozen=True)
class Scan:
    """Images without labels, and what lies beside them.

    Attributes:
        files: Paths of the image files, each once.
        skipped: Files and folders that are not used.
    """

    files: tuple[Path, ...]
    skipped: tuple[Skipped, ...] = ()


def is_hidden(path: Path) -> bool:
    """Whether the name of a file or folder starts with a dot."""
    return path.name.startswith(".")


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name.

    Raises:
        OSError: The folder cannot be read.
    """
    return [folder / name for name in sorted(os.listdir(folder))]


class Walk:
    """A search of one root folder for images.

    Links are followed. A link to a folder around it is not, and one folder is searched at most
    ``MOST_LINKS`` times. Hidden files are not used; those that are images are reported as hidden.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._around: tuple[tuple[int, int], ...] = (_identity(root),)
        self._searched: Counter[tuple[int, int]] = Counter()

    def everything(self) -> Iterator[Path | Skipped]:
        """Yield the images of the root folder, and what is not used."""
        yield from self._folder(self.root, self._around, hidden=False)

    def below(self, path: Path) -> Iterator[Path | Skipped]:
        """Yield the images of one folder in the root, or one file, and what is not used."""
        around = self._around
        # The folders between the root and the path may be what a link leads back to.
        for name in path.relative_to(self.root).parts[:-1]:
            around = (*around, _identity(self.root / name))
        yield from self._one(path, around, hidden=False)

    def _one(
        self, path: Path, around: tuple[tuple[int, int], ...], *, hidden: bool
    ) -> Iterator[Path | Skipped]:
        hidden = hidden or is_hidden(path)
        if not path.is_dir():
            yield from _file(path, hidden=hidden)
            return

        identity = _identity(path)
        self._searched[identity] += 1
        if identity in around:
            yield Skipped(path, CYCLE)
        elif len(around) > DEEPEST:
            yield Skipped(path, "too many folders inside each other")
        elif self._searched[identity] > MOST_LINKS:
            yield Skipped(path, "too many links to this folder")
        else:
            yield from self._folder(path, (*around, identity), hidden=hidden)

    def _folder(
        self, folder: Path, around: tuple[tuple[int, int], ...], *, hidden: bool
    ) -> Iterator[Path | Skipped]:
        try:
            inside = entries(folder)
        except OSError as error:
            yield Skipped(folder, f"the folder cannot be read: {reason(error)}")
            return
        for path in inside:
            yield from self._one(path, around, hidden=hidden)


def scan_folder(folder: Path) -> Scan:
    """Return the images of a folder and its subfolders, sorted by path, upper case first."""
    files: list[Path] = []
    skipped: list[Skipped] = []
    for found in Walk(folder).everything():
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            files.append(found)
    # As text, because Path objects compare without regard to case on Windows.
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    return Scan(tuple(files), tuple(skipped))


def promises_image(path: Path) -> bool:
    """Whether the name or the content of a file is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES or _format(path) is not None


def _file(path: Path, *, hidden: bool) -> Iterator[Path | Skipped]:
    """Yield a file if it is or promises to be an image, or else the reason why it is not used."""
    if hidden:
        # The systems' own hidden files, such as .DS_Store, are not reported.
        if _format(path) is not None:
            yield Skipped(path, HIDDEN)
    elif promises_image(path):
        yield path
    elif path.suffix.lower() in UNSUPPORTED:
        yield Skipped(path, f"{path.suffix.lower()} is not supported, save it as PNG or JPEG")
    else:
        yield Skipped(path, NOT_IMAGE)


def _format(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            return format_of(file.read(HEAD))
    except (OSError, ValueError):
        return None


def _identity(folder: Path) -> tuple[int, int]:
    """Return what identifies a folder, whichever links lead to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino
