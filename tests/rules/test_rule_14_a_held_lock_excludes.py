"""Rule 14: a lock that is held excludes, and what killed or full machines leave is no obstacle."""

import contextlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.files import find_images, whole_file
from pgn_client.wire.folders import adapt_files, predict_files
from pgn_client.wire.journal import only_writer
from tests.wire.fakes import Server, ToyAdapter, client, file_bytes, picture

ROOT = Path(__file__).parents[2]

HOLDER = """
    import os, sys
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from pgn_client.errors import ConfigurationError
    from pgn_client.wire.journal import only_writer
    journal, mark = Path({journal!r}), {mark!r}
    held = overlaps = 0
    while held < 60:
        try:
            with only_writer(journal):
                held += 1
                try:
                    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    overlaps += 1
                else:
                    os.sched_yield()
                    os.unlink(mark)
        except ConfigurationError:
            pass
    print(overlaps)
"""


def script(text, **values):
    return [sys.executable, "-c", textwrap.dedent(text.format(root=str(ROOT), **values))]


def images(folder, names):
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(file_bytes(picture(number)))
    return folder


def test_many_short_holdings_by_several_processes_never_overlap(tmp_path):
    """The leaver of a lock once removed its file, so two runs held locks of the same name."""
    command = script(
        HOLDER, journal=str(tmp_path / "p.jsonl"), mark=str(tmp_path / "somebody is inside")
    )
    with contextlib.ExitStack() as stack:
        holders = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        assert [holder.communicate()[0].strip() for holder in holders] == ["0"] * 4


def test_two_runs_never_adapt_into_one_folder(tmp_path):
    folder = images(tmp_path / "in", [f"{n}.png" for n in range(3)])
    first = adapt_files(ToyAdapter(), folder, tmp_path / "out")
    next(first)
    with pytest.raises(ConfigurationError, match="another run is writing it"):
        next(adapt_files(ToyAdapter(), folder, tmp_path / "out"))
    assert len(list(first)) == 2
    assert all(r.skipped for r in adapt_files(ToyAdapter(), folder, tmp_path / "out"))


def test_names_of_any_length_are_adapted(tmp_path):
    longest = ["a" * 246 + ".png", "b" * 251 + ".jpg", "b" * 251 + ".png", "ö" * 125 + ".webp"]
    folder = images(tmp_path / "in", longest)
    results = list(adapt_files(ToyAdapter(), folder, tmp_path / "out"))
    assert [result.error for result in results] == [None] * 4
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    assert all(r.skipped for r in adapt_files(ToyAdapter(), folder, tmp_path / "out"))


def leftover(path):
    """Leave the temporary file of a process that was killed while it wrote ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(RuntimeError), whole_file(path) as partial:
        partial.write_bytes(b"half")
        kept = partial.read_bytes()
        raise RuntimeError
    partial.write_bytes(kept)
    return partial


def test_leftovers_of_a_killed_run_are_cleared_by_the_next(tmp_path):
    folder = images(tmp_path / "in", ["a.png"])
    out = tmp_path / "out"
    ours = [leftover(out / name) for name in ("a.png", "adapted.jsonl")]
    others = [leftover(out / "of another program.png"), out / ".0123456789ab.tmp"]
    others[1].write_bytes(b"not ours")
    list(adapt_files(ToyAdapter(), folder, out))
    assert [path.exists() for path in ours] == [False, False]
    assert [path.exists() for path in others] == [True, True]


def test_leftovers_of_a_journal_are_cleared_but_not_those_of_its_neighbor(tmp_path):
    ours = [leftover(tmp_path / name) for name in ("p.jsonl", "p.jsonl.journal.json")]
    neighbor = leftover(tmp_path / "q.jsonl")
    with only_writer(tmp_path / "p.jsonl"):
        pass
    assert [path.exists() for path in (*ours, neighbor)] == [False, False, True]


FULL = """
    import resource, sys
    sys.path.insert(0, {root!r})
    from pgn_client.errors import ConfigurationError
    from pgn_client.imaging.files import find_images
    from pgn_client.wire.folders import predict_files
    from tests.wire.fakes import Server, client
    # A file that may not grow stands for a disk that is full; Python ignores SIGXFSZ.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        with client(Server(), protocol="pgn", max_concurrency=1) as c:
            list(predict_files(c, find_images({folder!r}), {out!r}))
    except ConfigurationError as error:
        print(error)
"""


def test_a_disk_that_fills_up_keeps_whole_lines_and_the_next_run_resumes(tmp_path):
    folder = images(tmp_path / "in", [f"{n}.png" for n in range(9)])
    out = tmp_path / "p.jsonl"
    done = subprocess.run(
        script(FULL, folder=str(folder), out=str(out)), capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert "p.jsonl: cannot be written (File too large)" in done.stdout
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert 0 < len(kept) < 9
    assert out.read_text().endswith("\n")

    server = Server()
    with client(server, protocol="pgn") as c:
        list(predict_files(c, find_images(folder), out))
    assert len(server.requests) == 9 - len(kept)
    assert len(out.read_text().splitlines()) == 9


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_is_no_journal(tmp_path):
    folder = images(tmp_path / "in", ["a.png"])
    before = sorted(Path("/dev").iterdir())
    server = Server()
    with client(server, protocol="pgn") as c, pytest.raises(ConfigurationError, match="a device"):
        list(predict_files(c, find_images(folder), "/dev/full"))
    assert server.requests == []
    assert sorted(Path("/dev").iterdir()) == before
