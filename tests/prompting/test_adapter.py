import builtins
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pgn_client import checkpoint
from pgn_client.errors import CheckpointError, ConfigurationError, MissingDependencyError
from pgn_client.imaging.compositor import compose, fit_to_canvas
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.types import Answer, ServerProfile

BESIDE = [
    {"method": "pgn"},
    {"method": "pgn", "library": "latent"},
    {"method": "input_independent"},
]
WHOLE = [
    {"method": method, "layout": "full"} for method in ("padding", "masked", "low_rank", "blend")
]


def each(*kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: "-".join(kind.values()))


def same(a, b):
    return a.size == b.size and (np.asarray(a) == np.asarray(b)).all()


class TestPrepare:
    @each(*BESIDE, *WHOLE)
    def test_is_render_and_compose(self, make_adapter, pictures, kind):
        adapter = make_adapter(**kind)
        fitted = np.stack([fit_to_canvas(image, adapter.canvas) for image in pictures])
        patches, local = adapter.render(fitted)
        for prepared, picture, prompt, row in zip(
            adapter.prepare(pictures), fitted, patches, local, strict=True
        ):
            assert same(prepared.image, compose(picture, prompt, adapter.canvas))
            assert (prepared.local_log_probs == row).all()

    @each(*BESIDE, *WHOLE)
    def test_one_by_one_gives_the_pixels_of_a_batch(self, make_adapter, pictures, kind):
        adapter = make_adapter(**kind)
        together = adapter(pictures)  # recorded answers go by the bytes sent
        assert all(
            same(adapter([image])[0], other)
            for image, other in zip(pictures, together, strict=True)
        )

    def test_many_pictures_keep_their_order(self, make_adapter, pictures):
        adapter = make_adapter()
        sent = adapter(pictures * 14)  # 70: more than two batches
        assert len(sent) == 70
        assert all(same(a, b) for a, b in zip(sent, sent[:5] * 14, strict=True))

    def test_of_nothing_is_nothing(self, make_adapter):
        adapter = make_adapter()
        assert adapter.prepare([]) == []
        side = adapter.canvas.box[2]
        patches, local = adapter.render(np.zeros((0, side, side, 3), np.uint8))
        one, opinion = adapter.render(np.zeros((1, side, side, 3), np.uint8))
        assert patches.shape == (0, *one.shape[1:])
        assert local.shape == (0, *opinion.shape[1:])

    def test_again_gives_the_same(self, make_adapter, pictures):
        adapter = make_adapter()
        assert all(same(a, b) for a, b in zip(adapter(pictures), adapter(pictures), strict=True))

    @pytest.mark.parametrize(
        ("profile", "side"),
        [("direct", 32), ("resize_crop:37:32", 37), ("shortest_edge:32", 32), ("letterbox:32", 32)],
    )
    def test_size_sent_follows_the_profile(self, make_adapter, pictures, profile, side):
        assert {image.size for image in make_adapter(profile=profile)(pictures)} == {(side, side)}

    def test_images_are_rgb_whatever_comes(self, make_adapter):
        sent = make_adapter()([Image.new(mode, (20, 20)) for mode in ("L", "RGBA", "P", "RGB")])
        assert {image.mode for image in sent} == {"RGB"}

    def test_local_head_speaks_in_log_probabilities(self, make_adapter, pictures):
        for prepared in make_adapter().prepare(pictures):
            assert prepared.local_log_probs.dtype == np.float64
            assert np.exp(prepared.local_log_probs).sum() == pytest.approx(1, abs=1e-6)

    def test_prompts_differ_by_picture_and_the_picture_is_in_its_box(self, make_adapter, pictures):
        adapter = make_adapter(profile="direct")
        first, second = (np.asarray(image) for image in adapter(pictures[:2]))
        assert (first[:8] != second[:8]).any()  # the ring's top row
        assert (first[8:24, 8:24] == fit_to_canvas(pictures[0], adapter.canvas)).all()


class TestRender:
    @each(*BESIDE)
    def test_patches_are_whole_grey_values_in_the_canvas_order(self, make_adapter, kind):
        patches, local = make_adapter(**kind).render(np.zeros((2, 16, 16, 3), np.uint8))
        assert (patches.dtype, patches.shape) == (np.uint8, (2, 12, 8, 8, 3))
        assert local.shape == (2, 3)

    @each(*WHOLE)
    def test_canvases_are_whole_grey_values(self, make_adapter, kind):
        canvases, local = make_adapter(**kind).render(np.zeros((2, 32, 32, 3), np.uint8))
        assert (canvases.dtype, canvases.shape) == (np.uint8, (2, 32, 32, 3))
        assert local.shape == (2, 3)

    def test_rounds_to_the_nearest_grey_value(self, make_adapter):
        import torch

        from pgn_client.prompting.generator import generator_input

        adapter = make_adapter()
        fitted = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
        model, _ = adapter.runtime
        with torch.no_grad():
            weights, _ = model(generator_input(torch.from_numpy(fitted).permute(0, 3, 1, 2), 16))
            exact = 255 * torch.einsum("bkl,lcyx->bkyxc", weights, model.library.rows.sigmoid())
        error = adapter.render(fitted)[0].astype(np.float64) - exact.double().numpy()
        assert np.abs(error).max() <= 0.5001
        assert abs(error.mean()) < 0.02


class TestSaveAndLoad:
    @each(*BESIDE, *WHOLE)
    def test_loaded_adapter_sends_the_same_pixels(self, make_adapter, pictures, tmp_path, kind):
        adapter = make_adapter(**kind)
        adapter.save(tmp_path / "a")
        loaded = PromptAdapter.load(tmp_path / "a")
        assert all(same(a, b) for a, b in zip(adapter(pictures), loaded(pictures), strict=True))

    def test_saving_again_keeps_the_fingerprint(self, make_adapter, tmp_path):
        adapter = make_adapter()
        adapter.save(tmp_path / "a")
        loaded = PromptAdapter.load(tmp_path / "a")
        loaded.save(tmp_path / "b")
        assert loaded.info["fingerprint"] == adapter.info["fingerprint"]
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_info_is_json(self, make_adapter, tmp_path):
        adapter = make_adapter()
        adapter.save(tmp_path / "a")
        loaded = PromptAdapter.load(tmp_path / "a").info
        assert json.loads(json.dumps(adapter.info)) == json.loads(json.dumps(loaded)) == loaded

    def test_mapping_is_the_saved_one(self, make_adapter, tmp_path):
        adapter = make_adapter()
        adapter.save(tmp_path / "a")
        answers = [Answer(("class_3", "class_1"), (0.6, 0.3))]
        assert (
            PromptAdapter.load(tmp_path / "a").mapping(answers) == adapter.mapping(answers)
        ).all()

    def test_another_profile_changes_the_margin_alone(self, make_adapter, pictures):
        adapter = make_adapter(profile="resize_crop:37:32")
        other = adapter.with_profile(ServerProfile("resize_crop", 40, 32))
        for ours, theirs in zip(adapter(pictures), other(pictures), strict=True):
            assert theirs.size == (40, 40)
            assert (np.asarray(ours)[2:34, 2:34] == np.asarray(theirs)[4:36, 4:36]).all()

    def test_another_profile_has_the_fingerprint_of_what_it_would_save(
        self, make_adapter, tmp_path
    ):
        make_adapter().save(tmp_path / "a")
        other = PromptAdapter.load(tmp_path / "a").with_profile(ServerProfile("direct"))
        before = other.info["fingerprint"]
        other.save(tmp_path / "b")
        assert (
            before
            == other.info["fingerprint"]
            != PromptAdapter.load(tmp_path / "a").info["fingerprint"]
        )

    def test_another_profile_must_end_at_the_models_size(self, make_adapter):
        with pytest.raises(ConfigurationError, match="32 px"):
            make_adapter().with_profile(ServerProfile("resize_crop", 256, 224))

    def test_name_tells_method_and_backbone(self, make_adapter):
        assert repr(make_adapter()) == "PromptAdapter(pgn, tiny, 3 classes)"


class TestRefusal:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"backbone": {}},
            {"backbone": "vit"},
            {"backbone": {"input_size": 32, "patch_size": 0}},
            {"backbone": {"input_size": 33, "patch_size": 8}},
            {"layout": "frame"},
            {"layout": 4},
            {"profile": "resize_crop:256:224"},
            {"profile": None},
            {"mapping": {}},
            {"mapping": {"kind": "linear", "source": ["a"], "classes": ["b"]}},
        ],
    )
    def test_of_a_card_that_does_not_fit(self, make_adapter, tmp_path, wrong):
        whole = make_adapter()
        checkpoint.write(tmp_path / "a", whole.info | wrong, whole._tensors)
        with pytest.raises(CheckpointError) as error:
            PromptAdapter.load(tmp_path / "a")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("missing", ["backbone", "layout", "profile", "mapping"])
    def test_of_a_card_without_a_needed_part(self, make_adapter, tmp_path, missing):
        whole = make_adapter()
        checkpoint.write(
            tmp_path / "a", {k: v for k, v in whole.info.items() if k != missing}, whole._tensors
        )
        with pytest.raises(CheckpointError, match=f"card is not complete.*{missing}"):
            PromptAdapter.load(tmp_path / "a")

    @pytest.mark.parametrize(
        "damage",
        [
            {"library.rows": None},
            {"library.rows": np.zeros((0, 3, 8, 8), np.float32)},
            {"generator.mixture.bias": None},
            {"generator.mixture.weight": np.zeros((5, 128), np.float32)},
            {"generator.local_head.bias": np.zeros(4, np.float32)},
        ],
    )
    def test_of_tensors_that_do_not_fit_the_card(self, make_adapter, pictures, damage):
        whole = make_adapter()
        tensors = {k: v for k, v in (whole._tensors | damage).items() if v is not None}
        with pytest.raises(CheckpointError, match="tensors do not fit its card") as error:
            PromptAdapter(whole.info, tensors).prepare(pictures)
        assert "\n" not in str(error.value)

    def test_without_torch_names_the_command(self, make_adapter, pictures, monkeypatch):
        adapter, original = make_adapter(), builtins.__import__

        def without_torch(name, *rest, **more):
            if name.partition(".")[0] == "torch":
                raise ModuleNotFoundError("No module named 'torch'")
            return original(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without_torch)
        with pytest.raises(
            MissingDependencyError,
            match=r"pip install "
            r"'pgn-client\[train\]'",
        ) as error:
            adapter.prepare(pictures)
        assert error.value.command == "pip install 'pgn-client[train]'"

    def test_loading_and_mapping_need_no_torch(self, make_adapter, tmp_path):
        make_adapter().save(tmp_path / "a")
        code = """
import sys
from pgn_client import PromptAdapter
from pgn_client.types import Answer
adapter = PromptAdapter.load(sys.argv[1])
adapter.mapping([Answer(("class_1",), (0.5,))])
print(adapter.canvas.sent, "torch" in sys.modules)
"""
        run = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True
        )
        assert run.stdout.split() == ["37", "False"]
