"""Files and folders of images."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.codecs import IMAGE_SUFFIXES

PathLike = str | os.PathLike[str]

SHOWN = 4
"""Images to look at, at most."""


def spread(n: int) -> range:
    """Return which of n images to look at: a few, evenly spread."""
    return range(0, n, max(1, n // SHOWN))[:SHOWN]


def find_images(source: PathLike) -> list[Path]:
    """Return the images that an input names.

    Args:
        source: a folder (searched recursively; sorted by path, upper before lower case; hidden
            files and folders are left out), one image, a text file with one path per line, or
            ``-`` for such lines on stdin. Lists keep their order; a path that occurs twice is used
            once.

    Raises:
        ConfigurationError: nothing there, or no image among it.
    """
    if os.fspath(source) == "-":
        return _listed(sys.stdin, "stdin")
    path = Path(source)
    if path.is_dir():
        found = sorted(_walk(path), key=lambda p: p.relative_to(path).as_posix())
        if not found:
            raise ConfigurationError(
                f"{path}: got a folder without images, expected {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found
    if not path.exists():
        raise ConfigurationError(f"{path}: no such file or folder; check the path")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [path]
    with path.open(encoding="utf-8") as file:
        return _listed(file, str(path))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _listed(lines: Iterable[str], name: str) -> list[Path]:
    try:
        paths = dict.fromkeys(Path(text) for line in lines if (text := line.strip()))
    except (OSError, ValueError):  # UnicodeDecodeError is a ValueError
        raise ConfigurationError(
            f"{name}: neither an image nor a text file with one path per line"
        ) from None
    if not paths:
        raise ConfigurationError(f"{name}: got an empty list, expected one path per line")
    return list(paths)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what is written there appears under ``path`` complete, or not at
    all.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    # Not made of the file's own name, which may be as long as the file system allows.
    partial = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # a crash of the machine must not leave an empty file either
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it appears complete or not at all.

    Raises:
        ConfigurationError: It cannot be written.
    """
    try:
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ConfigurationError:
    """Return the error of a file that cannot be written."""
    return ConfigurationError(f"{path}: cannot be written ({error.strerror}); choose another place")
