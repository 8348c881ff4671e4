"""Journals: JSON Lines files of predictions, one line per image, that survive a crash.

Only one process at a time writes a journal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pgn_client.errors import ConfigurationError, EndpointError
from pgn_client.imaging.files import unwritable, write_whole
from pgn_client.imaging.opening import sha256_of as sha256_of
from pgn_client.types import ImageFailure, Prediction

try:
    import fcntl
except ImportError:  # Windows has no fcntl; there a journal is written without a lock.
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]


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
    setup_file = journal.with_name(journal.name + ".journal.json")
    setup_lines = [json.dumps(setup, indent=1, sort_keys=True) + "\n"]
    if not journal.exists() or journal.stat().st_size == 0:
        write_lines(setup_file, setup_lines)
        return

    try:
        earlier = json.loads(setup_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigurationError(
            f"{journal}: exists, but its setup cannot be read from {setup_file.name}; remove it or "
            "choose another file"
        ) from None

    differ = sorted(key for key in {*earlier, *setup} if earlier.get(key) != setup.get(key))
    if differ and {record["label"] for record in read_journal(journal)} == {None}:
        write_lines(setup_file, setup_lines)
    elif differ:
        raise ConfigurationError(
            f"{journal}: was made with another {' and '.join(differ)} (then "
            f"{_brief(earlier.get(differ[0]))}, now {_brief(setup.get(differ[0]))}); choose "
            "another --out, or remove it to start again"
        )


def _brief(value: object) -> str:
    """Return a setting's value as a short text for a message; None becomes ``none``."""
    text = "none" if value is None else str(value)
    # Long values are fingerprints, which their first characters tell apart.
    return text if len(text) <= 48 else f"{text[:12]}…"


def read_journal(journal: Path) -> Iterator[Record]:
    """Yield the records of a journal file; without a file there are none.

    A last line that a killed process left incomplete is skipped.

    Raises:
        ConfigurationError: A complete line is no record.
    """
    if not journal.exists():
        return
    with journal.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                complete = isinstance(record, dict) and {"path", "label", "sha256"} <= record.keys()
            except ValueError:
                complete = False
            if complete:
                yield record
            # A killed process leaves a line without its end, and only as the last one.
            elif line.endswith(b"\n"):
                raise ConfigurationError(
                    f"{journal}: line {number} is no prediction; remove it or choose another file"
                )


@contextlib.contextmanager
def only_writer(journal: Path) -> Iterator[None]:
    """Hold the lock of a journal, so that no second run writes it.

    The operating system releases the lock when the process ends, even after a crash.

    Raises:
        ConfigurationError: Another run is writing the journal, or the lock file cannot be made.
    """
    # A file of its own: ``write_lines`` replaces the journal, and a lock on it would stay with the
    # old file.
    lock_file = journal.with_name(f".{journal.name}.lock")
    with opened(lock_file, journal) as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"{journal}: another run is writing it; wait until it ends, or choose another "
                    "file"
                ) from None
            except OSError:
                # Some network drives have no locks; the run goes on without one.
                pass
        try:
            yield
        finally:
            # Removed so that no hidden file stays beside the journal. One that cannot be removed
            # does no harm: the lock itself is released.
            with contextlib.suppress(OSError):
                lock_file.unlink()


def opened(path: Path, shown: Path | None = None) -> IO[str]:
    """Open a file to append text to it.

    Args:
        path: Path of the file.
        shown: Path to name in the error message instead of ``path``; None for ``path``.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise unwritable(shown or path, error) from error


def line_of(record: Record) -> str:
    """Return a journal record as one line of JSON, with the line end."""
    return json.dumps(record) + "\n"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a file's content by these lines; the new content appears whole or not at all."""
    write_whole(path, "".join(lines).encode())
