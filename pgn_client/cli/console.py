"""What the command line writes: results to stdout (`--json` for scripts), the rest to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pgn_client.errors import ConfigurationError, EndpointError

SAME_ERRORS = 3


def talk(text: str) -> None:
    """Say something to a person, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (the one place that talks)


def tell(text: str) -> None:
    """Write data, on stdout."""
    print(text, flush=True)  # noqa: T201 (the one place that writes data)


def complain(error: Exception, status: int) -> int:
    """Say what went wrong, in one line, and return the exit status."""
    talk(f"error: {error}")
    return status


def tell_records(
    records: Iterator[dict[str, Any]],
    *,
    as_json: bool,
    people: bool = False,
    say: Callable[[str], object] = talk,
) -> int:
    """Write prediction records, and say what failed.

    Args:
        records: see ``batch.predict_files``.
        as_json: one JSON line each on stdout.
        people: otherwise, one short line each on stdout; else nothing.
        say: how to talk, beside a progress bar for example.

    Returns:
        How many failed. An endpoint's error that ends the run is raised only if it was not told
        beside an image.
    """
    failed = 0
    said: Counter[str] = Counter()
    try:
        for record in records:
            failed += record["error"] is not None
            if as_json:
                tell(json.dumps(record))
            elif people and record["error"] is None:
                tell(f"{record['path']}  {record['label']}  {record['score']:.3f}")
            if record["error"] is not None:
                _say_once(record, said, say)
    except EndpointError:
        if not failed:
            raise
    for error, times in said.items():
        if times > SAME_ERRORS:
            say(f"error: {times - SAME_ERRORS} more images: {error}")
    return failed


def _say_once(record: dict[str, Any], said: Counter[str], say: Callable[[str], object]) -> None:
    """Say an error with its image, unless the same has been said often enough, as when a budget
    is spent.
    """
    error, path = str(record["error"]), str(record["path"])
    said[error] += 1
    if said[error] <= SAME_ERRORS:
        say(f"error: {error}" if path in error else f"error: {path}: {error}")


def show_log() -> None:
    """Say what the library logs: warnings, or as much as ``PGN_LOG`` asks for.

    ``PGN_LOG`` is ``info`` (a line per request) or ``debug``; with ``json:`` before it each line is
    a JSON object with the fields of the request.

    Raises:
        ConfigurationError: it is something else.
    """
    wish = os.environ.get("PGN_LOG", "").lower()
    level = {"": logging.NOTSET, "info": logging.INFO, "debug": logging.DEBUG}.get(
        wish.removeprefix("json:")
    )
    if level is None:
        raise ConfigurationError(
            f"PGN_LOG: got {wish!r}, expected info, debug, json:info or json:debug"
        )
    handler, logger = logging.StreamHandler(), logging.getLogger("pgn_client")
    plain = logging.Formatter(
        "%(asctime)s %(levelname)s %(message)s" if wish else "note: %(message)s"
    )
    handler.setFormatter(JsonLines() if wish.startswith("json:") else plain)
    logger.handlers = [handler]  # a second run in one process writes to its own stderr
    logger.setLevel(level)


class JsonLines(logging.Formatter):
    """One JSON object per record: time (seconds since the epoch), level, message, and the fields
    given along.
    """

    _OF_ALL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {name: value for name, value in vars(record).items() if name not in self._OF_ALL}
        told = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        return json.dumps(told | fields, default=str)
