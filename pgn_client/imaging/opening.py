"""Opening files for reading: regular files only, checked on the open descriptor."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from io import BufferedReader

PathLike = str | os.PathLike[str]

_FLAGS = (
    os.O_RDONLY
    # A named pipe would wait for a writer. On a regular file this flag has no effect.
    | getattr(os, "O_NONBLOCK", 0)
    # A terminal must not become the terminal of this process.
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def open_regular(path: PathLike) -> BufferedReader:
    """Open a regular file for reading; a folder, pipe, socket or device is refused at once.

    The kind is that of the open descriptor, so that no other file can take its place in between.

    Raises:
        OSError: The file does not exist, cannot be read, or is not a regular file.
        ValueError: The path has a NUL character.
    """
    descriptor = os.open(path, _FLAGS)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a folder, not a file")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a special file, not a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: PathLike) -> bytes:
    """Return the content of a regular file; see ``open_regular``."""
    with open_regular(path) as content:
        return content.read()


def sha256_of(path: PathLike) -> str | None:
    """Return the SHA-256 of a regular file's bytes, in hex; ``None`` if it cannot be read."""
    try:
        with open_regular(path) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
