# ruff: noqa: F811 (fixtures that are imported)
"""Rule 2: a run ends with its files saved and an honest exit status, whatever its terminal does."""

import contextlib
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pgn_client.cli import main
from pgn_client.cli.console import Stream
from pgn_client.cli.options import to_json

from .hosted import place, server, url  # noqa: F401 (two are fixtures)

PARTS = ("⊕ − ≥ é 中 😀", "+ - >= \\u00e9 \\u4e2d \\ud83d\\ude00")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


STREAMS = {
    "ascii": (lambda: io.TextIOWrapper(io.BytesIO(), "ascii"), 0),
    "cp1252": (lambda: io.TextIOWrapper(io.BytesIO(), "cp1252"), 0),
    "a full disk": (partial(open, "/dev/full", "w", encoding="utf-8"), 1),
    "a closed pipe": (closed_pipe, 0),
    "closed": (lambda: None, 1),
}
"""Kind of stdout and stderr → function that makes one, and the exit status of a success."""

COMMANDS = {
    "inspect": ("inspect pgn.safetensors", ()),
    "inspect --json": ("inspect pgn.safetensors --json", ()),
    "adapt": ("adapt in out --ckpt pgn.safetensors --json", ("dark/03.png", "bright/11.png")),
    "predict": ("predict in --url URL --out out/p.jsonl --json", ("p.jsonl",)),
    "probe": ("probe URL --out out/e.json --limit 12", ("e.json",)),
    "drift": ("drift --url URL --cache a.sqlite", ()),
    "map": ("map in --url URL --out out/m.safetensors", ("m.safetensors",)),
}
"""Command → its words, and the files that it must leave in ``out``."""


def run(words, stream, monkeypatch):
    """Run a command in this process, with stdout and stderr of one kind; return the status."""
    streams = [STREAMS[stream][0]() for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    try:
        return main(words)
    finally:
        monkeypatch.undo()
        for opened in filter(None, streams):
            # What could not be written is tried once more.
            with contextlib.suppress(OSError):
                opened.close()


@needs_full
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("command", COMMANDS)
def test_files_are_saved_and_the_status_is_honest(
    command, stream, server, place, tmp_path, monkeypatch
):
    words, expected = COMMANDS[command]
    for name in ("in", "pgn.safetensors", "a.sqlite"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    words = words.replace("URL", url(server)).split()
    with monkeypatch.context() as patches:
        status = run(words, stream, patches)
    # Nothing is lost where nothing is printed on stdout.
    assert status == STREAMS[stream][1]
    out = tmp_path / "out"
    assert [(out / name).stat().st_size > 0 for name in expected] == [True] * len(expected)
    if command == "predict":
        assert len((out / "p.jsonl").read_text().splitlines()) == 24
    # The answers of an unfinished mapping are not needed any more.
    assert not list(out.glob("*.sqlite*"))


def test_predictions_for_a_pipe_that_nobody_reads_are_not_paid_for(server, place, monkeypatch):
    before = server.seen
    words = ["predict", str(place / "in"), "--url", url(server), "--out", "-", "--json"]
    with monkeypatch.context() as patches:
        assert run([*words, "--max-concurrency", "1"], "a closed pipe", patches) == 0
    assert server.seen - before < 24


def test_characters_that_a_terminal_lacks_are_substituted():
    buffer = io.BytesIO()
    stream = Stream(io.TextIOWrapper(buffer, "ascii"))
    stream.write(PARTS[0])
    stream.flush()
    assert buffer.getvalue().decode() == PARTS[1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_exact_on_every_terminal(encoding, monkeypatch):
    buffer = io.BytesIO()
    value = {PARTS[0]: "\udc80"}
    with monkeypatch.context() as patches:
        terminal = io.TextIOWrapper(buffer, encoding)
        patches.setattr(sys, "stdout", Stream(terminal))
        sys.stdout.write(to_json(value))
        sys.stdout.flush()
    assert json.loads(buffer.getvalue().decode(encoding)) == value


SHELLS = {
    "> /dev/full": 1,
    "2> /dev/full": 0,
    ">&-": 1,
    "2>&-": 0,
    "> /dev/full 2>&1": 1,
    ">&- 2>&-": 1,
    "| head -0 > /dev/null": 0,
    "2>&1 | head -0 > /dev/null": 0,
}


@needs_full
@pytest.mark.skipif(os.name == "nt", reason="written for a POSIX shell")
@pytest.mark.parametrize("redirection", SHELLS)
def test_a_process_ends_with_an_honest_status_and_nothing_else(redirection, place, tmp_path):
    """Python's own last flush would turn the status to 120."""
    python = f"PYTHONIOENCODING=ascii {sys.executable} -m pgn_client"
    command = f"set -o pipefail; {python} inspect {place / 'pgn.safetensors'} {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == SHELLS[redirection]
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    if redirection == "> /dev/full":
        assert done.stderr == (
            "error: stdout: cannot be written (No space left on device); what was printed is lost\n"
        )


@pytest.mark.parametrize("words", ["--help", "predict --help", "train --help", "--version"])
def test_help_is_printed_on_a_narrow_terminal(words, monkeypatch):
    buffer = io.BytesIO()
    with monkeypatch.context() as patches:
        patches.setattr(sys, "stdout", io.TextIOWrapper(buffer, "ascii"))
        with pytest.raises(SystemExit) as end:
            main(words.split())
    assert end.value.code == 0
    assert len(buffer.getvalue()) > 5


LONG = {
    "train": ("train data --out out/c.safetensors SMALL", ["c.safetensors"]),
    "evaluate": (
        "evaluate data --url URL --ckpt out/c.safetensors --out out/e",
        ["e/report.json", "e/report.html", "e/steps.png"],
    ),
    "retain": ("retain data/train/0 --ckpt out/c.safetensors --out out/r.png", ["r.png"]),
    "benchmark": (
        "benchmark data --url URL --methods padding --shots 2 --epochs 1 --test 10 --out out/b",
        ["b/table.json", "b/table.md", "b/table-2.png"],
    ),
    "demo": ("demo --images 120 --epochs 1 --out out/d", ["d/report.json", "d/report.html"]),
}


@needs_full
@pytest.mark.slow
def test_long_runs_are_saved_behind_a_full_disk_for_stdout_and_stderr(tmp_path):
    from pgn_client.evaluation.demo import local_server, write_digits
    from tests.e2e.conftest import dealt_out

    write_digits(tmp_path / "all", images=120)
    dealt_out(tmp_path / "all", tmp_path / "data")
    (tmp_path / "out").mkdir()
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": root}
    with local_server() as hosted, open("/dev/full", "w", encoding="utf-8") as full:
        for name, (words, files) in LONG.items():
            words = words.replace("URL", hosted).replace("SMALL", "--epochs 1 --shots 4")
            done = subprocess.run(
                [sys.executable, "-m", "pgn_client", *words.split()],
                cwd=tmp_path,
                env=environment,
                stdout=full,
                stderr=full,
                check=False,
            )
            assert done.returncode == 1, name
            assert all((tmp_path / "out" / file).stat().st_size for file in files), name
