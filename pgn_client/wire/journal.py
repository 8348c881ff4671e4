"""A journal of predictions: JSON Lines that survive whatever ends the process, and one writer at a
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pgn_client.errors import ConfigurationError, EndpointError
from pgn_client.imaging.files import unwritable, write_whole
from pgn_client.types import ImageFailure, Prediction

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]


def record_of(source: Path, digest: str | None, result: Prediction | ImageFailure) -> Record:
    """Return the record of one file: its prediction, or why there is none."""
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
    found = {"label": result.label, "score": result.score, "scores": dict(result.scores)}
    return {**record, **found, "attempts": result.attempts, "error": None}


def pin(journal: Path, setup: Mapping[str, Any]) -> None:
    """Write down what the journal's lines depend on, or compare with what an earlier run wrote.

    A journal of failures alone holds nothing that another setup could spoil.
    """
    beside = journal.with_name(journal.name + ".journal.json")
    if not journal.exists() or journal.stat().st_size == 0:
        write_lines(beside, [json.dumps(setup, indent=1, sort_keys=True) + "\n"])
        return
    try:
        earlier = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigurationError(
            f"{journal}: exists, and {beside.name} does not say what made it; remove it or choose "
            "another file"
        ) from None
    differ = sorted(key for key in {*earlier, *setup} if earlier.get(key) != setup.get(key))
    if differ and {record["label"] for record in read_journal(journal)} == {None}:
        write_lines(beside, [json.dumps(setup, indent=1, sort_keys=True) + "\n"])
    elif differ:
        raise ConfigurationError(
            f"{journal}: was made with another {' and '.join(differ)} (then "
            f"{_brief(earlier.get(differ[0]))}, now "
            f"{_brief(setup.get(differ[0]))}); choose another --out, or remove it to start again"
        )


def _brief(value: object) -> str:
    """Say a setting in a message: a fingerprint by its beginning, and nothing as ``none``."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:12]}…"


def read_journal(journal: Path) -> Iterator[Record]:
    """Yield the journal's records; a last line that was cut by a killed process is left out."""
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
            elif line.endswith(b"\n"):
                raise ConfigurationError(
                    f"{journal}: line {number} is no prediction; remove it or choose another file"
                )


def sha256_of(file: Path) -> str | None:
    """Return the SHA-256 of a file's bytes; None when it cannot be read, which the client will
    explain.
    """
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def only_writer(journal: Path) -> Iterator[None]:
    """Refuse a second run on a journal; the lock ends with its process, however that ends."""
    beside = journal.with_name(f".{journal.name}.lock")
    with opened(beside, journal) as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"{journal}: another run is writing it; wait for that, or choose another file"
                ) from None
            except OSError:
                pass  # a network drive without locks
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()


def opened(path: Path, shown: Path | None = None) -> IO[str]:
    """Open a file to append to; an error names ``shown``, where that is the file that the user
    knows.
    """
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise unwritable(shown or path, error) from error


def line_of(record: Record) -> str:
    """Return a record as a line of the journal."""
    return json.dumps(record) + "\n"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file of these lines, complete or not at all."""
    write_whole(path, "".join(lines).encode())
