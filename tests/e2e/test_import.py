"""A published checkpoint on the command line, for a model without a classification head, as DINO's
are.
"""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pgn_client import PromptAdapter
from tests.e2e.conftest import pgn

pytestmark = pytest.mark.slow

DINO = "vit_small_patch16_224.dino"


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory):
    """Options that name a DINO ViT with random weights, and the endpoint's labels."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    save_file(
        timm.create_model(DINO, pretrained=False).state_dict(), folder / "weights.safetensors"
    )
    (folder / "labels.json").write_text(json.dumps(["hen", "jay", "owl"]))
    return [
        "--backbone",
        DINO,
        "--weights",
        folder / "weights.safetensors",
        "--labels",
        folder / "labels.json",
    ]


def test_import_inspect_and_adapt(shared, surrogate, tmp_path):
    checkpoint = tmp_path / "ours.safetensors"
    done = pgn("import", shared / "golden" / "pgn_dino_sun397.pt", *surrogate, "--out", checkpoint)
    assert done.returncode == 0, done.stderr
    assert "unreached" in done.stdout
    inspected = pgn("inspect", checkpoint)
    assert inspected.stdout == done.stdout
    outputs = np.load(shared / "golden" / "pgn_published_outputs.npz")
    images = [Image.fromarray(image.transpose(1, 2, 0)) for image in outputs["images"]]
    adapter = PromptAdapter.load(checkpoint)
    np.testing.assert_allclose(adapter.prompt_tokens(images), outputs["pgn_dino_sun397"], atol=1e-5)
    images[0].save(tmp_path / "image.png")
    adapted = pgn("adapt", tmp_path / "image.png", tmp_path / "out", "--ckpt", checkpoint)
    assert adapted.returncode == 0, adapted.stderr
    with Image.open(tmp_path / "out" / "image.png") as sent:
        assert np.array_equal(np.asarray(sent), np.asarray(adapter(images[:1])[0]))


def test_what_is_left_of_it_needs_a_model_that_answers(shared, surrogate, tmp_path):
    checkpoint = tmp_path / "ours.safetensors"
    imported = pgn(
        "import", shared / "golden" / "pgn_dino_sun397.pt", *surrogate, "--out", checkpoint
    )
    assert "no head for these labels" in imported.stderr
    Image.new("RGB", (30, 20)).save(tmp_path / "image.png")
    done = pgn("retain", tmp_path / "image.png", "--ckpt", checkpoint, *surrogate)
    assert done.returncode == 2
    assert "without a head for the checkpoint's labels" in done.stderr


def test_what_is_left_of_it_is_told_at_each_step(shared, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("vit_small_patch32_224", pretrained=False).state_dict(), weights)
    model = ["--backbone", "vit_small_patch32_224", "--weights", weights]
    checkpoint, folder = tmp_path / "ours.safetensors", tmp_path / "pictures"
    assert (
        pgn(
            "import", shared / "golden" / "pgn_dino_sun397.pt", *model, "--out", checkpoint
        ).returncode
        == 0
    )
    outputs = np.load(shared / "golden" / "pgn_published_outputs.npz")
    folder.mkdir()
    for i, image in enumerate(outputs["images"]):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    done = pgn(
        "retain", folder, "--ckpt", checkpoint, *model, "--out", tmp_path / "steps.png", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pictures"] == 3
    assert list(found["agreement"])[:3] == ["published", "latent", "float"]
    assert found["agreement"]["published"] == 1
    with Image.open(tmp_path / "steps.png") as sheet:
        assert sheet.height > 3 * 160


def test_without_labels_a_model_without_a_head_says_what_is_missing(shared, surrogate, tmp_path):
    done = pgn(
        "import",
        shared / "golden" / "pgn_dino_sun397.pt",
        *surrogate[:4],
        "--out",
        tmp_path / "x.safetensors",
    )
    assert done.returncode == 2
    assert "no classification head" in done.stderr
    assert "--labels" in done.stderr


def test_a_file_of_something_else_is_status_2_in_one_line(surrogate, tmp_path):
    (tmp_path / "x.pt").write_bytes(b"junk")
    done = pgn("import", tmp_path / "x.pt", *surrogate, "--out", tmp_path / "x.safetensors")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert not (tmp_path / "x.safetensors").exists()
