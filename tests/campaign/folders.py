"""Folders of damaged images, through ``pgn predict`` and ``pgn adapt``: no image is lost."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tests.campaign.cases import MIB, ROOT, Fault
from tests.campaign.commands import Finished, answering, failures_allowed
from tests.campaign.images import GOOD, SUFFIXES, bases, damaged, saved
from tests.campaign.peer import Peer

FILES = ROOT / "tests/compatibility/files"
COUNT = 60
"""Images in a folder."""


class Folders:
    """A folder of damaged and good images, and a command over it.

    Exit status 0 or 1; every file has one line, or is counted as skipped; every image with a label
    was sent once.
    """

    name = "folders"
    workers = 1
    memory = None
    hang = 600

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        self.files = bases()
        self.ckpt = folder / "pgn.safetensors"
        self.ckpt.write_bytes(gzip.decompress((FILES / "pgn_pixel.safetensors.gz").read_bytes()))
        self.peer = Peer()
        try:
            yield
        finally:
            self.peer.close()

    def play(self, rng: random.Random, index: int) -> str:
        place = self.folder / str(index)
        images = place / "in"
        # Eight at a time are prepared together, and each takes 192 MB as RGB.
        large = index % 20 == 19
        for number in range(8 if large else COUNT):
            name = f"{rng.choice(('', 'a/', 'b/c/'))}{number:03}{rng.choice(SUFFIXES)}"
            path = images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if large:
                path.write_bytes(saved(Image.new("L", (7900, 8000)), "PNG"))
            elif rng.random() < 0.3:
                path.write_bytes(rng.choice(self.files)[1])
            elif rng.random() < 0.1:
                path.write_bytes(rng.choice(GOOD)(rng))
            else:
                path.write_bytes(damaged(self.files, rng, large=False))
        files = sorted(path for path in images.rglob("*") if path.is_file())
        if index % 2 or large:
            return self._predict(place, files)
        return self._adapt(place, files)

    def _predict(self, place: Path, files: list[Path]) -> str:
        out = place / "out.jsonl"
        words = ("predict", place / "in", "--url", self.peer.url, "--protocol", "pgn", "--out", out)
        with self.peer.playing(answering) as received:
            done = Finished((*words, *failures_allowed("predict")), place)
        outcome = done.check(1536 * MIB, accept=(0, 1))
        records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        accounted(files, records, done)
        labelled = [record for record in records if record["label"] is not None]
        if received.whole != len(labelled):
            raise Fault(f"{received.whole} images arrived, {len(labelled)} have a label")
        if any(record["label"] is None and not record["error"] for record in records):
            raise Fault("a line without label and without error")
        return f"predict: {outcome}"

    def _adapt(self, place: Path, files: list[Path]) -> str:
        out = place / "out"
        words = ("adapt", place / "in", out, "--ckpt", self.ckpt, "--json")
        done = Finished((*words, *failures_allowed("adapt")), place)
        outcome = done.check(2048 * MIB, accept=(0, 1))
        records = [json.loads(line) for line in done.out.splitlines()]
        accounted(files, records, done)
        written = {str(path) for path in out.rglob("*.png")}
        good = [record["adapted"] for record in records if record["error"] is None]
        if written != set(good) or len(good) != len(set(good)):
            raise Fault(f"{len(written)} files were written, {len(good)} lines say so")
        for path in good:
            Image.open(path).verify()
        return f"adapt: {outcome}"


def accounted(files: list[Path], records: list[dict[str, Any]], done: Finished) -> None:
    """Check that every file has one line, or is in the number of skipped files."""
    paths = [record["path"] for record in records]
    failed = sum(bool(record["error"]) for record in records)
    skipped = re.search(r"skipped (\d+)", done.err)
    # The number in the last line holds the failed images, which have a line.
    expected = len(files) - (int(skipped[1]) - failed if skipped else 0)
    if len(paths) != len(set(paths)) or len(paths) != expected:
        raise Fault(f"{len(files)} files, {len(set(paths))} with a line, {done.err[-200:]}")
    if not set(paths) <= {str(path) for path in files}:
        raise Fault("a line for a file that is not in the folder")
