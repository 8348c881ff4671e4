"""A real server in its own process, and a checkpoint trained for a moment: what the end-to-end
tests stand on.
"""

import importlib
import io
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from pgn_client.cli import main
from pgn_client.evaluation.demo import local_server, write_digits
from pgn_client.surrogate import backbone
from pgn_client.training import fit, load_task, recipe

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """600 real handwritten digits, one folder per class."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, images=600)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, digits):
    """A PGN for the bundled backbone: real, though trained on few images."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("checkpoint") / "pgn.safetensors"
    task = load_task(digits, shots=12)
    fit(task, backbone.load("bundled"), recipe=recipe(epochs=2, trunk_epochs=4)).save(path)
    return path


@pytest.fixture(scope="session")
def server():
    """The bundled ViT, hosted in its own process."""
    with local_server() as url:
        yield url


@pytest.fixture(scope="session")
def shared():
    """Real image sets and weights, where they are at hand."""
    if not SHARED.is_dir():
        pytest.skip("the shared image sets and weights are not here")
    return SHARED


def pgn(*arguments, **options):
    """Run the command as a user does; return what a finished process would.

    Without options it runs in this process, which spares two seconds of imports; with some, in one
    of its own.
    """
    words = [str(a) for a in arguments]
    if options:
        command = [sys.executable, "-m", "pgn_client", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


@contextmanager
def started(*arguments, **options):
    """Start the command and hand over its process; kill it in the end."""
    command = [sys.executable, "-m", "pgn_client", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def without_key():
    """The environment without an endpoint key."""
    return {k: v for k, v in os.environ.items() if k != "PGN_API_KEY"}


def dealt_out(digits, folder):
    """Deal images of class folders out to train (half), val and test; return the folder."""
    for i, path in enumerate(sorted(digits.rglob("*.png"))):
        target = folder / ("test", "val", "train", "train")[i % 4] / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def run_script(script, words, monkeypatch, capsys):
    """Run a script's ``main`` with these words on its command line; return what it printed."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    script.main()
    return capsys.readouterr().out


def load_script(name):
    """Import a script of ``benchmarks/``, which is no package."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    if folder not in sys.path:  # as when it is run: scripts import their neighbors
        sys.path.insert(0, folder)
    return importlib.import_module(name)
