"""``pgn retain`` of a checkpoint that was trained here, with the bundled ViT."""

import json

import pytest
from PIL import Image

from tests.e2e.conftest import pgn


@pytest.fixture
def folder(digits, tmp_path):
    """Images of two digits."""
    for path in sorted(digits.rglob("*.png"))[:: len(list(digits.rglob("*.png"))) // 20]:
        target = tmp_path / "pictures" / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        (target / path.name).write_bytes(path.read_bytes())
    return tmp_path / "pictures"


def test_the_table_and_the_picture_of_what_is_left(folder, checkpoint, tmp_path):
    done = pgn("retain", folder, "--ckpt", checkpoint, "--out", tmp_path / "steps.png")
    assert done.returncode == 0, done.stderr
    title, *lines = done.stdout.splitlines()
    count = len(list(folder.rglob("*.png")))
    assert title == f"share of {count} images with the label of the first step"
    shares = {stage: float(share) for stage, share in (line.split() for line in lines)}
    assert list(shares) == ["latent", "float", "clipped", "uint8", "jpeg95_444", "jpeg75_420"]
    assert shares["latent"] == shares["float"] == 1
    assert shares["uint8"] >= 0.9
    with Image.open(tmp_path / "steps.png") as sheet:
        assert sheet.width > 5 * 160


def test_a_bad_picture_is_told_and_the_others_are_followed(folder, checkpoint):
    (folder / "broken.png").write_bytes(b"not a picture")
    done = pgn("retain", folder, "--ckpt", checkpoint, "--profile", "resize_crop:72:64", "--json")
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert json.loads(done.stdout)["pictures"] == len(list(folder.rglob("*.png"))) - 1


def test_only_bad_pictures_leave_nothing_to_tell(checkpoint, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    done = pgn("retain", tmp_path, "--ckpt", checkpoint)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("out", ["steps.jpg", "missing/steps.png"])
def test_a_picture_that_cannot_be_written_is_told_before_the_work(
    folder, checkpoint, tmp_path, out
):
    done = pgn("retain", folder, "--ckpt", checkpoint, "--out", tmp_path / out)
    assert done.returncode == 2
    assert "expected a .png file in a folder that exists" in done.stderr


def test_other_weights_are_refused(folder, checkpoint):
    done = pgn(
        "retain",
        folder,
        "--ckpt",
        checkpoint,
        "--backbone",
        "bundled",
        "--weights",
        "nowhere.safetensors",
    )
    assert done.returncode == 2
    assert "nowhere.safetensors" in done.stderr
