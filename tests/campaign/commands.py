"""The command ``pgn`` as a part runs it: in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from pgn_client.cli import main
from tests.campaign.cases import MIB, ROOT, Fault
from tests.campaign.peer import Connection, response

STATUSES = (0, 1, 2, 3)
LABELS = ["goldfish", "tench", "jay"]


def command(*words: object, accept: tuple[int, ...] = STATUSES) -> str:
    """Run the command in this process; return its outcome, after checking what it printed.

    Raises:
        Fault: The exit status is another, or there is not exactly one line for an error.
    """
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
    return judged(status, out.getvalue(), err.getvalue(), accept)


def judged(status: int, out: str, err: str, accept: tuple[int, ...] = STATUSES) -> str:
    """Return the outcome of a finished command."""
    if status not in accept or "Traceback" in err:
        raise Fault(f"exit status {status}: {err[-500:]}")
    if "\x1b" in out + err or "\0" in out + err:
        raise Fault(f"control characters on the terminal: {(out + err)[:300]!r}")
    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    if status == 2 and (len(lines) != 1 or ": error: " not in f": {lines[0]}"):
        raise Fault(f"exit status 2, with other than one line: {lines[:4]!r}")
    return f"exit {status}"


class Finished:
    """A command that has ended.

    Attributes:
        status: Exit status; negative for a signal.
        out: Text on stdout.
        err: Text on stderr.
        peak: Greatest resident memory in bytes.
    """

    def __init__(self, words: tuple[object, ...], folder: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PGN_API_KEY"}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "pgn_client", *map(str, words)],
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=err,
            )
            try:
                _, code, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.send_signal(signal.SIGKILL)
                process.wait()
                raise
            process.returncode = os.waitstatus_to_exitcode(code)
            self.status = process.returncode
            self.out = read(out)
            self.err = read(err)
        self.peak = usage.ru_maxrss * 1024

    def check(self, memory: int, accept: tuple[int, ...] = STATUSES) -> str:
        """Return the outcome, after checking the output and the memory."""
        outcome = judged(self.status, self.out, self.err, accept)
        if self.peak > memory:
            raise Fault(f"took {self.peak // MIB} MiB, more than {memory // MIB}")
        return outcome


def read(file: io.BufferedRandom) -> str:
    """Return all of a temporary file as text."""
    file.seek(0)
    return file.read().decode("utf-8", "replace")


@cache
def takes(name: str, option: str) -> bool:
    """Whether a subcommand has an option."""
    return option in Finished((name, "--help"), Path.cwd()).out


def failures_allowed(name: str) -> list[str]:
    """Return the options with which any share of the images may be broken."""
    return ["--max-failure-rate", "1"] if takes(name, "--max-failure-rate") else []


def answering(connection: Connection) -> None:
    """Answer every image well, with our own protocol; there is no description."""
    prediction = {"labels": LABELS, "scores": [0.7, 0.2, 0.1]}
    answer = json.dumps({"output": "probs", "predictions": [prediction]}).encode()
    while (request := connection.head()) is not None:
        connection.body(request)
        connection.send(
            response(answer) if request.carries_image else response(b"{}", "404 Not Found")
        )


def chance(rng: random.Random, share: float) -> bool:
    """Return True in this share of the calls."""
    return rng.random() < share
