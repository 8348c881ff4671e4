"""SIGKILL at a random moment, then the same command to its end: nothing lost, nothing sent twice.

The processes are forked from a server that has imported everything, so that a case takes a second
and not ten. They run ``pgn_client.cli.main`` as the command does, and the kill is a real one.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
from PIL import Image

from tests.campaign.cases import ROOT, Fault
from tests.campaign.peer import Connection, Peer, Received, response
from tests.compatibility.toy import Toy

FILES = ROOT / "tests/compatibility/files"
PRELOADED = [
    "pgn_client.cli",
    "pgn_client.wire.client",
    "pgn_client.evaluation.study",
    "pgn_client.evaluation.report",
    "pgn_client.training.fit_mapping",
    "pgn_client.prompting.adapter",
    "tests.campaign.kill",
]
CONCURRENCY = 3
IMAGES = 16
HANG = 300
"""Seconds after which a command hangs; none takes a tenth of it."""


def run_command(words: list[str], folder: str) -> None:
    """Run the command in this process, with its output in files; end with its exit status."""
    os.chdir(folder)
    log = os.open(f"log-{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    from pgn_client.cli import main

    sys.exit(main(words))


class Host:
    """The toy endpoint behind sockets; it counts images, and says when the n-th has arrived."""

    def __init__(self) -> None:
        expected = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))["toy"]
        self.toy = Toy(expected["labels"], expected["patch_embedding_sha256"])
        self.peer = Peer()
        self.arrived = 0
        self.changed = threading.Condition()

    def play(self, connection: Connection) -> None:
        """Answer every request of a connection as the toy does, after a few milliseconds."""
        while (request := connection.head()) is not None:
            connection.body(request)
            if len(request.body) < request.length:
                return
            if request.carries_image:
                with self.changed:
                    self.arrived += 1
                    self.changed.notify_all()
            url = f"{self.peer.url}{request.path}"
            told = self.toy(httpx.Request(request.method, url, content=bytes(request.body)))
            self.toy.images.clear()
            # So long that a kill often meets requests in flight.
            connection.stop.wait(0.01)
            connection.send(response(told.content, f"{told.status_code} X"))

    def wait(self, images: int, process: BaseProcess) -> None:
        """Wait until so many images have arrived, or the process has ended."""
        with self.changed:
            while self.arrived < images and process.is_alive():
                self.changed.wait(0.02)


class Kill:
    """A command that is killed once or twice, and then runs to its end.

    Every image has one line in the journal, in order. The ledger counts what the server received,
    and at most the requests in flight at a kill more.
    """

    name = "kill"
    workers = 1
    memory = None
    hang = 900

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        for name in ("pgn_pixel", "no_prompt"):
            data = gzip.decompress((FILES / f"{name}.safetensors.gz").read_bytes())
            (folder / f"{name}.safetensors").write_bytes(data)
        with zipfile.ZipFile(FILES / "digits.zip") as archive:
            archive.extractall(folder)
        source = sorted((folder / "digits").rglob("*.png"))
        self.images = folder / "images"
        for number in range(IMAGES):
            target = self.images / f"{number % 3}" / f"{number:02}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            # Each image is another one, so that none is answered from a cache of the others.
            image = Image.open(source[number]).convert("RGB")
            image.putpixel((0, 0), (number, 0, 0))
            image.save(target)
        self.host = Host()
        try:
            yield
        finally:
            self.host.peer.close()

    def play(self, rng: random.Random, index: int) -> str:
        kind = ("predict", "predict shared", "adapt", "map", "predict", "evaluate")[index % 6]
        place = self.folder / f"case {index}"
        place.mkdir()
        self.host.arrived = 0
        self.running: list[BaseProcess] = []
        try:
            with self.host.peer.playing(self.host.play) as received:
                if kind == "adapt":
                    killed = self._adapt(rng, place)
                elif kind.startswith("predict"):
                    killed = self._predict(rng, place, received, 4 if "shared" in kind else 1)
                else:
                    killed = self._study(rng, place, received, kind)
        except Fault as fault:
            logs = "".join(
                path.read_text(encoding="utf-8")[-300:] for path in sorted(place.glob("log-*"))
            )
            raise Fault(f"{kind}: {fault}; the commands said {logs[-600:]!r}") from fault
        finally:
            for process in self.running:
                process.kill()
                process.join()
            shutil.rmtree(place, ignore_errors=True)
        return f"{kind}, killed {killed} times"

    # ---- the commands

    def _sending(self, ledger: Path) -> list[object]:
        url = ("--url", self.host.peer.url, "--protocol", "pgn")
        limits = ("--max-concurrency", CONCURRENCY, "--budget", 10_000, "--ledger", ledger)
        return [*url, *limits]

    def _predict(self, rng: random.Random, place: Path, received: Received, processes: int) -> int:
        ledger = place / "ledger"
        lines = [
            ["predict", self.images, *self._sending(ledger), "--out", place / f"{n}.jsonl"]
            for n in range(processes)
        ]
        killed = self._kill_and_finish(rng, place, lines, IMAGES * processes)
        names = sorted(str(path) for path in self.images.rglob("*.png"))
        for number in range(processes):
            journal = (place / f"{number}.jsonl").read_text(encoding="utf-8")
            records = [json.loads(line) for line in journal.splitlines()]
            if [record["path"] for record in records] != names:
                raise Fault(f"the journal has {len(records)} lines of {len(names)}, or in disorder")
            if any(record["label"] is None for record in records):
                raise Fault("an image without a label")
        self._compare(ledger, received, killed * CONCURRENCY)
        # Besides the images in flight, as many may have an answer that waits for the line of an
        # earlier image.
        most = IMAGES * processes + killed * 2 * CONCURRENCY
        if received.whole > most:
            raise Fault(f"{received.whole} images were sent, expected at most {most}")
        return killed

    def _adapt(self, rng: random.Random, place: Path) -> int:
        ckpt = self.folder / "pgn_pixel.safetensors"
        out = place / "adapted"
        words = [["adapt", self.images, out, "--ckpt", ckpt]]
        killed = self._kill_and_finish(rng, place, words, 0)
        journal = (out / "adapted.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in journal]
        names = sorted(str(path) for path in self.images.rglob("*.png"))
        if [record["path"] for record in records] != names:
            raise Fault(f"the journal has {len(records)} lines of {len(names)}, or in disorder")
        # The lock stays: without it, two runs could hold it at the same time.
        files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"]
        left = {str(path) for path in files} - {str(out / "adapted.jsonl")}
        if left != {record["target"] for record in records}:
            raise Fault(f"the folder holds {sorted(left)}"[:300])
        for record in records:
            Image.open(record["target"]).load()
        return killed

    def _study(self, rng: random.Random, place: Path, received: Received, kind: str) -> int:
        ledger = place / "ledger"
        sending = [*self._sending(ledger), "--cache", place / "answers"]
        if kind == "map":
            words = [kind, self.folder / "digits", *sending, "--out", place / "map.safetensors"]
        else:
            # Without a prompt to compare with, nothing is trained.
            ckpt = self.folder / "no_prompt.safetensors"
            words = [kind, self.folder / "digits", *sending, "--ckpt", ckpt, "--out", place / "r"]
        killed = self._kill_and_finish(rng, place, [words], 24)
        written = place / ("map.safetensors" if kind == "map" else "r/report.html")
        if not written.is_file():
            raise Fault(f"there is no {written.name}")
        self._compare(ledger, received, killed * CONCURRENCY)
        return killed

    # ---- killing and counting

    def _kill_and_finish(
        self, rng: random.Random, place: Path, lines: list[list[object]], expected: int
    ) -> int:
        """Start all commands, kill each at a random moment, and then run all to their end.

        Returns:
            The number of processes that were really killed.
        """
        killed = 0
        for _ in range(rng.choice((1, 1, 2))):
            self.running = [self._started(words, place) for words in lines]
            # Most kills fall where images are sent; before and after, less can go wrong.
            if expected and rng.random() < 0.85:
                self.host.wait(self.host.arrived + rng.randrange(1, expected + 1), self.running[0])
                time.sleep(rng.uniform(0, 0.03))
            else:
                time.sleep(rng.uniform(0, 0.8))
            for process in self.running:
                process.kill()
                process.join(HANG)
                killed += process.exitcode == -9
        self.running = [self._started(words, place) for words in lines]
        for process in self.running:
            process.join(HANG)
            if process.is_alive():
                raise Fault("the command after the kill does not end")
            if process.exitcode != 0:
                raise Fault(f"the command after the kill ends with {process.exitcode}")
        return killed

    def _started(self, words: list[object], place: Path) -> BaseProcess:
        arguments = ([str(word) for word in words], str(place))
        process = self.context.Process(target=run_command, args=arguments, daemon=True)
        process.start()
        return process

    @staticmethod
    def _compare(ledger: Path, received: Received, in_flight: int) -> None:
        with contextlib.closing(sqlite3.connect(ledger)) as database:
            (counted,) = database.execute("SELECT TOTAL(images) FROM spent").fetchone()
        least = received.whole
        if not least <= counted <= received.whole + in_flight:
            raise Fault(
                f"the server received {received.whole} images, the ledger counts {counted:.0f}, "
                f"expected at most {in_flight} more"
            )
