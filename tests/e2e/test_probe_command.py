"""``pgn probe``: from a URL to an ``endpoint.json`` that is right."""

import json

import pytest

from pgn_client.evaluation.demo import local_server
from pgn_client.wire.endpoint import Endpoint, Limits
from tests.e2e.conftest import pgn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hard():
    """A server that crops, re-encodes, and says only the best labels."""
    with local_server(["--profile", "resize_crop:72:64", "--jpeg", "75", "--top-k", "20"]) as url:
        yield url


def test_what_a_server_does_is_found_in_at_most_40_images(hard, tmp_path):
    out = tmp_path / "endpoint.json"
    done = pgn("probe", hard, "--protocol", "huggingface", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = Endpoint.read(out)
    assert (found.url, found.protocol) == (hard, "huggingface")
    measured = found.found
    assert (measured.profile, measured.input_size, measured.codec) == (
        "resize_crop:72:64",
        64,
        "jpeg:75:420",
    )
    assert (measured.output, measured.top_k, measured.decimals) == ("probabilities", 20, -1)
    findings = json.loads(done.stdout)
    assert findings == json.loads(out.read_text())["findings"]
    assert all(finding["evidence"] for finding in findings.values())
    assert int(done.stderr.split(" images sent")[0].split()[-1]) <= 40


def test_an_easy_server_leaves_images_for_its_limits(server, tmp_path):
    out = tmp_path / "endpoint.json"
    done = pgn("probe", server, "--protocol", "huggingface", "--out", out)
    assert done.returncode == 0, done.stderr
    found = Endpoint.read(out)
    assert (found.found.profile, found.found.codec, found.found.top_k) == ("direct", "lossless", 0)
    body = 10 * 2**20 * 4 / 3  # base64; 8 MiB in truth: a file of 5 MiB is taken, one of 10 is not
    assert body <= found.limits.body_bytes < 1.001 * body


def test_what_a_server_says_of_itself_is_taken_too(hard, tmp_path):
    out = tmp_path / "endpoint.json"
    done = pgn("probe", hard, "--limit", "5", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "the endpoint reports this value itself" in done.stdout
    found = Endpoint.read(out)
    assert (found.protocol, found.found.profile, found.found.codec) == (
        "pgn",
        "resize_crop:72:64",
        None,
    )
    assert found.limits == Limits(8 * 2**20, 4096**2)
    assert "5 images sent" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "1"], "at least 2"),
        (["--cache", "answers.sqlite"], "fresh answers"),
        (["--out", "missing/endpoint.json"], "a folder that exists"),
    ],
)
def test_wrong_words_are_told(server, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = pgn("probe", server, *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_nobody_there_is_one_line(tmp_path):
    done = pgn("probe", "http://127.0.0.1:9", "--out", tmp_path / "x.json", "--max-retries", "0")
    assert done.returncode == 1
    assert "cannot connect" in done.stderr
    assert not (tmp_path / "x.json").exists()
