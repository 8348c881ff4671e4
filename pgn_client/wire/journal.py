"""Journals: JSON Lines files of predictions, one line per image, that survive a crash.

Only one process at a time writes a journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pgn_client.errors import ConfigurationError, EndpointError, printable, reading
from pgn_client.imaging.files import clear_leftovers, write_whole, writing
from pgn_client.imaging.opening import open_regular, read_regular
from pgn_client.imaging.opening import sha256_of as sha256_of
from pgn_client.types import ImageFailure, Prediction

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Record = dict[str, Any]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "path": str,
    "label": (str, type(None)),
    "sha256": (str, type(None)),
    "score": (int, float, type(None)),
    "scores": (dict, type(None)),
    "attempts": int,
    "error": (str, type(None)),
    "target": str,
    "checkpoint": (str, type(None)),
}
"""Types of a record's values. The first three are in every record."""
_REQUIRED = frozenset(("path", "label", "sha256"))

logger = logging.getLogger(__name__)


def record_of(source: Path, digest: str | None, result: Prediction | ImageFailure) -> Record:
    """Return the journal record, a dict, for the prediction or failure of one image file.

    Args:
        source: Path of the image.
        digest: SHA-256 of the file's bytes; None if it cannot be read.
        result: Prediction, or the reason why there is none.
    """
    record: Record = {
        "path": str(source),
        "label": None,
        "score": None,
        "scores": None,
        "sha256": digest,
    }
    if isinstance(result, ImageFailure):
        attempts = result.error.attempts if isinstance(result.error, EndpointError) else 0
        return {**record, "attempts": attempts, "error": str(result.error)}
    prediction = {"label": result.label, "score": result.score, "scores": dict(result.scores)}
    return {**record, **prediction, "attempts": result.attempts, "error": None}


def pin(journal: Path, setup: Mapping[str, Any]) -> None:
    """Store the settings behind a new journal, or check that an existing one has the same settings.

    They are kept in the file ``JOURNAL.journal.json``. A journal that holds only failures takes
    over new settings, because all its files are classified again.

    Args:
        journal: Path of the journal.
        setup: Settings that the predictions depend on, as JSON values by name.

    Raises:
        ConfigurationError: The journal has other settings, or its settings are unknown.
    """
    setup_file = _setup_file(journal)
    setup_lines = [json.dumps(setup, indent=1, sort_keys=True) + "\n"]
    if not journal.exists() or journal.stat().st_size == 0:
        write_lines(setup_file, setup_lines)
        return

    # Without the settings nobody can tell whether the lines go together with new ones.
    remedy = f"without it {journal} cannot be continued: remove that, or choose another file"
    with reading(f"setup {setup_file}", remedy):
        earlier = json.loads(read_regular(setup_file))
        if not isinstance(earlier, dict):
            raise TypeError(f"got {type(earlier).__name__}, expected an object")

    differ = sorted(key for key in {*earlier, *setup} if earlier.get(key) != setup.get(key))
    if differ and {record["label"] for record in read_journal(journal)} == {None}:
        write_lines(setup_file, setup_lines)
    elif differ:
        raise ConfigurationError(
            f"{journal}: was made with another {' and '.join(differ)} (then "
            f"{_brief(earlier.get(differ[0]))}, now {_brief(setup.get(differ[0]))}); choose "
            "another --out, or remove it to start again"
        )


def _setup_file(journal: Path) -> Path:
    """Return the path of the file with the settings behind a journal."""
    return journal.with_name(journal.name + ".journal.json")


def _brief(value: object) -> str:
    """Return a setting's value as a short text for a message; None becomes ``none``."""
    text = "none" if value is None else printable(str(value))
    # Long values are fingerprints, which their first characters tell apart.
    return text if len(text) <= 48 else f"{text[:12]}…"


def read_journal(journal: Path) -> Iterator[Record]:
    """Yield the records of a journal file; without a file there are none.

    A last line that a killed process left incomplete is skipped.

    Raises:
        ConfigurationError: The file cannot be read, or a complete line is no record.
    """
    remedy = "remove it or choose another file"
    with reading(f"journal {journal}", remedy):
        if not journal.exists():
            return
        lines = open_regular(journal)
    with lines:
        for number, line in enumerate(lines, 1):
            record = _parsed(line)
            if record is not None:
                yield record
            # A killed process leaves a line without its end, and only as the last one.
            elif line.endswith(b"\n"):
                raise ConfigurationError(f"{journal}: line {number} is no prediction; {remedy}")


def _parsed(line: bytes) -> Record | None:
    """Return the record that a line of a journal holds; None for any other text."""
    try:
        record = json.loads(line)
    # 100,000 brackets exceed the recursion limit.
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not record.keys() >= _REQUIRED:
        return None
    # An absent value passes: not every kind of journal has all of them.
    typed = all(isinstance(record[name], _TYPES[name]) for name in record.keys() & _TYPES.keys())
    return record if typed else None


@contextlib.contextmanager
def only_writer(journal: Path) -> Iterator[None]:
    """Hold the lock of a journal, so that no second run writes it.

    The operating system releases the lock when the process ends, even after a crash. The lock's
    file stays, empty and hidden, in the folder of the journal.

    Temporary files that killed runs have left of the journal are removed.

    Raises:
        ConfigurationError: Another run is writing the journal, the path is no regular file, or the
            lock's file cannot be made.
    """
    with writing(journal):
        if journal.exists() and not journal.is_file():
            raise ConfigurationError(
                f"{journal}: got a folder or a device, expected a file; choose another path"
            )
        # The lock is on a file of its own: ``write_lines`` replaces the journal, and a lock on it
        # would stay with the old file. The name holds a hash, because the journal's own name may
        # have the maximum length.
        mark = hashlib.sha256(os.fsencode(journal.name)).hexdigest()[:12]
        file = journal.with_name(f".pgn-{mark}.lock").open("ab")

    # The file is never removed. If the leaver removed it, a run that has opened it before and locks
    # it after would hold the lock of a removed file, while a third run makes and locks a new one:
    # two writers.
    with file:
        _lock(file, journal)
        clear_leftovers([journal, _setup_file(journal)])
        yield


def _lock(file: IO[bytes], journal: Path) -> None:
    """Lock an open file until it is closed.

    Args:
        file: File to lock.
        journal: Journal to name in messages.

    Raises:
        ConfigurationError: Another process, or another open file of this one, holds the lock.
    """
    try:
        if sys.platform == "win32":
            # The first byte, which need not exist. A held lock raises PermissionError.
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigurationError(
            f"{journal}: another run is writing it; wait until it ends, or choose another file"
        ) from None
    except OSError as error:
        # Some network drives have no locks.
        logger.warning(
            "%s: cannot be locked (%s); do not start a second run that writes it",
            journal,
            error.strerror,
        )


@contextlib.contextmanager
def appending(journal: Path) -> Iterator[Callable[[Record], None]]:
    """Context manager that yields a function that adds a record to a journal, as one whole line.

    Each line is written at once. If it does not fit on the disk, what was written of it is taken
    back, so that the journal still ends with a whole line.

    Raises:
        ConfigurationError: The journal cannot be written.
    """
    with writing(journal):
        # Without a buffer: one that could not be written would be tried again when it is closed.
        file = journal.open("ab", buffering=0)

    def append(record: Record) -> None:
        with writing(journal):
            end = file.seek(0, os.SEEK_END)
            rest = memoryview(line_of(record).encode())
            try:
                # A disk that is nearly full takes a part, and refuses the rest.
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise

    with file:
        yield append


def line_of(record: Record) -> str:
    """Return a journal record as one line of JSON, with the line end."""
    return json.dumps(record) + "\n"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a file's content by these lines; the new content appears whole or not at all."""
    write_whole(path, "".join(lines).encode())
