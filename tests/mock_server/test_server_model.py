from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mock_server import model as model_module
from mock_server.__main__ import main
from mock_server.errors import ConfigurationError
from mock_server.model import Asked, distinct, load, read_labels
from mock_server.preprocess import Profile
from mock_server.settings import Settings

ARCHITECTURE = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 1,
    "num_heads": 2,
    "global_pool": "token",
}


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory):
    """Return a file with random weights of timm's tiny `test_vit`, and that network."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", pretrained=False).eval()
    file = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(network.state_dict(), file)
    return file, network


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Install float16 weights and a card as the bundled model; return the network they hold."""
    torch.manual_seed(0)
    network = timm.models.VisionTransformer(num_classes=3, **ARCHITECTURE).half().float()
    save_file(
        {k: v.half() for k, v in network.state_dict().items()}, tmp_path / "bundled.safetensors"
    )
    card = {
        "name": "bundled",
        "architecture": ARCHITECTURE,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.5, 0.5],
        "classes": ["a", "b", "a"],
    }
    (tmp_path / "bundled.json").write_text(json.dumps(card))
    monkeypatch.setattr(model_module, "WEIGHTS", tmp_path)
    return network.eval()


def test_a_timm_model_is_served_with_its_file_and_its_own_preprocessing(timm_weights):
    file, network = timm_weights
    served = load(Settings(model="test_vit", weights=file))
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert np.allclose(served.run([Asked(x[0].numpy())])[0], network(x)[0].numpy(), atol=1e-5)
    assert served.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(served.preprocessing.profile) == "resize_crop:168:160"  # floor(160 / 0.95)
    assert served.patch_size == 16
    assert served.classes[:2] == ("class_0", "class_1")


def test_a_served_model_is_frozen(timm_weights):
    network = load(Settings(model="test_vit", weights=timm_weights[0])).network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_bundled_model_is_read_from_float16_and_its_card(bundle):
    served = load(Settings())
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert np.allclose(served.run([Asked(x[0].numpy())])[0], bundle(x)[0].numpy(), atol=1e-6)
    assert served.name == "bundled"
    assert served.classes == ("a", "b", "a (2)")
    assert served.preprocessing.profile == Profile()
    assert served.preprocessing.mean == (0.5, 0.4, 0.3)
    assert {parameter.dtype for parameter in served.network.parameters()} == {torch.float32}


def test_a_shortest_edge_profile_lets_the_model_take_other_shapes(bundle):
    served = load(Settings(profile=Profile.parse("shortest_edge:16")))
    assert served.run([Asked(np.zeros((3, 16, 27), np.float32))])[0].shape == (3,)


def test_equal_class_names_get_a_suffix_in_the_models_order():
    assert distinct(["crane", "hen", "crane", "crane"]) == (
        "crane",
        "hen",
        "crane (2)",
        "crane (3)",
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["crane", "crane", "crane (2)"], ("crane", "crane (3)", "crane (2)")),
        (["crane", "crane (2)", "crane"], ("crane", "crane (2)", "crane (3)")),
        (["a", "a (2)", "a", "a (2)"], ("a", "a (2)", "a (3)", "a (2) (2)")),
    ],
)
def test_a_suffix_never_makes_a_name_that_the_list_has(names, expected):
    assert distinct(names) == expected


@pytest.mark.parametrize(
    "rows", [["x", "y"], [{"wnid": "n1", "name": "x"}, {"wnid": "n2", "name": "y"}]]
)
def test_labels_are_names_or_objects_with_a_name(tmp_path, rows):
    file = tmp_path / "labels.json"
    file.write_text(json.dumps(rows))
    assert read_labels(file) == ["x", "y"]


@pytest.mark.parametrize("text", ["{", "[]", "3", "[1]", '[{"wnid": "n1"}]', "null"])
def test_other_labels_are_a_configuration_error(tmp_path, text):
    file = tmp_path / "labels.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError):
        read_labels(file)


def test_labels_rename_the_classes_of_a_model(tmp_path, bundle):
    file = tmp_path / "labels.json"
    file.write_text('["x", "y", "z"]')
    assert load(Settings(labels=file)).classes == ("x", "y", "z")


def test_another_number_of_labels_is_a_configuration_error(tmp_path, bundle):
    file = tmp_path / "labels.json"
    file.write_text('["x"]')
    with pytest.raises(ConfigurationError, match="names 1 classes, but bundled has 3"):
        load(Settings(labels=file))


def test_an_unknown_model_suggests_close_names():
    with pytest.raises(ConfigurationError, match=r"did you mean .*vit_tiny_patch16_224"):
        load(Settings(model="vit_tiny_patch16_24"))


def test_weights_of_another_model_are_a_configuration_error_of_one_line(timm_weights):
    with pytest.raises(ConfigurationError, match="does not fit") as caught:
        load(Settings(model="vit_tiny_patch16_224", weights=timm_weights[0]))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_safetensors_are_a_configuration_error(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"junk")
    with pytest.raises(ConfigurationError, match="does not fit"):
        load(Settings(model="test_vit", weights=file))


def test_a_model_without_a_patch_embedding_is_served_and_says_so(tmp_path):
    network = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "w")
    served = load(Settings(model="test_resnet", weights=tmp_path / "w"))
    assert (served.patch_size, served.patch_embedding_sha256) == (None, None)
    x = torch.randn(1, 3, 96, 96)
    np.testing.assert_allclose(
        served.run([Asked(x[0].numpy())])[0], network(x)[0].detach(), atol=1e-5
    )


def test_convolutions_take_any_shape_as_they_are(tmp_path):
    network = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(network.state_dict(), tmp_path / "w")
    profile = Profile.parse("shortest_edge:96")
    served = load(Settings(model="test_resnet", weights=tmp_path / "w", profile=profile))
    assert served.run([Asked(np.zeros((3, 96, 130), np.float32))])[0].shape == (1000,)


def test_a_model_without_a_head_exits_2_with_one_line(monkeypatch, capsys):
    # as DINO's and MAE's are
    headless = timm.create_model("test_vit", pretrained=False, num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: headless)
    assert main(["--model", "vit_small_patch16_224.dino", "--device", "cpu", "--port", "0"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: vit_small_patch16_224.dino has no classification head; ")
    assert err.count("\n") == 1


def test_missing_bundled_weights_say_what_to_give_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "WEIGHTS", tmp_path)
    with pytest.raises(ConfigurationError, match="--model TIMM_NAME"):
        load(Settings())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_a_configuration_error(bundle):
    with pytest.raises(ConfigurationError, match="--device cpu"):
        load(Settings(device="cuda"))


def test_a_patch_embedding_without_bias_is_hashed_with_zeros(served):
    # timm: then without bias
    network = timm.models.VisionTransformer(num_classes=3, **ARCHITECTURE, pre_norm=True)
    assert network.patch_embed.proj.bias is None
    hosted = model_module.host(
        network, name="x", classes=["a", "b", "c"], preprocessing=replace(served.preprocessing)
    )
    expected = network.patch_embed.proj.weight.numpy().astype("<f4").tobytes() + bytes(4 * 24)
    assert hosted.patch_embedding_sha256 == hashlib.sha256(expected).hexdigest()
