from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from pgn_client.errors import (
    AuthenticationError,
    ConfigurationError,
    ImageError,
    InvalidRequestError,
)
from pgn_client.imaging.files import find_images
from pgn_client.wire.estimate import estimate
from pgn_client.wire.folders import adapt_files, predict_files

from .fakes import Server, ToyAdapter, answered, client, file_bytes, picture


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["b.png", "B.png", "a/x.jpg", "a/x.png", "ä ö.webp"]):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            file_bytes(picture(i), {".jpg": "JPEG", ".webp": "WEBP"}.get(path.suffix, "PNG"))
        )
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "._b.png").write_text("a resource fork")
    return tmp_path / "in"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(server, files, journal, ckpt=None, **options):
    with client(server, ckpt, protocol="pgn", **options) as c:
        return list(predict_files(c, files, journal))


# ---- finding


def test_a_folder_is_searched_in_a_stable_case_sensitive_order(folder):
    found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == ["B.png", "a/x.jpg", "a/x.png", "b.png", "ä ö.webp"]


def test_a_list_keeps_its_order_and_each_path_once(tmp_path, monkeypatch):
    text = "b.png\n\n a.png \nb.png\n"
    (tmp_path / "list.txt").write_text(text)
    assert find_images(tmp_path / "list.txt") == [Path("b.png"), Path("a.png")]
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert find_images("-") == [Path("b.png"), Path("a.png")]


def test_one_file_is_itself(folder):
    assert find_images(folder / "b.png") == [folder / "b.png"]


@pytest.mark.parametrize("kind", ["missing", "empty folder", "empty list", "binary"])
def test_nothing_to_do_is_an_error(kind, tmp_path):
    path = tmp_path / "x"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "empty list":
        path.write_text("\n\n")
    elif kind == "binary":
        path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigurationError):
        find_images(path)


# ---- predicting


def test_one_line_per_image_in_order_with_the_documented_fields(folder, tmp_path):
    (folder / "broken.png").write_bytes(b"")
    out = tmp_path / "out.jsonl"
    results = predict(Server(), find_images(folder), out)
    records = lines(out)
    assert [r.record for r in results] == records
    assert [r["path"] for r in records] == [str(path) for path in find_images(folder)]
    assert all(
        set(r) == {"path", "label", "score", "scores", "sha256", "attempts", "error"}
        for r in records
    )
    good, bad = records[0], next(r for r in records if r["path"].endswith("broken.png"))
    assert (good["label"], good["score"], good["error"]) == ("a", 0.75, None)
    assert bad["label"] is None
    assert "empty file" in bad["error"]
    assert len(bad["sha256"]) == 64


def test_a_rerun_sends_nothing_again(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    predict(Server(), find_images(folder), out)
    before = out.read_bytes()
    server = Server()
    results = predict(server, find_images(folder), out)
    assert server.requests == []
    assert all(result.resumed for result in results)
    assert out.read_bytes() == before


def test_changed_and_failed_and_new_files_are_sent(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    (folder / "c.png").write_bytes(b"broken")
    predict(Server(), find_images(folder), out)
    (folder / "c.png").write_bytes(file_bytes(picture(30)))
    (folder / "b.png").write_bytes(file_bytes(picture(31)))
    (folder / "A.png").write_bytes(file_bytes(picture(32)))
    server = Server()
    results = predict(server, find_images(folder), out)
    assert [Path(r.record["path"]).name for r in results if not r.resumed] == [
        "A.png",
        "b.png",
        "c.png",
    ]
    assert len(server.requests) == 3
    assert [r["path"] for r in lines(out)] == [str(path) for path in find_images(folder)]


def test_a_torn_last_line_is_dropped_and_its_file_sent_again(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    predict(Server(), find_images(folder), out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-30])
    server = Server()
    predict(server, find_images(folder), out)
    assert len(server.requests) == 1
    assert out.read_bytes() == whole


def test_a_journal_of_another_checkpoint_is_refused_and_kept(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    predict(Server(), find_images(folder), out, ToyAdapter())
    before = out.read_bytes()
    with pytest.raises(ConfigurationError, match="another checkpoint"):
        predict(Server(), find_images(folder), out, ToyAdapter([0.5, 0.5]))
    with pytest.raises(ConfigurationError, match="another endpoint"):
        predict(Server(), find_images(folder), out, ToyAdapter(), url="http://127.0.0.1:10")
    assert out.read_bytes() == before


def test_a_journal_of_failures_alone_is_open_to_another_setup(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    server = Server([httpx.Response(400, json={}) for _ in range(5)])
    with pytest.raises(InvalidRequestError, match="3 images in a row"):
        predict(server, find_images(folder), out)
    assert {line["label"] for line in lines(out)} == {None}
    predict(Server(), find_images(folder), out, ToyAdapter())
    assert None not in {line["label"] for line in lines(out)}
    with pytest.raises(ConfigurationError, match="another checkpoint"):
        predict(Server(), find_images(folder), out)


@pytest.mark.parametrize("sidecar", [False, True])
def test_a_file_that_is_no_journal_is_never_overwritten(sidecar, folder, tmp_path):
    out = tmp_path / "thesis.txt"
    if sidecar:
        predict(Server(), find_images(folder), out)
    out.write_text("chapter one\nchapter two\n")
    with pytest.raises(ConfigurationError):
        predict(Server(), find_images(folder), out)
    assert out.read_text() == "chapter one\nchapter two\n"


def test_an_output_that_cannot_be_written_is_one_line(folder, tmp_path):
    server = Server()
    with pytest.raises(ConfigurationError, match=r"nowhere/out\.jsonl: cannot be written"):
        predict(server, find_images(folder), tmp_path / "nowhere" / "out.jsonl")
    assert server.requests == []


def test_two_runs_never_write_one_journal(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    with client(Server(), protocol="pgn") as c:
        first = predict_files(c, find_images(folder), out)
        next(first)
        with pytest.raises(ConfigurationError, match="another run is writing it"):
            predict(Server(), find_images(folder), out)
        assert len(list(first)) == 4
    assert all(result.resumed for result in predict(Server(), find_images(folder), out))
    # The lock's file stays: removing it would let two runs hold locks of the same name.
    assert [file.stat().st_size for file in tmp_path.glob(".*lock")] == [0]


def test_models_that_differ_in_the_query_share_no_journal(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    predict(Server(), find_images(folder), out, url="http://127.0.0.1:9/?model=a&token=t0ken")
    with pytest.raises(ConfigurationError, match="another endpoint"):
        predict(Server(), find_images(folder), out, url="http://127.0.0.1:9/?model=b&token=t0ken")
    assert all(b"t0ken" not in path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def test_a_stream_that_ends_for_a_revoked_key_keeps_what_was_answered(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(AuthenticationError):
        predict(
            Server([answered(), *[httpx.Response(401)] * 9]),
            find_images(folder),
            out,
            max_concurrency=1,
        )
    server = Server()
    assert len(predict(server, find_images(folder), out)) == 5
    assert len(server.requests) == 4


def test_the_journal_holds_no_key(folder, tmp_path):
    predict(Server(), find_images(folder), tmp_path / "out.jsonl", api_key="sk-secret")
    assert all(
        b"sk-secret" not in path.read_bytes() for path in tmp_path.iterdir() if path.is_file()
    )


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from wire.fakes import Server, client
    from pgn_client.imaging.files import find_images
    from pgn_client.wire.folders import predict_files
    with client(Server(), protocol="pgn", max_concurrency=2) as c:
        for number, _ in enumerate(predict_files(c, find_images({folder!r}), {out!r}), 1):
            if number == 7:
                with open({out!r}, "a") as file:
                    file.write('{{"path": "torn')
                os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_sigkill_a_rerun_gives_each_image_once_and_resends_nothing(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out.jsonl"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.png").write_bytes(file_bytes(picture(i)))
    code = KILLED.format(tests=str(Path(__file__).parents[1]), folder=str(folder), out=str(out))
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -signal.SIGKILL
    server = Server()
    results = predict(server, find_images(folder), out)
    assert len(server.requests) == 13
    assert [result.resumed for result in results] == [True] * 7 + [False] * 13
    assert [r["path"] for r in lines(out)] == [str(path) for path in find_images(folder)]
    assert not list(tmp_path.glob(".*tmp"))


# ---- adapting


def test_adapting_mirrors_the_tree_losslessly(folder, tmp_path):
    out = tmp_path / "out"
    results = list(adapt_files(ToyAdapter(), folder, out))
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert names == ["B.png", "a/x.jpg.png", "a/x.png", "b.png", "ä ö.png"]
    for result in results:
        adapted = np.asarray(Image.open(result.target))
        assert np.array_equal(adapted, 255 - np.asarray(Image.open(result.source).convert("RGB")))


def test_adapting_again_skips_what_is_done(folder, tmp_path):
    list(adapt_files(ToyAdapter(), folder, tmp_path / "out"))
    (folder / "b.png").write_bytes(file_bytes(picture(40)))
    again = list(adapt_files(ToyAdapter(), folder, tmp_path / "out"))
    assert [result.source.name for result in again if not result.skipped] == ["b.png"]


def test_another_checkpoint_adapts_everything_again(folder, tmp_path):
    list(adapt_files(ToyAdapter(), folder, tmp_path / "out"))
    assert not any(
        result.skipped for result in adapt_files(ToyAdapter([0.5, 0.5]), folder, tmp_path / "out")
    )


def test_a_broken_picture_does_not_stop_the_folder(folder, tmp_path):
    (folder / "c.png").write_bytes(b"broken")
    results = list(adapt_files(ToyAdapter(), folder, tmp_path / "out"))
    assert [type(result.error) for result in results if result.error] == [ImageError]
    assert len(list((tmp_path / "out").rglob("*.png"))) == 5


@pytest.mark.parametrize("target", ["in", "in/out", "."])
def test_adapting_never_writes_into_its_source(target, folder, tmp_path):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigurationError, match="output folder"):
        list(adapt_files(ToyAdapter(), folder, tmp_path / target))
    assert sorted(folder.rglob("*")) == before


def test_a_single_picture_is_not_overwritten(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigurationError, match="holds the images"):
        list(adapt_files(ToyAdapter(), "b.png", "."))


def test_nothing_half_written_is_left(folder, tmp_path):
    list(adapt_files(ToyAdapter(), folder, tmp_path / "out"))
    assert not [
        name for _, _, names in os.walk(tmp_path / "out") for name in names if name.endswith(".tmp")
    ]


def test_an_estimate_does_not_count_the_loading_of_the_checkpoint_for_every_picture(
    tmp_path, monkeypatch
):
    class Clock:
        now, first = 0.0, True

        def work(self):
            self.now += 10.0 if self.first else 0.5
            self.first = False

    clock = Clock()

    class SlowToStart:
        max_concurrency = 8

        def info(self):
            clock.now += 0.8

        def adapt(self, _):
            clock.work()
            return Image.new("RGB", (4, 4))

        def pace(self, _):
            return 0.0

        def recorded(self, _):
            return 0

    files = [tmp_path / f"{i}.png" for i in range(40)]
    monkeypatch.setattr("pgn_client.wire.estimate.time.perf_counter", lambda: clock.now)
    found = estimate(SlowToStart(), files)
    assert (found.images, found.already_answered) == (40, 0)
    # local work; the round trip, 0.8 s for 8 at a time, is faster
    assert found.seconds == pytest.approx(40 * 0.5)


def test_an_estimate_tells_what_is_left_and_keeps_to_the_clients_own_limits(folder, tmp_path):
    files = find_images(folder)
    predict(Server(), files[:1], tmp_path / "out.jsonl")
    predict(Server(), files[1:3], tmp_path / "other.jsonl", cache=tmp_path / "a.sqlite")
    server = Server()
    with client(server, protocol="pgn", cache=tmp_path / "a.sqlite", requests_per_second=0.1) as c:
        found = estimate(c, files, tmp_path / "out.jsonl")
    assert (found.images, found.already_answered, found.seconds) == (2, 3, 20.0)
    assert server.requests == []


def test_an_estimate_knows_how_long_bodies_take(folder):
    files = find_images(folder)
    with client(Server(), protocol="pgn", bytes_per_second=10) as c:
        sizes = [len(c._session.prepare([file], always=True)[0].payload.data) for file in files]
        assert estimate(c, files, samples=len(files)).seconds == pytest.approx(
            sum(sizes) / 10, rel=0.01
        )
