"""Finding image files, and writing files atomically."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.opening import PathLike as PathLike
from pgn_client.imaging.reader import scan

SHOWN = 4
"""Greatest number of example images that :func:`spread` selects."""


def spread(n: int) -> range:
    """Return evenly spread indices in [0, n) of at most ``SHOWN`` (4) example images."""
    # The step is rounded down, so the range can be longer than SHOWN.
    return range(0, n, max(1, n // SHOWN))[:SHOWN]


def find_images(source: PathLike) -> list[Path]:
    """Return the paths of the images in a folder, of one image file, or in a list of paths.

    A folder is searched recursively, without hidden files and folders, and sorted by path with
    upper case before lower case. A list keeps its order; a repeated path is used once.
    ``reader.scan`` returns what is not used as well.

    Args:
        source: Folder, image file, text file with one path per line, manifest (CSV or JSON Lines
            with ``path``), or ``-`` for a list on stdin.

    Raises:
        ConfigurationError: The source does not exist or has no images.
    """
    return list(scan([source]).files)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Context manager that writes a file atomically: it yields a temporary path to write to.

    On success, the temporary file replaces ``path`` in one step. So the file at ``path`` is always
    complete, or does not exist.

    Raises:
        OSError: The file cannot be written; the temporary file is removed.
    """
    # Not derived from the file's own name, which may already have the maximum length.
    partial = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield partial
        # Without fsync, a crash of the machine could leave an empty file under the final name.
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    # Ctrl-C must leave no partial file either. A failed removal must not replace the first error.
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write bytes to a file atomically: the file appears complete, or not at all.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    try:
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> ConfigurationError:
    """Return a ``ConfigurationError`` that says which file cannot be written, and why."""
    return ConfigurationError(f"{path}: cannot be written ({error.strerror}); choose another place")
