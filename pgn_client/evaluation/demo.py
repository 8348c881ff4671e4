"""``pgn demo``: train, serve and evaluate once, on handwritten digits, in minutes on two cores.

The demo trains a Prompt Generation Network (PGN), which makes a prompt for each image, and its
rival, one prompt for all images. A server in its own process hosts the bundled ViT. Images with and
without prompts go to this server over HTTP. The comparison is printed and saved.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""Largest number of digits in ``before_after.png``."""
EPOCHS = 6
"""Epochs for training the PGN, and for its rival: half the default, which is enough for digits."""


@contextmanager
def local_server(
    arguments: Sequence[str] = (), *, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run ``python -m mock_server`` in a separate process on a free port; yield its URL.

    Args:
        arguments: More options of the mock server.
        environment: Environment variables to add to those of this process.

    Raises:
        ConfigurationError: The server ended before it was ready; the message has the last line of
            its stderr.
    """
    command = [sys.executable, "-m", "mock_server", "--port", "0", *arguments]
    # stderr goes to a file: nobody reads it while the server runs, and a full pipe would block it.
    with (
        tempfile.TemporaryFile("w+") as stderr,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        ) as process,
    ):
        try:
            # stdout is never None here, because of PIPE; the test is for the type checker.
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("listening on "):
                stderr.seek(0)
                lines = stderr.read().strip().splitlines()
                reason = lines[-1] if lines else ""
                raise ConfigurationError(f"the mock server did not start: {reason}")
            yield line.removeprefix("listening on ").strip()
        finally:
            process.terminate()
            # Waits for the end of the process, and drains stdout, which could block it otherwise.
            process.communicate()


def write_digits(folder: Path, *, images: int | None = None, seed: int = 0) -> None:
    """Write the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships as
    ``folder/CLASS/NNNN.png``.

    Args:
        folder: Folder to write; made if missing. Digits of an earlier call are removed.
        images: Number of digits, drawn at random; ``None`` for all.
        seed: Seed of the draw.

    Raises:
        MissingDependencyError: The package scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError("the demo's handwritten digits", "demo") from error
    # The pattern spares all files that this function has not written.
    for old in folder.glob("[0-9]/[0-9][0-9][0-9][0-9].png"):
        old.unlink()

    digits = load_digits()
    rows = np.random.default_rng(seed).permutation(len(digits.target))[:images]
    for i in sorted(rows.tolist()):
        target = folder / str(digits.target[i])
        target.mkdir(parents=True, exist_ok=True)
        # scikit-learn stores ink from 0 to 16; here that is black to white.
        pixels = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(target / f"{i:04d}.png")


@dataclass(frozen=True)
class Demo:
    """The results of a demo run.

    Attributes:
        report: Comparison of the prompt with its baselines.
        folder: Folder with ``report.html``, ``report.json``, ``steps.png``, ``before_after.png``,
            ``pgn.safetensors``, ``iip.safetensors`` and ``digits/``.
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
    """Run the demo on handwritten digits: train, serve, compare, and write results to ``folder``.

    PyTorch computes with one thread from then on.

    Args:
        folder: Folder to write; made if missing. Earlier results in it are replaced.
        images: Number of digits to use, of 1,797; ``None`` for all.
        epochs: Epochs for training the PGN, and for training its rival.
        seed: Seed for all random choices.
        note: Callback that takes progress messages.
        progress: Whether to show progress bars on stderr.

    Raises:
        KeyboardInterrupt: The training was interrupted.
    """
    use_one_thread()
    note(
        "training and server compute with one thread each: on images this small, more threads "
        "wait for each other"
    )
    note("writing scikit-learn's handwritten digits")
    write_digits(folder / "digits", images=images, seed=seed)
    task = load_task(folder / "digits", seed=seed)
    surrogate = backbone.load("bundled")

    note(f"training a PGN on {len(task.train)} digits through the bundled ViT")
    pgn = fit(task, surrogate, recipe=recipe(epochs=epochs), seed=seed, progress=progress)
    if pgn.card.interrupted:
        # fit() returns early on Ctrl-C, with the weights so far; the demo has no use for these.
        raise KeyboardInterrupt
    pgn.save(folder / "pgn.safetensors")

    note("training its rival, one prompt for all images, with the same recipe")
    rival = train_rival(pgn, task, surrogate, progress=progress)
    rival.save(folder / "iip.safetensors")

    note("starting the server in a separate process")
    with local_server(environment={"OMP_NUM_THREADS": "1"}) as url:
        note(f"the server hosts the ViT at {url}")
        result = evaluate(
            task,
            lambda adapter: AdaptedClient(url, adapter),
            pgn,
            rival=rival,
            surrogate=surrogate,
            note=note,
        )
        report.write(folder, result, columns(pgn, task.test.paths))
        _before_after(task, url, pgn).save(folder / "before_after.png")
    return Demo(result, folder)


def use_one_thread() -> None:
    """Let PyTorch and the linear algebra of NumPy and SciPy compute with one thread, from now on.

    The demo's models see 64 x 64 pixels only. Beside other busy processes, two threads took ten
    times the CPU time of one for the same training step, because a thread that waits for another
    one spins (``benchmarks/LOG.md``).
    """
    import torch

    # It comes with scikit-learn, which the digits need.
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(limits=1)


def _before_after(task: Task, url: str, pgn: PromptAdapter) -> Image.Image:
    """Draw one test digit for each of the first classes, above the same digit with its prompt as it
    is sent, with the true and the predicted label.
    """
    _, first = np.unique(task.test.labels, return_index=True)
    # Without fusion, so that the label is the endpoint's answer to the drawn image.
    with AdaptedClient(url, pgn, fusion=None) as client:
        pairs = []
        for i in first[:EXAMPLES].tolist():
            image = open_image(task.test.paths[i])
            p = client.classify(image)
            true_class = task.classes[task.test.labels[i]]
            caption = f"true {true_class}, predicted {p.label} ({p.score:.2f})"
            pairs.append(((image, client.adapt(image)), caption))
    return report.sheet(pairs)
