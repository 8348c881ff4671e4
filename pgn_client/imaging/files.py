"""Finding image files, and writing files atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from pgn_client.errors import ConfigurationError, reason
from pgn_client.imaging.opening import PathLike as PathLike
from pgn_client.imaging.reader import scan

SHOWN = 4
"""Greatest number of example images that :func:`spread` selects."""

_TEMPORARY = re.compile(r"(\.[0-9a-f]{12}-)[0-9a-f]{8}\.tmp")
"""Names of the temporary files of ``whole_file``."""


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
    complete, or does not exist. A killed process leaves the temporary file, which
    ``clear_leftovers`` removes.

    Raises:
        OSError: The file cannot be written; the temporary file is removed.
    """
    partial = path.with_name(f"{_mark(path)}{secrets.token_hex(4)}.tmp")
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


def _mark(path: Path) -> str:
    """Return how the names of a file's temporary files start.

    The mark is a hash of the file's name, and not the name, which may have the maximum length.
    """
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}-"


def clear_leftovers(paths: Iterable[Path]) -> None:
    """Remove the temporary files that killed processes have left of these files.

    Call it only while no other process can be writing one of the files; see
    ``wire.journal.only_writer``.

    Args:
        paths: Files that ``whole_file`` may have written.
    """
    marks: dict[Path, set[str]] = {}
    for path in paths:
        marks.setdefault(path.parent, set()).add(_mark(path))

    for folder, starts in marks.items():
        # ValueError: a path that contains a zero byte.
        with contextlib.suppress(OSError, ValueError):
            for file in folder.iterdir():
                own = _TEMPORARY.fullmatch(file.name)
                # A file of another process, on another file of this folder, has another mark.
                if own and own[1] in starts:
                    file.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write bytes to a file atomically: the file appears complete, or not at all.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    with writing(path), whole_file(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager around the writing of a file: a refusal of the system is one error of ours.

    Args:
        path: Path to name in the message.

    Raises:
        ConfigurationError: The system refused to write, or the path holds a zero byte.
    """
    try:
        yield
    except ConfigurationError:
        raise
    # ValueError: a path that contains a zero byte.
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: Exception) -> ConfigurationError:
    """Return a ``ConfigurationError`` that says which file cannot be written, and why."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # What a journal holds already is paid for, so another place would be the wrong advice.
    remedy = (
        "free some space, then run the same command again" if is_full else "choose another place"
    )
    return ConfigurationError(f"{path}: cannot be written ({reason(error)}); {remedy}")
