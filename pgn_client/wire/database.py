"""One border around the SQLite files of the ledger and the answer cache."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from pgn_client.errors import ConfigurationError, PGNError, reason


@contextmanager
def database_errors(what: str, name: str) -> Iterator[None]:
    """Turn errors of SQLite and of the file system into ``ConfigurationError``.

    Args:
        what: Kind of the file, for the message.
        name: Path of the file, for the message.
    """
    try:
        yield
    except PGNError:
        raise
    # ValueError: a path that contains a zero byte.
    except (sqlite3.Error, OSError, ValueError) as error:
        raise ConfigurationError(
            f"{what}: cannot use {name!r} ({reason(error)}); give a new file in an existing, "
            "writable folder"
        ) from error
