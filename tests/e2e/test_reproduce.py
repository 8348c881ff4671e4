"""The plumbing of ``benchmarks/reproduce_pgn.py``, which has not been run on its real sets and
weights yet.
"""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.datasets import FakeData

from pgn_client.surrogate import backbone
from tests.e2e.conftest import load_script

pytestmark = pytest.mark.slow

PAPER = ["cifar100", "cifar10", "flowers102", "food101", "eurosat", "sun397"]
PAPER += ["ucf101", "svhn", "oxfordpets", "dtd", "resisc45", "clevr"]
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


@pytest.fixture(scope="module")
def script():
    return load_script("reproduce_pgn")


def fake(count, offset=0):
    """Noise of torchvision's own, read once: its images depend on a global seed."""
    data = FakeData(count, (3, 20, 24), num_classes=3, random_offset=offset)
    return [data[i] for i in range(count)]


def coloured(count, seed):
    """Images that a model can tell apart."""
    rng = np.random.default_rng(seed)
    pixels = [np.array(COLOURS[i % 3]) + rng.normal(0, 20, (20, 24, 3)) for i in range(count)]
    return [(Image.fromarray(p.clip(0, 255).astype(np.uint8)), i % 3) for i, p in enumerate(pixels)]


def contents(folder):
    """Split → the images in it, each by its class and its bytes."""
    return {
        split: {(path.parent.name, path.read_bytes()) for path in (folder / split).rglob("*.png")}
        for split in ("train", "val", "test")
    }


@pytest.mark.parametrize(
    "parts", [{"": 60}, {"train": 45, "test": 15}, {"train": 30, "val": 15, "test": 15}]
)
def test_exported_splits_are_disjoint_complete_and_seeded(script, monkeypatch, tmp_path, parts):
    given = {part: fake(count, 1000 * i) for i, (part, count) in enumerate(parts.items())}
    monkeypatch.setitem(script.SETS, "dtd", lambda root: given)
    found = {
        name: contents(script.export("dtd", tmp_path / "none", tmp_path / name, seed=seed))
        for name, seed in (("a", 0), ("again", 0), ("other", 1))
    }
    train, val, test = found["a"].values()
    assert (len(train), len(val), len(test)) == pytest.approx((36, 12, 12), abs=7)
    assert len(train | val | test) == len(train) + len(val) + len(test) == 60
    assert found["again"] == found["a"]
    assert (found["other"] == found["a"]) == ("val" in parts)  # official splits are nobody's draw
    assert (found["other"]["test"] == found["a"]["test"]) == ("test" in parts)


def test_a_set_is_exported_once_and_whole_or_not_at_all(script, monkeypatch, tmp_path):
    def breaks(root):
        return {"train": [*fake(12), (None, 0)], "test": fake(6)}

    monkeypatch.setitem(script.SETS, "dtd", breaks)
    with pytest.raises(AttributeError):
        script.export("dtd", tmp_path / "data", tmp_path)
    assert not (tmp_path / "dtd").exists()
    monkeypatch.setitem(script.SETS, "dtd", lambda root: {"": fake(60)})
    folder = script.export("dtd", tmp_path / "data", tmp_path)
    monkeypatch.setitem(script.SETS, "dtd", "must not be asked again")
    assert script.export("dtd", tmp_path / "data", tmp_path) == folder
    # a folder of exported sets serves as DATA
    assert script.export("dtd", tmp_path, tmp_path / "another") == folder


def test_large_pictures_are_reduced_and_names_make_folders(script, tmp_path):
    class FittedSplit(list):
        classes = ("apartment_building/outdoor", "field")

    script.write(
        FittedSplit([(Image.new("L", (600, 512)), 0), (Image.new("RGB", (80, 60)), 1)]), tmp_path
    )
    with Image.open(tmp_path / "000-apartment_building-outdoor" / "000000.png") as large:
        assert (large.size, large.mode) == ((300, 256), "RGB")
    with Image.open(tmp_path / "001-field" / "000001.png") as small:
        assert small.size == (80, 60)


def test_the_sets_are_the_twelve_of_the_paper_and_two_must_be_given_as_folders(script):
    assert list(script.SETS) == PAPER
    assert [name for name, source in script.SETS.items() if isinstance(source, str)] == [
        "ucf101",
        "resisc45",
    ]


@pytest.mark.parametrize("name", [n for n in PAPER if n not in ("ucf101", "resisc45")])
def test_each_set_is_asked_of_torchvision_with_options_it_takes(
    script, monkeypatch, name, tmp_path
):
    def no_download(*_, **__):
        raise ConnectionError("no hub")

    for module in (
        "cifar",
        "flowers102",
        "food101",
        "eurosat",
        "sun397",
        "oxford_iiit_pet",
        "dtd",
        "clevr",
    ):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.download_and_extract_archive", no_download
        )
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", no_download)
    with pytest.raises(ConnectionError):
        script.SETS[name](tmp_path)


def test_the_clip_image_tower_is_a_backbone_that_answers_its_projected_features(script):
    model = timm.create_model(script.BACKBONES["clip"])
    tower = backbone.Backbone(model, name="clip", mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        logits = tower.logits_from_tokens(tower.tokens(pixels))
        features = model.head(tower.features_from_tokens(tower.tokens(pixels)))
        reference = tower.logits(pixels)
    assert len(tower.labels) == 512
    assert torch.equal(logits, features)
    assert torch.allclose(logits, reference, atol=1e-4)
    assert type(model.blocks[0].mlp.act).__name__ == "QuickGELU"


def test_random_weights_are_a_file_that_loads(script, tmp_path):
    loaded = backbone.load(
        "vit_tiny_patch16_224", weights=script.random_weights("vit_tiny_patch16_224", tmp_path)
    )
    again = backbone.load(
        "vit_tiny_patch16_224", weights=script.random_weights("vit_tiny_patch16_224", tmp_path)
    )
    assert loaded.weights_sha256 == again.weights_sha256


def test_a_finished_run_is_a_true_line_that_is_not_repeated_and_a_missing_set_stops_nobody(
    script, monkeypatch, tmp_path, capsys
):
    def unreachable(root):
        raise ConnectionError("no hub here")

    monkeypatch.setitem(script.SETS, "svhn", unreachable)
    monkeypatch.setitem(
        script.SETS, "dtd", lambda root: {"train": coloured(60, 0), "test": coloured(30, 1)}
    )
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    what = ["--backbone", "bundled", "--presets", "default", "--epochs", "1", "--limit", "18"]
    command = [*where, *what, "--sets", "ucf101", "svhn", "dtd"]
    assert script.main(command) == 0
    *skipped, line = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [row["set"] for row in skipped] == ["ucf101", "svhn"]
    assert "not in torchvision" in skipped[0]["skipped"]
    assert "no hub here" in skipped[1]["skipped"]

    results = tmp_path / "out" / "results.jsonl"
    assert [json.loads(text) for text in results.read_text().splitlines()] == [line]
    assert (line["set"], line["preset"], line["seed"], line["backbone"]) == (
        "dtd",
        "default",
        0,
        "bundled",
    )
    assert line["split"] == {"train": 18, "val": 12, "test": 18, "seed": 0}
    assert line["ci95"][0] <= line["accuracy"] <= line["ci95"][1]
    assert line["accuracy"] > 0.6  # three colours
    assert line["agreement"] >= 0.9
    assert min(line["learnable"][part] for part in ("prompt", "mapping")) > 0
    assert line["learnable"]["mapping"] == (200 + 1) * 3
    assert line["random_weights"] is False
    assert [path.suffix for path in (tmp_path / "out" / "runs").iterdir()] == [".safetensors"]

    monkeypatch.setattr(script, "local_server", lambda _: pytest.fail("there is nothing to serve"))
    assert script.main(command) == 0
    assert len(results.read_text().splitlines()) == 1
    assert [json.loads(text)["set"] for text in capsys.readouterr().out.splitlines()] == [
        "ucf101",
        "svhn",
    ]
