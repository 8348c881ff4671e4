"""Everything that can be wrong: one clear line on stderr, and the right exit status."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from pgn_client import checkpoint as checkpoints
from pgn_client.evaluation.demo import local_server
from pgn_client.surrogate import backbone
from pgn_client.training import fit, load_task, recipe
from tests.e2e.conftest import pgn, without_key


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(40, 30)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0], mode)


def claims_to_be_huge():
    """A PNG header that promises 20,000 x 20,000 pixels, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
    )


REFUSED = {
    "empty": b"",
    "truncated": encoded(noise())[:200],
    "text": b"this is no picture",
    "huge": claims_to_be_huge(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_cannot_be_read_is_one_line_and_status_1(server, checkpoint, tmp_path, name):
    picture = tmp_path / f"{name}.png"
    picture.write_bytes(REFUSED[name])
    done = pgn("predict", picture, "--url", server, "--ckpt", checkpoint)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(picture) in done.stderr
    assert json.loads(done.stdout)["label"] is None


def test_a_missing_picture_is_one_line_and_status_2(server, checkpoint, tmp_path):
    done = pgn("predict", tmp_path / "missing.png", "--url", server, "--ckpt", checkpoint)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_folder_without_pictures_is_one_line_and_status_2(server, checkpoint, tmp_path):
    done = pgn("predict", tmp_path, "--url", server, "--ckpt", checkpoint)
    assert done.returncode == 2
    assert "without images" in done.stderr


def test_a_folder_named_like_a_picture_is_one_line(server, checkpoint, tmp_path):
    (tmp_path / "folder.png").mkdir()
    listing = tmp_path / "list.txt"
    listing.write_text(str(tmp_path / "folder.png"))
    done = pgn("predict", listing, "--out", "-", "--url", server, "--ckpt", checkpoint)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_an_unreadable_picture_is_one_line_and_status_1(server, checkpoint, tmp_path):
    picture = tmp_path / "secret.png"
    picture.write_bytes(encoded(noise()))
    picture.chmod(0)
    command = [
        sys.executable,
        "-m",
        "pgn_client",
        "predict",
        picture,
        "--url",
        server,
        "--ckpt",
        checkpoint,
    ]
    if os.geteuid() == 0:  # root may read everything, unless it gives that right up
        if not shutil.which("setpriv"):
            pytest.skip("root may read everything, and setpriv is not here to forbid it")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Permission denied" in done.stderr


ANSWERED = {
    "1x1.png": encoded(noise(size=(1, 1))),
    "cmyk.jpg": encoded(noise("CMYK"), "JPEG"),
    "16bit.png": encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)),
    "palette_alpha.png": encoded(noise("RGBA").quantize(32)),
    "rgba.webp": encoded(noise("RGBA"), "WEBP", lossless=True),
    "animated.gif": encoded(
        noise().quantize(16), "GIF", save_all=True, append_images=[noise().rotate(90).quantize(16)]
    ),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_unusual_picture_is_answered(server, checkpoint, tmp_path, name):
    picture = tmp_path / name
    picture.write_bytes(ANSWERED[name])
    done = pgn("predict", picture, "--url", server, "--ckpt", checkpoint)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] is not None
    assert ("first of several frames" in done.stderr) == (name == "animated.gif")


def test_a_picture_that_carries_its_rotation_is_answered_upright(
    server, checkpoint, digits, tmp_path
):
    upright = Image.open(next((digits / "7").glob("*.png"))).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    (tmp_path / "turned.png").write_bytes(encoded(upright.rotate(90, expand=True), exif=exif))
    (tmp_path / "upright.png").write_bytes(encoded(upright))
    scores = [
        json.loads(
            pgn("predict", tmp_path / f"{name}.png", "--url", server, "--ckpt", checkpoint).stdout
        )["scores"]
        for name in ("turned", "upright")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def spoiled(kind, good, path):
    """Write a checkpoint with one thing wrong."""
    if kind == "pickle":
        torch.save({"a": torch.zeros(2)}, path)
    elif kind == "truncated":
        path.write_bytes(good.read_bytes()[:-1000])
    elif kind == "newer schema":
        card, tensors = checkpoints.read(good)
        save_file(tensors, path, metadata={"pgn_client": json.dumps(card | {"schema": 99})})
    elif kind == "missing":
        return
    elif kind == "directory":
        path.mkdir()


@pytest.mark.parametrize("kind", ["pickle", "truncated", "newer schema", "missing", "directory"])
def test_a_bad_checkpoint_is_one_line_and_status_2(server, checkpoint, digits, tmp_path, kind):
    path = tmp_path / "bad.safetensors"
    spoiled(kind, checkpoint, path)
    done = pgn(
        "predict", digits / "1", "--url", server, "--ckpt", path, "--out", tmp_path / "p.jsonl"
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr
    assert not (tmp_path / "p.jsonl").exists()


def test_a_checkpoint_for_another_backbone_is_one_line_and_status_2(server, digits, tmp_path):
    from timm.models import VisionTransformer

    torch.manual_seed(1)
    other = VisionTransformer(
        img_size=64, patch_size=8, embed_dim=48, depth=1, num_heads=2, num_classes=12
    )
    surrogate = backbone.Backbone(other, name="other", mean=[0.5] * 3, std=[0.5] * 3)
    path = tmp_path / "other.safetensors"
    task = load_task(digits, shots=2)
    fit(task, surrogate, recipe=recipe(epochs=1, trunk_epochs=1), mapping="blm+").save(path)
    done = pgn(
        *("predict", digits / "1", "--url", server, "--ckpt", path, "--out", tmp_path / "p.jsonl"),
        "--fusion",
        "none",
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "another" in done.stderr


def test_a_checkpoint_for_another_profile_says_which_option_mends_it(digits, checkpoint, tmp_path):
    with local_server(["--profile", "resize_crop:72:64"]) as url:
        arguments = (
            "predict",
            digits / "1",
            "--url",
            url,
            "--ckpt",
            checkpoint,
            "--out",
            tmp_path / "p.jsonl",
        )
        done = pgn(*arguments)
        assert done.returncode == 2
        assert "--profile resize_crop:72:64" in done.stderr
        assert pgn(*arguments, "--profile", "resize_crop:72:64").returncode == 0


FAULTS = {
    "html": ({"kind": "html"}, "502"),
    "too large": ({"kind": "status", "status": 413}, "413"),
    "throttled for ever": ({"kind": "status", "status": 429, "retry_after": "0"}, "429"),
    "unauthorized": ({"kind": "status", "status": 401}, "401"),
    "slow": ({"kind": "latency", "seconds": 6}, "within 2 s"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_server_is_one_line_and_status_1(digits, checkpoint, tmp_path, name):
    rule, expected = FAULTS[name]
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps({"rules": [rule]}))
    picture = next((digits / "1").glob("*.png"))
    with local_server(["--faults", str(faults)]) as url:
        done = pgn(
            "predict",
            picture,
            "--url",
            url,
            "--ckpt",
            checkpoint,
            "--timeout",
            "2",
            "--max-retries",
            "1",
        )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr


def test_a_server_that_is_down_is_one_line_and_status_1(digits, checkpoint):
    picture = next((digits / "1").glob("*.png"))
    done = pgn(
        "predict",
        picture,
        "--url",
        "http://127.0.0.1:9",
        "--ckpt",
        checkpoint,
        "--max-retries",
        "0",
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "127.0.0.1:9" in done.stderr


def test_a_wrong_key_is_one_line_that_does_not_show_the_key(digits, checkpoint):
    picture = next((digits / "1").glob("*.png"))
    with local_server_with_key("right-key") as url:
        done = pgn(
            *("predict", picture, "--url", url, "--ckpt", checkpoint),
            env={**os.environ, "PGN_API_KEY": "wrong-key"},
        )
        missing = pgn("predict", picture, "--url", url, "--ckpt", checkpoint, env=without_key())
        right = pgn(
            *("predict", picture, "--url", url, "--ckpt", checkpoint),
            env={**os.environ, "PGN_API_KEY": "right-key"},
        )
    assert (done.returncode, missing.returncode, right.returncode) == (1, 1, 0)
    assert len(done.stderr.splitlines()) == 1
    assert "wrong-key" not in done.stderr + done.stdout


def local_server_with_key(key):
    os.environ["SERVER_KEY_OF_THIS_TEST"] = key
    return local_server(["--api-key-env", "SERVER_KEY_OF_THIS_TEST"])


def test_adapting_never_needs_the_network_and_keeps_what_it_can(digits, checkpoint, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(digits / "6", folder / "six")
    (folder / "bad.png").write_text("no image")
    done = pgn("adapt", folder, tmp_path / "out", "--ckpt", checkpoint)
    assert done.returncode == 1
    written = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.png"))
    assert written == sorted(p.relative_to(folder) for p in (folder / "six").rglob("*.png"))
    with Image.open(tmp_path / "out" / written[0]) as image:
        assert image.size == (64, 64)
