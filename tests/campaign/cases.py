"""Seeded cases: each is made from (part, seed, index) alone, and counted by its outcome.

A part makes one case from a random generator, plays it against the public interfaces, and returns
the name of its outcome. What breaks a promise raises ``Fault``.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pgn_client.errors import PGNError

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
HANG = 1500
"""Seconds after which a part hangs in the tests."""


class Fault(Exception):  # noqa: N818 (a fault of the product, not an error of ours)
    """A case in which the product broke a promise."""


class LateFault(Fault):
    """A broken deadline. A busy machine is late too, so the case is played once more."""


class HungError(BaseException):
    """Raised by the alarm in a case that hangs; no handler of the product catches it."""


class Part(Protocol):
    """One kind of input from elsewhere.

    Attributes:
        name: Name in the command line and in the seed of every case.
        workers: Number of cases that are played at the same time.
        memory: Bytes that the process may take beyond its start; None for no limit.
        hang: Seconds after which a case of a part with one worker hangs; cases take a hundredth.
    """

    name: str
    workers: int
    memory: int | None
    hang: float

    def open(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        """Prepare what all cases share, in an empty folder."""
        ...

    def play(self, rng: random.Random, index: int) -> str:
        """Play one case and return its outcome."""
        ...


@dataclass
class Report:
    """The outcomes of a run.

    Attributes:
        part: Name of the part.
        seed: Seed of the run.
        outcomes: Number of cases by outcome.
        faults: Text of the fault by index of the case.
        slowest: Seconds and index of the slowest case.
        seconds: Length of the run.
    """

    part: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)
    seconds: float = 0.0

    def __str__(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        lines = [
            f"{self.part} seed {self.seed}: {sum(self.outcomes.values())} cases, "
            f"{len(self.faults)} faults, {self.seconds:.0f} s, peak {peak} MiB, slowest "
            f"{self.slowest[0]:.1f} s (case {self.slowest[1]})"
        ]
        lines += [f"  {count:6} {name}" for name, count in sorted(self.outcomes.items())]
        for index, text in sorted(self.faults.items()):
            lines.append(f"  FAULT {self.part} --seed {self.seed} --only {index}: {text}")
        return "\n".join(lines)


def run(part: Part, seed: int, indices: Iterable[int], folder: Path) -> Report:
    """Play the cases with these indices."""
    report = Report(part.name, seed)
    began = time.monotonic()
    again = []
    alone = part.workers == 1
    pool = ThreadPoolExecutor(part.workers)
    with part.open(folder), memory_limit(part.memory), pool:

        def play(index: int) -> tuple[int, str, Exception | None, float]:
            started = time.monotonic()
            rng = random.Random(f"{part.name}:{seed}:{index}")
            error: Exception | None = None
            outcome = "FAULT"
            try:
                with alarm(part.hang) if alone else contextlib.nullcontext():
                    outcome = part.play(rng, index)
            except Fault as fault:
                error = fault
            except HungError as hung:
                error = Fault(f"hangs {what(hung)}")
            # A case that cannot even be judged is a fault too, and the others go on.
            except Exception as unexpected:
                error = unexpected
            return index, outcome, error, time.monotonic() - started

        def note(index: int, outcome: str, error: Exception | None, seconds: float) -> None:
            report.outcomes[outcome] += 1
            report.slowest = max(report.slowest, (seconds, index))
            if error is not None:
                shown = str(error) if isinstance(error, Fault) else what(error)
                report.faults[index] = " ".join(shown.split())[:600]

        # Signals, and so the alarm, reach the main thread only.
        try:
            for result in (map if alone else pool.map)(play, indices):
                if isinstance(result[2], LateFault):
                    again.append(result[0])
                else:
                    note(*result)
            for index in again:
                note(*play(index))
        # What was found until then is worth its report.
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            report.outcomes["(ended early)"] += 0
    report.seconds = time.monotonic() - began
    return report


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise ``HungError`` in the main thread after so many seconds."""

    def ring(*_: object) -> None:
        raise HungError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def memory_limit(extra: int | None) -> Iterator[None]:
    """Limit this process's address space to what it has, and so many bytes more."""
    if extra is None:
        yield
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def what(error: BaseException) -> str:
    """Return an exception as one line, with the product's line that raised it."""
    place = ""
    traceback = error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if "pgn_client" in file:
            place = f" at {file[file.rindex('pgn_client') :]}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"


def checked(error: Exception, expected: type[PGNError] | tuple[type[PGNError], ...]) -> str:
    """Return the outcome of an error of ours.

    Raises:
        Fault: The error is of another type, or its message is not one printable line.
    """
    if not isinstance(error, expected):
        raise Fault(what(error)) from error
    text = str(error)
    if "\n" in text or "\r" in text or "\x1b" in text:
        raise Fault(f"a message of several lines or with control characters: {text!r}")
    if "MemoryError" in text or isinstance(error.__cause__, MemoryError):
        raise Fault(f"memory ran out: {text}")
    return type(error).__name__


def assert_no_fault(part: str, *, cases: int, start: int = 0) -> None:
    """Play cases of a part in a process of their own, because they limit its memory."""
    words = [part, "--seed", "1", "--start", str(start), "--cases", str(cases)]
    command = [sys.executable, "-m", "tests.campaign", *words]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANG
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
