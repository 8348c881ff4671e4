"""The composed images: masks are exact, and no image is in both splits."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgn_client.errors import ConfigurationError
from pgn_client.segmentation import load_masked

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compose_masks.py"
spec = importlib.util.spec_from_file_location("compose_masks", SCRIPT)
compose_masks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compose_masks)

TEXTURES, GREYS = ("bark", "cloth"), {"train": 0, "test": 100}


def source(root, names, base):
    """Folders of images of one colour each, which tells split (red) and class (green)."""
    for split, grey in GREYS.items():
        for c, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (40, 30), (grey, base + 10 * c, 0)).save(
                    root / split / name / f"{i}.png"
                )
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    root = tmp_path_factory.mktemp("composed")
    textures, backgrounds = source(root / "t", TEXTURES, 100), source(root / "b", ("field",), 0)
    with pytest.MonkeyPatch.context() as patch:
        command = f"compose_masks {textures} {backgrounds} --out {root / 'out'} --count 12 --seed 3"
        patch.setattr(sys, "argv", command.split())
        compose_masks.main()
    return root / "out"


@pytest.mark.parametrize("split", GREYS)
def test_masks_are_exact_and_splits_apart(out, split):
    found = load_masked(out / split)
    assert (found.classes, len(found)) == (("background", *TEXTURES), 12)
    assert found.images.shape == (12, 3, 224, 224)
    assert (found.images[:, 0] == GREYS[split]).all()  # nothing from the other split
    greens = found.images[:, 1].long()
    for c, green in enumerate((0, 100, 110)):
        assert ((greens == green) == (found.masks == c)).all()


def test_textures_take_the_share_that_was_asked_for(out):
    shares = (load_masked(out / "train").masks > 0).float().mean((1, 2))
    assert shares.min() >= 0.149
    assert shares.max() <= 0.401


def test_one_blob_and_two_blobs_occur(out):
    counts = {len(mask.unique()) - 1 for mask in load_masked(out / "train").masks}
    assert counts == {1, 2}


def test_a_blob_has_its_size_and_stays_where_it_may():
    free = np.zeros((224, 224), dtype=bool)
    free[:, 100:] = True
    shape = compose_masks.blob(0.2, free, np.random.default_rng(0))
    assert shape.sum() == round(0.2 * 224 * 224)
    assert not shape[:, :100].any()


def test_a_seed_gives_the_same_bytes_again(out, tmp_path):
    t, b = out.parent / "t" / "train", out.parent / "b" / "train"
    rng = np.random.default_rng(3).spawn(2)[0]
    compose_masks.write_split(t, b, tmp_path, 3, rng)
    for i in range(3):
        name = f"masks/{i:04}.png"
        assert (tmp_path / name).read_bytes() == (out / "train" / name).read_bytes()
    assert json.loads((out / "classes.json").read_text()) == ["background", *TEXTURES]


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"got no CLASS/\* images in"):
        compose_masks.images_of(tmp_path)
