"""``pgn demo``: the whole way once, on real handwritten digits, in a few minutes on two cores.

A server in its own process hosts the bundled ViT; a PGN and its input-independent rival are trained
here; raw and adapted images go over HTTP; the comparison is printed and written down.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pgn_client.errors import ConfigurationError, MissingDependencyError
from pgn_client.evaluation import report
from pgn_client.evaluation.fidelity import columns
from pgn_client.evaluation.results import Report
from pgn_client.evaluation.study import evaluate
from pgn_client.imaging.codecs import open_image
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.surrogate import backbone
from pgn_client.training import Task, fit, load_task, recipe
from pgn_client.training.rival import train_rival
from pgn_client.wire.client import AdaptedClient

EXAMPLES = 8
EPOCHS = 6


@contextmanager
def local_server(arguments: Sequence[str] = ()) -> Iterator[str]:
    """Run ``python -m mock_server`` in a process of its own on a free port; yield its URL.

    Raises:
        ConfigurationError: it ended before it was ready; the message is its own.
    """
    command = [sys.executable, "-m", "mock_server", "--port", "0", *arguments]
    with (
        tempfile.TemporaryFile("w+") as talk,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=talk, text=True) as process,
    ):
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("listening on "):
                talk.seek(0)
                reason = "".join(talk.read().strip().splitlines()[-1:])
                raise ConfigurationError(f"the mock server did not start: {reason}")
            yield line.removeprefix("listening on ").strip()
        finally:
            process.terminate()
            process.communicate()


def write_digits(folder: Path, *, images: int | None = None, seed: int = 0) -> None:
    """Write scikit-learn's 1,797 handwritten digits (8 x 8, real, shipped with it) as
    ``folder/CLASS/NNNN.png``.

    Args:
        folder: where; made if missing. Digits of an earlier call are removed.
        images: how many, drawn at random; ``None`` for all.
        seed: of the draw.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError("the demo's handwritten digits", "demo") from error
    for old in folder.glob("[0-9]/[0-9][0-9][0-9][0-9].png"):
        old.unlink()
    digits = load_digits()
    rows = np.random.default_rng(seed).permutation(len(digits.target))[:images]
    for i in sorted(rows.tolist()):
        target = folder / str(digits.target[i])
        target.mkdir(parents=True, exist_ok=True)
        # 17 levels of ink, white on black
        grey = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)
        Image.fromarray(grey).save(target / f"{i:04d}.png")


@dataclass(frozen=True)
class Demo:
    """What a demo run left behind.

    Attributes:
        report: the comparison.
        folder: where ``report.html``, ``report.json``, ``before_after.png``, ``pgn.safetensors``
            and ``digits/`` lie.
    """

    report: Report
    folder: Path


def run(
    folder: Path,
    *,
    images: int | None = None,
    epochs: int = EPOCHS,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
    progress: bool = False,
) -> Demo:
    """Train, serve, compare, and write everything to ``folder``.

    Args:
        folder: made if missing; earlier results in it are replaced.
        images: use so many of the 1,797 digits; ``None`` for all.
        epochs: of the training: half the recipe's, which digits do not need.
        seed: Seed for all random choices.
        note: told what is going on.
        progress: show bars on stderr.
    """
    note("writing scikit-learn's handwritten digits")
    write_digits(folder / "digits", images=images, seed=seed)
    task = load_task(folder / "digits", seed=seed)
    surrogate = backbone.load("bundled")
    note(f"training a PGN on {len(task.train)} digits through the bundled ViT")
    pgn = fit(task, surrogate, recipe=recipe(epochs=epochs), seed=seed, progress=progress)
    if pgn.card.interrupted:
        raise KeyboardInterrupt
    pgn.save(folder / "pgn.safetensors")
    note("training its rival, one prompt for all images, alike")
    rival = train_rival(pgn, task, surrogate, progress=progress)
    rival.save(folder / "iip.safetensors")
    note("starting the server in its own process")
    with local_server() as url:
        note(f"the hosted ViT answers at {url}")
        found = evaluate(
            task,
            lambda adapter: AdaptedClient(url, adapter),
            pgn,
            rival=rival,
            surrogate=surrogate,
            note=note,
        )
        report.write(folder, found, columns(pgn, task.test.paths))
        _before_after(task, url, pgn).save(folder / "before_after.png")
    return Demo(found, folder)


def _before_after(task: Task, url: str, pgn: PromptAdapter) -> Image.Image:
    """One test digit of each of the first classes, what is sent for it, and what comes back."""
    _, first = np.unique(task.test.labels, return_index=True)
    with AdaptedClient(url, pgn, fusion=None) as client:
        pairs = []
        for i in first[:EXAMPLES].tolist():
            image = open_image(task.test.paths[i])
            p = client.classify(image)
            said = f"{task.classes[task.test.labels[i]]} read as {p.label} ({p.score:.2f})"
            pairs.append(((image, client.adapt(image)), said))
    return report.sheet(pairs)
