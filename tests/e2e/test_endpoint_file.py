"""``endpoint.json``: one file says what is known of an endpoint, and every command takes it."""

import json
import shutil

import pytest

from pgn_client import AdaptedClient, PromptAdapter
from pgn_client.evaluation.demo import local_server
from pgn_client.prompting.adapter import load
from tests.e2e.conftest import pgn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    """A server that crops, and the file that says so."""
    path = tmp_path_factory.mktemp("endpoint") / "endpoint.json"
    with local_server(["--profile", "resize_crop:72:64", "--top-k", "20", "--jpeg", "75"]) as url:
        known = {
            "profile": "resize_crop:72:64",
            "codec": "jpeg:75:420",
            "output": "probabilities",
            "top_k": 20,
        }
        path.write_text(json.dumps({"url": url, "protocol": "huggingface"} | known))
        yield path


def test_training_takes_over_what_the_file_knows(endpoint, digits, tmp_path):
    out = tmp_path / "x.safetensors"
    short = ["--shots", "3", "--epochs", "1"]
    done = pgn("train", digits, "--out", out, "--endpoint", endpoint, "--decimals", "4", *short)
    assert done.returncode == 0, done.stderr
    assert (
        "--profile resize_crop:72:64, --wire jpeg:75:420, --library smooth, --top-k 20"
    ) in done.stderr
    card = PromptAdapter.load(out).info
    assert card["profile"] == "resize_crop:72:64"
    assert card["library"]["kind"] == "smooth"
    assert card["scores"] == "probabilities"
    assert (card["recipe"]["wire"], card["recipe"]["top_k"], card["recipe"]["decimals"]) == (
        "jpeg:75:420",
        20,
        4,
    )


@pytest.mark.parametrize("words", [["--library", "pixel"], ["--method", "padding"]], ids=" ".join)
def test_what_is_said_beside_the_file_wins(words, endpoint, digits, tmp_path):
    out = tmp_path / "x.safetensors"
    done = pgn(
        "train",
        digits,
        "--out",
        out,
        "--endpoint",
        endpoint,
        "--shots",
        "3",
        "--epochs",
        "1",
        *words,
    )
    assert done.returncode == 0, done.stderr
    assert "--library" not in done.stderr
    assert (PromptAdapter.load(out).info["library"] or {"kind": "pixel"})["kind"] == "pixel"


def test_what_is_hosted_takes_over_the_profile_alone(endpoint, digits, tmp_path):
    out = tmp_path / "x.safetensors"
    short = ["--shots", "3", "--epochs", "1"]
    done = pgn("train", digits, "--method", "expres", "--out", out, "--endpoint", endpoint, *short)
    assert done.returncode == 0, done.stderr
    assert "endpoint.json: --profile resize_crop:72:64\n" in done.stderr
    assert load(out).info["profile"] == "resize_crop:72:64"


def test_training_warns_of_what_the_file_does_not_know(digits, tmp_path):
    path = tmp_path / "endpoint.json"
    path.write_text(json.dumps({"url": "http://127.0.0.1:9", "codec": "lossy"}))
    words = [
        "--out",
        tmp_path / "x.safetensors",
        "--endpoint",
        path,
        "--shots",
        "3",
        "--epochs",
        "1",
    ]
    warned = pgn("train", digits, *words).stderr
    assert (
        "profile and codec unknown; the training assumes a server that squashes images"
    ) in warned
    told = pgn("train", digits, *words, "--profile", "direct", "--wire", "jpeg:75:420").stderr
    assert "unknown" not in told


def test_prompts_get_the_margin_that_the_endpoint_wants(endpoint, digits, checkpoint, tmp_path):
    picture = next(digits.rglob("*.png"))
    with AdaptedClient(endpoint, checkpoint) as client:
        assert client.adapt(picture).size == (72, 72)
        assert len(client.answer(picture).labels) == 20
    assert (
        pgn(
            "adapt", picture, tmp_path / "out", "--ckpt", checkpoint, "--endpoint", endpoint
        ).returncode
        == 0
    )
    done = pgn("predict", picture, "--url", endpoint, "--ckpt", checkpoint)
    assert done.returncode == 0, done.stderr


def test_a_file_that_is_none_is_told_before_anything_is_done(digits, checkpoint, tmp_path):
    path = tmp_path / "endpoint.json"
    shutil.copy(checkpoint, path)
    done = pgn("train", digits, "--out", tmp_path / "x.safetensors", "--endpoint", path)
    assert done.returncode == 2
    assert "endpoint file" in done.stderr
    done = pgn("predict", digits, "--url", tmp_path / "none.json", "--ckpt", checkpoint)
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
