"""Rule 3: one bad image never ends a run of many, is named, and is found before money is spent."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from pgn_client.evaluation.demo import local_server
from pgn_client.wire.folders import adapt_files
from tests.e2e.conftest import pgn
from tests.e2e.test_predict import images_seen
from tests.rules.faulty_folders import encoded, fill, put
from tests.wire.fakes import ToyAdapter

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server():
    with local_server() as url:
        yield url


@pytest.fixture
def data(tmp_path):
    """Forty images and two broken ones, the last of each class."""
    folder = tmp_path / "data"
    fill(folder, "cat", "dog", images=20)
    put(folder / "cat" / "zz.png", encoded(Image.effect_noise((64, 64), 50))[:600])
    put(folder / "dog" / "zz.png", b"hello")
    return folder


@pytest.fixture
def prompts(tmp_path, make_adapter):
    path = tmp_path / "prompts.safetensors"
    make_adapter().save(path)
    return path


def words_of(command, data, prompts, url):
    out = data.parent / "out.safetensors"
    return {
        "map": ("map", data, "--url", url, "--out", out),
        "map, dry": ("map", data, "--url", url, "--out", out, "--dry-run"),
        "evaluate": ("evaluate", data, "--url", url, "--ckpt", prompts),
        "evaluate, dry": ("evaluate", data, "--url", url, "--ckpt", prompts, "--dry-run"),
        "train": ("train", data, "--out", out),
        "benchmark": ("benchmark", data, "--url", url, "--out", data.parent / "bench"),
    }[command]


COMMANDS = ["map", "map, dry", "evaluate", "evaluate, dry", "train", "benchmark"]


@pytest.mark.parametrize("command", COMMANDS)
def test_all_bad_images_are_named_before_anything_is_sent_or_trained(command, data, prompts):
    # Nobody listens at this address: a request would end in another error.
    done = pgn(*words_of(command, data, prompts, NOWHERE))
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert f"{data / 'cat' / 'zz.png'} (broken or truncated" in errors[0]
    assert f"{data / 'dog' / 'zz.png'} (not an image" in errors[1]
    assert "2 of 42 images" in errors[2]
    assert "--max-failure-rate" in errors[2]
    assert not (data.parent / "out.safetensors").exists()


def test_the_run_goes_on_without_few_bad_images(data, server, tmp_path):
    out = tmp_path / "mapped.safetensors"
    words = ("map", data, "--url", server, "--out", out, "--mapping", "blm")
    seen = images_seen(server)
    planned = pgn(*words, "--max-failure-rate", "0.05", "--dry-run")
    done = pgn(*words, "--max-failure-rate", "0.05")
    assert done.returncode == 0, done.stderr
    # Twenty images of each class, 60 % for training and 20 % for validation.
    assert images_seen(server) - seen == 2 * (12 + 4)
    assert json.loads(planned.stdout)["images"] == 2 * (12 + 4)
    for run in (planned, done):
        last = run.stderr.splitlines()[-1]
        assert last.startswith("used 40 files, skipped 2: ")
        assert "zz.png" in last


@pytest.mark.parametrize(("rate", "status"), [([], 1), (["--max-failure-rate", "0.05"], 0)])
@pytest.mark.parametrize("command", ["predict", "adapt"])
def test_a_command_that_saves_each_image_goes_on_and_counts(
    command, rate, status, data, prompts, server, tmp_path
):
    words = {
        "predict": ("predict", data, "--url", server, "--out", tmp_path / "p.jsonl"),
        "adapt": ("adapt", data, tmp_path / "adapted", "--ckpt", prompts),
    }[command]
    done = pgn(*words, *rate)
    assert done.returncode == status
    assert done.stderr.splitlines()[-1].startswith("used 40 files, skipped 2: ")
    assert "cat/zz.png: broken" in done.stderr or "cat/zz.png (broken" in done.stderr


@pytest.mark.parametrize("rate", ["-0.1", "1.5", "nan", "few"])
def test_a_share_out_of_range_is_a_usage_error(rate, data, capsys):
    with pytest.raises(SystemExit) as caught:
        pgn("predict", data, "--url", NOWHERE, "--max-failure-rate", rate)
    assert caught.value.code == 2


def test_an_image_larger_than_the_endpoint_takes_is_named_before_the_first_request(tmp_path):
    data = tmp_path / "data"
    fill(data, "cat", "dog", images=10)
    put(data / "dog" / "panorama.png", encoded(Image.new("RGB", (900, 60))))
    endpoint = tmp_path / "endpoint.json"
    endpoint.write_text(json.dumps({"url": NOWHERE, "limits": {"pixels": 50_000}}))
    done = pgn("map", data, "--url", endpoint, "--out", tmp_path / "m.safetensors")
    assert done.returncode == 2
    assert "panorama.png" in done.stderr
    assert "got 900x60" in done.stderr


def test_adapted_files_may_be_given_by_the_caller(tmp_path):
    fill(tmp_path / "in", "cat", images=3)
    files = sorted((tmp_path / "in").rglob("*.png"))[:2]
    done = list(adapt_files(ToyAdapter(), tmp_path / "in", tmp_path / "out", files=files))
    assert [result.source for result in done] == files


def test_an_image_without_pixels_is_one_bad_image(tmp_path):
    fill(tmp_path, "cat", "dog")
    put(tmp_path / "cat" / "x.png", b"P6\n0 0\n255\n")
    done = pgn("check", tmp_path)
    assert done.returncode == 1
    assert "x.png (" in done.stdout
