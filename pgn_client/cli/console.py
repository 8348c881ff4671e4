"""Output of the command line: results on stdout, messages and the log on stderr.

A terminal must never cost a run its results. So within ``standard_streams``, a write to stdout or
stderr raises nothing: a stream that is closed, full or too narrow for a character loses text, and
the exit status says whether something of stdout was lost.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from pgn_client.cli.options import BUDGET, FAILED, OK
from pgn_client.errors import (
    CONCERN_ALL,
    BudgetExceededError,
    ConfigurationError,
    EndpointError,
    printable,
    reason,
)

if TYPE_CHECKING:
    from pgn_client.imaging.scan import Skipped
    from pgn_client.wire.folders import FileResult

SAME_ERRORS = 3  # an error that occurs more often is summed up
LONGEST_REASON = 120
"""Largest number of characters of a reason in a command's last line."""

_ASCII = {
    "⊕": "+",
    "±": "+/-",
    "−": "-",
    "–": "-",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "…": "...",
    "·": "*",
    "α": "alpha",
    "τ": "tau",
}
"""Substitutes of our own characters, for streams that cannot encode them."""


def _substituted(error: UnicodeError) -> tuple[str, int]:
    r"""Replace what an encoding lacks: our own characters by ASCII, others by ``\uXXXX``."""
    # Only encoding errors come here, and they have these attributes.
    encoding_error = cast(UnicodeEncodeError, error)
    piece = encoding_error.object[encoding_error.start : encoding_error.end]
    return "".join(_ASCII.get(c) or json.dumps(c)[1:-1] for c in piece), encoding_error.end


codecs.register_error("pgn_client.substituted", _substituted)


class Stream:
    """A standard stream that never raises.

    Args:
        stream: Stream to write to; ``None`` for a closed one.

    Attributes:
        failure: The exception of the write that failed first; ``None`` without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Write a text, without the characters that the stream cannot encode."""
        self._attempt(lambda stream: stream.write(_encodable(text, stream)))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if self._stream is not None:
            self._attempt(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def _attempt(self, action: Callable[[TextIO], object]) -> None:
        # After a failure, the rest would stand in the wrong place.
        if self.failure is not None:
            return
        try:
            if self._stream is None:
                raise OSError("it is closed")
            action(self._stream)
        # ValueError: the stream was closed by this process.
        except (OSError, ValueError) as error:
            self.failure = error

    def silence(self) -> None:
        """Send the rest to nowhere, so that Python's own flush at exit does not fail too."""
        stream = self._stream
        if self.failure is None or stream is None:
            return
        # Another stream than Python's own is not flushed at exit, and its descriptor is not ours.
        if any(stream is own for own in (sys.__stdout__, sys.__stderr__)):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def __getattr__(self, name: str) -> Any:
        # tqdm and logging ask for more: encoding, fileno, ...
        return getattr(self._stream, name)


def _encodable(text: str, stream: TextIO) -> str:
    """Return a text in which characters that a stream cannot encode are substituted."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "pgn_client.substituted").decode(encoding)


@contextlib.contextmanager
def standard_streams() -> Iterator[Stream]:
    """Context manager in which a write to stdout or stderr raises nothing; yields stdout."""
    _occupy_closed_descriptors()
    stdout = sys.stdout
    stderr = sys.stderr
    out = Stream(stdout)
    err = Stream(stderr)
    sys.stdout = cast(TextIO, out)
    sys.stderr = cast(TextIO, err)
    try:
        yield out
    finally:
        for stream in (out, err):
            stream.flush()
            stream.silence()
        sys.stdout = stdout
        sys.stderr = stderr


def _occupy_closed_descriptors() -> None:
    """Open nothing in the place of closed standard streams.

    Otherwise the next file that is opened, a ledger for example, would have the number of stdout or
    stderr, and whatever a library prints would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system gives the smallest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def settled(out: Stream, status: int) -> int:
    """Return the exit status after all output: failure if results for stdout were lost.

    A reader that closes a pipe, as ``head`` does, has read enough; that is no failure.
    """
    out.flush()
    if out.failure is None or isinstance(out.failure, BrokenPipeError):
        return status
    talk(f"error: stdout: cannot be written ({reason(out.failure)}); what was printed is lost")
    return status or FAILED


def talk(text: str) -> None:
    """Print a message for the user on stderr."""
    print(printable(text, "\n\t"), file=sys.stderr, flush=True)  # noqa: T201 (prints messages)


def tell(text: str) -> bool:
    """Print data on stdout; return whether somebody can read more."""
    print(printable(text, "\n\t"), flush=True)  # noqa: T201 (the one place that prints data)
    return getattr(sys.stdout, "failure", None) is None


_options: dict[str, str] = {}
"""Name of an argument in Python → what a user of the current command writes for it."""
_ALIASES = {
    "pgn_ckpt": "--ckpt",
    "labels": "--source-labels",
    "http": "--header",
    "api_key": "PGN_API_KEY",
}
"""Arguments whose options have other names."""
_GIVEN_WITH_OPTION = re.compile(r"(?<![\w?&/.-])[a-z_]+= \((--[^()]*)\)")
_ARGUMENT = re.compile(r"(?<![\w?&/.-])([a-z_]+)=(None\b)?((?=[^\s;,.)]))?")
_PREFIX = re.compile(r"^([a-z_]+)(?=: )")
_BARE = re.compile(r"(?<![\w/.-])([a-z]+_[a-z_]+)(?![\w/=]|\.\w)")


def use_options(parser: argparse.ArgumentParser) -> None:
    """Let error messages name the options of this command in place of the library's arguments."""
    _options.clear()
    _options.update(_ALIASES)
    for action in parser._actions:
        if action.option_strings:
            _options[action.dest] = action.option_strings[0]


def error_text(error: Exception | str) -> str:
    """Return an error's message in one line, in the words of the command line.

    Messages of the library name its arguments: ``raise budget= to send more``, or ``timeout: got``.
    The same message names ``--budget`` and ``--timeout`` here.
    """
    text = printable(str(error))
    text = _GIVEN_WITH_OPTION.sub(r"\1", text)
    text = _ARGUMENT.sub(_given, text)
    for pattern in (_PREFIX, _BARE):
        text = pattern.sub(lambda match: _options.get(match[1], match[1]), text)
    return text.replace("PGN_API_KEY or PGN_API_KEY", "PGN_API_KEY")


def _given(match: re.Match[str]) -> str:
    """Return ``NAME=``, ``NAME=None`` or ``NAME=VALUE`` as an option."""
    option = _options.get(match[1])
    if option is None:
        return match[0]
    if match[2]:
        return f"no {option}"
    return option if match[3] is None else f"{option} "


def complain(error: Exception, status: int) -> int:
    """Print an error in one line on stderr, and return the exit status."""
    talk(f"error: {error_text(error)}")
    return status


class Failures:
    """Prints the errors of single images, sums up repeated ones, and counts them.

    After the budget is spent, for example, every image fails with the same error.

    Args:
        say: Function that prints a message; one that is compatible with a progress bar, for
            example.

    Attributes:
        files: The files that failed, each with its reason.
        succeeded: Number of images that did not fail.
        budget_spent: Whether an image was not sent because the budget was spent.
        ended: Whether an error ended the run before its last image.
    """

    def __init__(self, say: Callable[[str], object] = talk) -> None:
        self.files: list[Skipped] = []
        self.succeeded = 0
        self.budget_spent = False
        self.ended = False
        self._say = say
        self._times: Counter[str] = Counter()

    def add(self, path: str, error: Exception | str) -> None:
        """Count an image's error, and print it unless the same was printed often enough."""
        from pgn_client.imaging.scan import Skipped

        self.budget_spent |= isinstance(error, BudgetExceededError)
        text = error_text(error)
        short = text.removeprefix(f"{printable(path)}: ")
        if len(short) > LONGEST_REASON:
            short = f"{short[:LONGEST_REASON]}…"
        self.files.append(Skipped(Path(path), short))

        # An error that concerns every image is raised too, and printed where it is caught.
        if isinstance(error, CONCERN_ALL):
            return
        shown_path = printable(path)
        self._times[text] += 1
        if self._times[text] <= SAME_ERRORS:
            self._say(f"error: {text}" if shown_path in text else f"error: {shown_path}: {text}")

    def sum_up(self) -> None:
        """Print how many images had each error that was printed less often than it occurred."""
        for text, times in self._times.items():
            if times > SAME_ERRORS:
                self._say(f"error: {times - SAME_ERRORS} more images: {text}")

    @property
    def count(self) -> int:
        """Number of failed images."""
        return len(self.files)

    def status(self, images: int, max_failure_rate: float = 0.0) -> int:
        """Return the exit status of a command whose only failures are these.

        Args:
            images: Number of images of the run.
            max_failure_rate: Largest share of them that may fail, in [0, 1].
        """
        if self.budget_spent:
            return BUDGET
        return FAILED if self.ended or self.count > max_failure_rate * images else OK


def tell_records(
    records: Iterator[dict[str, Any] | FileResult],
    *,
    as_json: bool,
    people: bool = False,
    say: Callable[[str], object] = talk,
    failures: Failures | None = None,
) -> int:
    """Print prediction records on stdout, and the errors among them on stderr.

    Args:
        records: One dictionary per image, with keys such as ``path``, ``label``, ``score`` and
            ``error``, or a result that holds it.
        as_json: Whether to print every record as one JSON line.
        people: Whether to print a short line, for people to read, for every prediction, if
            ``as_json`` is false. If both are false, nothing is printed on stdout.
        say: Function that prints a message; one that is compatible with a progress bar, for
            example.
        failures: Receives the errors; ``None`` for a count of its own.

    Returns:
        Number of failed images. If an endpoint error ends the run, it is raised only if no image
        failed before, because otherwise the user has seen it already.
    """
    failures = failures or Failures(say)
    try:
        for item in records:
            record = item if isinstance(item, dict) else item.record
            # A line of an earlier run may lack what it was made without.
            error = record.get("error") if isinstance(item, dict) else item.error
            wanted = True
            if as_json:
                wanted = tell(json.dumps(record))
            elif people and error is None:
                path = printable(str(record["path"]))
                wanted = tell(f"{path}  {printable(record['label'])}  {record['score']:.3f}")
            if error is None:
                failures.succeeded += 1
            else:
                failures.add(str(record["path"]), error)
            # A run whose results go nowhere else must not pay for more of them.
            if people and not wanted:
                break
    except EndpointError:
        # The error of a failed image, printed above, has told the user what is wrong already.
        if not failures.count:
            raise
        failures.ended = True
    failures.sum_up()
    return failures.count


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
        formatter = TextLines(
            "%(asctime)s %(levelname)s %(message)s" if wish else "note: %(message)s"
        )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger("pgn_client")

    # Earlier handlers are replaced, because a second run in one process may have another stderr.
    logger.handlers = [handler]
    logger.setLevel(level)


class TextLines(logging.Formatter):
    """Formats a log record as one line of text, whatever names are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's own name)
        """Return the line of a log record, without its traceback."""
        return printable(super().formatMessage(record))


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
