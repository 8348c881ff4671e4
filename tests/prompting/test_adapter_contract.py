"""EXPRES as it is trained against the golden files of ``tests/contract/adapters``, which the server
reads as well.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from timm.models import VisionTransformer

from pgn_client import checkpoint
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting.adapter import HostedAdapter, load
from pgn_client.prompting.methods.expres import EXPRES
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import fit_white_box, load_task, recipe
from pgn_client.types import ServerProfile

GOLDEN = Path(__file__).parents[1] / "contract" / "adapters"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text("utf-8"))
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def golden_backbone():
    model = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3
    )
    model.load_state_dict(load_file(GOLDEN / "backbone.safetensors"))
    return Backbone(model, name="golden", mean=HALF, std=HALF)


@pytest.mark.parametrize("name", sorted(EXPECTED["log_probs"]))
def test_training_computes_what_golden_adapters_answer(golden_backbone, name):
    tensors = load_file(GOLDEN / f"adapter_{name}.safetensors")
    sites = {
        k.removeprefix("residuals."): v for k, v in tensors.items() if k.startswith("residuals.")
    }
    model = EXPRES(tensors["prompts"], sites)
    files = (io.BytesIO(base64.b64decode(text)) for text in EXPECTED["pictures"])
    pictures = torch.stack(
        [torch.from_numpy(np.asarray(Image.open(f)).copy()).permute(2, 0, 1) for f in files]
    )
    with torch.no_grad():
        features = model.scores(
            None, pictures, Surrogate(golden_backbone, Canvas.build(8, 4, "full"))
        )
        found = (features @ tensors["mapping.weight"] + tensors["mapping.bias"]).log_softmax(-1)
    np.testing.assert_allclose(found, EXPECTED["log_probs"][name], atol=1e-4)


def test_both_sides_tell_a_backbone_by_the_same_hash(golden_backbone):
    assert golden_backbone.features_sha256() == EXPECTED["features_sha256"]
    with torch.no_grad():
        golden_backbone.model.head.weight += 1
        assert golden_backbone.features_sha256() == EXPECTED["features_sha256"]
        golden_backbone.model.norm.bias[0] += 1e-3
        assert golden_backbone.features_sha256() != EXPECTED["features_sha256"]
        golden_backbone.model.norm.bias[0] -= 1e-3


@pytest.fixture(scope="module")
def task(make_folder, tmp_path_factory):
    return load_task(make_folder(tmp_path_factory.mktemp("task"), train=8, val=4))


@pytest.fixture
def trained(make_backbone, task):
    return fit_white_box(
        task, make_backbone(), "expres", recipe=recipe(epochs=1, prompt_tokens=3), seed=0
    )


def test_what_is_saved_is_of_the_contract(trained, tmp_path):
    path = tmp_path / "e.safetensors"
    card = trained.save(path)
    tensors = load_file(path)
    golden = load_file(GOLDEN / "adapter_default.safetensors")
    assert {k: v.dim() for k, v in tensors.items()} == {k: v.dim() for k, v in golden.items()}
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float32"}
    assert card["backbone"]["features_sha256"] == trained.surrogate.backbone.features_sha256()
    assert card["recipe"]["prompt_tokens"] == 3
    assert card["learnable"]["prompt"] == sum(
        v.numel() for k, v in tensors.items() if not k.startswith("mapping.")
    )
    assert checkpoint.read_card(path) == card
    assert "linear over output tokens, on the server" in checkpoint.summary(card)


def test_a_hosted_checkpoint_needs_no_torch_side(trained, tmp_path):
    path = tmp_path / "e.safetensors"
    card = trained.save(path)
    found = load(path)
    assert isinstance(found, HostedAdapter)
    assert found.hosted.data == path.read_bytes()
    assert found.hosted.name == f"expres-{card['fingerprint'][:24]}"
    assert found.mapping.classes == tuple(card["classes"])
    (prepared,) = found.prepare([Image.new("RGB", (50, 20), "red")])
    assert (prepared.image.size, prepared.hosted, prepared.local_log_probs) == (
        (32, 32),
        found.hosted.reference,
        None,
    )


def test_behind_a_crop_the_model_sees_the_whole_picture(trained, tmp_path):
    path = tmp_path / "e.safetensors"
    trained.save(path, ServerProfile.parse("resize_crop:36:32"))
    plain, cropped = load(path, "direct"), load(path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    (bare,), (sent,) = plain([picture]), cropped([picture])
    assert sent.size == (36, 36)
    assert np.array_equal(np.asarray(sent)[2:34, 2:34], np.asarray(bare))


def test_other_methods_are_not_hosted(make_backbone, task, tmp_path):
    model = fit_white_box(task, make_backbone(), "vpt_deep", recipe=recipe(epochs=1))
    with pytest.raises(
        ConfigurationError, match="got vpt_deep, which no server hosts, expected expres"
    ):
        model.save(tmp_path / "v.safetensors")


def test_another_profile_changes_what_is_sent_and_not_the_name_on_the_server(trained, tmp_path):
    path = tmp_path / "e.safetensors"
    trained.save(path)
    side = trained.surrogate.backbone.input_size
    plain = load(path)
    resized = load(path, f"resize_crop:{side + 4}:{side}")
    assert resized.hosted == plain.hosted
    assert (
        resized([Image.new("RGB", (9, 9))])[0].width
        == plain([Image.new("RGB", (9, 9))])[0].width + 4
    )
    with pytest.raises(ConfigurationError):
        load(path, "resize_crop:999:998")


def test_a_card_that_lacks_parts_is_refused(tmp_path):
    path = tmp_path / "e.safetensors"
    checkpoint.write(
        path, {"method": "expres", "classes": ["a", "b"]}, {"prompts": np.zeros((1, 2))}
    )
    with pytest.raises(CheckpointError, match="its card is not complete"):
        load(path)
    path.write_bytes(save({"prompts": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="without a PGN card"):
        load(path)
