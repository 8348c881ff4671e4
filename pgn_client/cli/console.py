"""Output of the command line: results on stdout, messages and the log on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pgn_client.errors import ConfigurationError, EndpointError

SAME_ERRORS = 3  # an error that occurs more often is summed up


def talk(text: str) -> None:
    """Print a message for the user on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 (the one place that prints messages)


def tell(text: str) -> None:
    """Print data on stdout."""
    print(text, flush=True)  # noqa: T201 (the one place that prints data)


def complain(error: Exception, status: int) -> int:
    """Print an error in one line on stderr, and return the exit status."""
    talk(f"error: {error}")
    return status


def tell_records(
    records: Iterator[dict[str, Any]],
    *,
    as_json: bool,
    people: bool = False,
    say: Callable[[str], object] = talk,
) -> int:
    """Print prediction records on stdout, and the errors among them on stderr.

    Args:
        records: One dictionary per image, with keys such as ``path``, ``label``, ``score`` and
            ``error``.
        as_json: Whether to print every record as one JSON line.
        people: Whether to print a short line, for people to read, for every prediction, if
            ``as_json`` is false. If both are false, nothing is printed on stdout.
        say: Function that prints a message; one that is compatible with a progress bar, for
            example.

    Returns:
        Number of failed images. If an endpoint error ends the run, it is raised only if no image
        failed before, because otherwise the user has seen it already.
    """
    failed = 0
    reported: Counter[str] = Counter()
    try:
        for record in records:
            has_failed = record["error"] is not None
            failed += has_failed
            if as_json:
                tell(json.dumps(record))
            elif people and not has_failed:
                tell(f"{record['path']}  {record['label']}  {record['score']:.3f}")
            if has_failed:
                _report(record, reported, say)
    except EndpointError:
        # The error of a failed image, printed above, has told the user what is wrong already.
        if not failed:
            raise
    for error, times in reported.items():
        if times > SAME_ERRORS:
            say(f"error: {times - SAME_ERRORS} more images: {error}")
    return failed


def _report(record: dict[str, Any], reported: Counter[str], say: Callable[[str], object]) -> None:
    """Print the error of an image, unless the same error was printed often enough.

    After the budget is spent, for example, every image fails with the same error.
    """
    error = str(record["error"])
    path = str(record["path"])
    reported[error] += 1
    if reported[error] <= SAME_ERRORS:
        say(f"error: {error}" if path in error else f"error: {path}: {error}")


def show_log() -> None:
    """Print the log of the library on stderr: warnings, or what ``PGN_LOG`` selects.

    ``PGN_LOG=info`` prints one line per request, ``PGN_LOG=debug`` more. With the prefix ``json:``,
    each line is a JSON object with the fields of the request.

    Raises:
        ConfigurationError: ``PGN_LOG`` has another value.
    """
    wish = os.environ.get("PGN_LOG", "").lower()
    # NOTSET takes the level of the root logger, which shows warnings.
    levels = {"": logging.NOTSET, "info": logging.INFO, "debug": logging.DEBUG}
    level = levels.get(wish.removeprefix("json:"))
    if level is None:
        raise ConfigurationError(
            f"PGN_LOG: got {wish!r}, expected info, debug, json:info or json:debug"
        )

    if wish.startswith("json:"):
        formatter: logging.Formatter = JsonLines()
    else:
        formatter = logging.Formatter(
            "%(asctime)s %(levelname)s %(message)s" if wish else "note: %(message)s"
        )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger("pgn_client")

    # Earlier handlers are replaced, because a second run in one process may have another stderr.
    logger.handlers = [handler]
    logger.setLevel(level)


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON object.

    It has the time (seconds since the epoch), the level, the message, and the record's own fields.
    """

    # format() adds "message" and "asctime" to a record; "taskName" is standard from Python 3.12 on.
    _STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """Return a log record as one line of JSON."""
        fields = {name: value for name, value in vars(record).items() if name not in self._STANDARD}
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        return json.dumps(line | fields, default=str)
