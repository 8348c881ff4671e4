"""``pgn predict``, as a user runs it: journals, resumption after SIGKILL, budgets, dry runs."""

import json
import signal
import time
from pathlib import Path

import httpx
import pytest

from pgn_client.evaluation.demo import local_server, write_digits
from tests.e2e.conftest import pgn, started


def images_seen(url):
    """How many images the server has answered, by its own count."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("pgn_images_total"))


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def five_hundred(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five_hundred")
    write_digits(folder, images=500, seed=1)
    return folder


def test_a_run_killed_half_way_goes_on_and_sends_nothing_twice(five_hundred, checkpoint, tmp_path):
    out = tmp_path / "predictions.jsonl"
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps({"rules": [{"kind": "latency", "seconds": 0.02}]}))
    with local_server(["--faults", str(slow)]) as url:
        arguments = ("predict", five_hundred, "--url", url, "--ckpt", checkpoint, "--out", out)
        with started(*arguments, "--max-concurrency", "2") as process:
            deadline = time.monotonic() + 600
            while not out.exists() or len(out.read_bytes().splitlines()) < 200:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
        journaled = [
            line for line in out.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")
        ]
        assert 200 <= len(journaled) < 500
        settled = images_seen(url)
        for _ in range(100):  # what was on its way when the client died is still answered
            time.sleep(0.02)
            before, settled = settled, images_seen(url)
            if before == settled:
                break
        done = pgn(*arguments)
        assert done.returncode == 0, done.stderr
        assert images_seen(url) - settled == 500 - len(journaled)
    records = read(out)
    assert len(records) == 500
    assert [r["path"] for r in records] == sorted({str(p) for p in five_hundred.rglob("*.png")})
    assert all(r["label"] is not None and r["error"] is None for r in records)


def test_a_second_run_sends_nothing(server, digits, checkpoint, tmp_path):
    arguments = (
        "predict",
        digits / "3",
        "--url",
        server,
        "--ckpt",
        checkpoint,
        "--out",
        tmp_path / "p.jsonl",
    )
    assert pgn(*arguments).returncode == 0
    seen = images_seen(server)
    again = pgn(*arguments)
    assert again.returncode == 0
    assert images_seen(server) == seen
    assert "0 images sent" in again.stderr


def test_one_bad_picture_is_reported_and_the_others_are_answered(
    server, digits, checkpoint, tmp_path
):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, source in enumerate(sorted((digits / "5").glob("*.png"))[:3]):
        (folder / f"{i}.png").write_bytes(source.read_bytes())
    (folder / "1bad.png").write_text("no image")
    done = pgn(
        "predict", folder, "--url", server, "--ckpt", checkpoint, "--out", tmp_path / "p.jsonl"
    )
    assert done.returncode == 1
    records = read(tmp_path / "p.jsonl")
    assert [Path(r["path"]).name for r in records] == ["0.png", "1.png", "1bad.png", "2.png"]
    assert [r["label"] is None for r in records] == [False, False, True, False]
    assert "1bad.png" in records[2]["error"]
    assert "\n" not in records[2]["error"]


def test_one_picture_goes_to_stdout_as_one_json_line(server, digits, checkpoint):
    picture = next((digits / "7").glob("*.png"))
    done = pgn("predict", picture, "--url", server, "--ckpt", checkpoint)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    record = json.loads(line)
    assert set(record) == {"path", "label", "score", "scores", "sha256", "attempts", "error"}
    assert sum(record["scores"].values()) == pytest.approx(1, abs=1e-6)


def test_a_list_on_stdin_is_answered_in_its_own_order(server, digits, checkpoint):
    pictures = [str(p) for p in sorted((digits / "2").glob("*.png"))[:4]][::-1]
    done = pgn(
        "predict",
        "-",
        "--out",
        "-",
        "--url",
        server,
        "--ckpt",
        checkpoint,
        input="\n".join(pictures),
    )
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == pictures


def test_a_dry_run_sends_no_image_and_says_number_time_and_price(server, digits, checkpoint):
    seen = images_seen(server)
    done = pgn(
        *("predict", digits, "--url", server, "--ckpt", checkpoint),
        "--dry-run",
        "--price-per-image",
        "0.001",
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["images"] == 600
    assert plan["already_answered"] == 0
    assert plan["cost"] == pytest.approx(0.6)
    assert plan["seconds_at_least"] > 0
    assert images_seen(server) == seen


def test_a_budget_stops_before_it_is_exceeded_and_the_journal_is_kept(
    server, digits, checkpoint, tmp_path
):
    out = tmp_path / "p.jsonl"
    seen = images_seen(server)
    arguments = ("predict", digits / "4", "--url", server, "--ckpt", checkpoint, "--out", out)
    done = pgn(*arguments, "--budget", "10")
    assert done.returncode == 3
    assert "budget" in done.stderr
    assert images_seen(server) - seen == 10
    assert sum(r["label"] is not None for r in read(out)) == 10
    assert pgn(*arguments).returncode == 0
    assert all(r["label"] is not None for r in read(out))


def test_a_journal_of_another_checkpoint_is_not_mixed_up(server, digits, checkpoint, tmp_path):
    out = tmp_path / "p.jsonl"
    assert (
        pgn("predict", digits / "1", "--url", server, "--ckpt", checkpoint, "--out", out).returncode
        == 0
    )
    before = out.read_bytes()
    done = pgn("predict", digits / "1", "--url", server, "--out", out)
    assert done.returncode == 2
    assert "another" in done.stderr
    assert out.read_bytes() == before
