import copy
import hashlib
import json
import struct
import types

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import SwinTransformer
from torch import nn

from pgn_client.errors import CheckpointError, ConfigurationError, PGNError
from pgn_client.surrogate import backbone as backbone_module
from pgn_client.surrogate.backbone import Backbone, is_plain, load, read_labels, unique_labels
from pgn_client.types import ServerProfile

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


def one_line(error):
    return "\n" not in str(error.value)


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    """Random weights of timm's smallest ViT: input 160, crop 0.95."""
    path = tmp_path_factory.mktemp("weights") / "test_vit3.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit3", pretrained=False).state_dict(), path)
    return path


class TestForward:
    def test_from_tokens_equals_the_models_own(self, plain_vit):
        x = pixels(3, 3, plain_vit.input_size, plain_vit.input_size)
        with torch.no_grad():
            expected = plain_vit.logits(x)
            found = plain_vit.logits_from_tokens(plain_vit.tokens(x))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.01

    def test_gradient_at_the_tokens_equals_the_models_own(self, plain_vit):
        tokens = plain_vit.tokens(pixels(2, 3, plain_vit.input_size, plain_vit.input_size))
        reference = copy.deepcopy(plain_vit.model)
        reference.patch_embed = nn.Identity()
        gradients = []
        for function in (plain_vit.logits_from_tokens, reference):
            x = tokens.clone().requires_grad_()
            function(x).square().sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(
            *gradients, rtol=1e-4, atol=1e-4 * gradients[1].abs().max().item()
        )

    @pytest.mark.parametrize(
        ("options", "taken"), [({}, 1), ({"global_pool": "avg"}, 0), ({"global_pool": "map"}, 0)]
    )
    def test_the_shortcut_is_taken_for_the_class_token_only(
        self, make_backbone, monkeypatch, options, taken
    ):
        backbone, calls = make_backbone(**options), []
        shortcut = backbone_module.class_token_block
        monkeypatch.setattr(
            backbone_module, "class_token_block", lambda *a: calls.append(1) or shortcut(*a)
        )
        backbone.logits_from_tokens(backbone.tokens(pixels(1, 3, 32, 32)))
        assert len(calls) == taken

    def test_features_are_what_the_head_reads(self, make_backbone):
        backbone, x = make_backbone(), pixels(2, 3, 32, 32)
        with torch.no_grad():
            features = backbone.features_from_tokens(backbone.tokens(x))
            torch.testing.assert_close(
                features,
                backbone.model.forward_head(
                    backbone.model.forward_features(backbone.embedding.normalise(x / 255)),
                    pre_logits=True,
                ),
            )

    def test_logits_are_of_the_normalised_picture(self, make_backbone):
        backbone, x = make_backbone(), pixels(2, 3, 32, 32)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
        with torch.no_grad():
            torch.testing.assert_close(backbone.logits(x), backbone.model((x / 255 - mean) / std))


class TestMoreTokens:
    """The sequence of published checkpoints."""

    @pytest.mark.parametrize(
        "options", [{}, {"pre_norm": True}, {"global_pool": "avg"}, {"reg_tokens": 2}]
    )
    def test_stand_behind_all_others_as_they_are(self, make_backbone, options):
        backbone = make_backbone(**options)
        more, x = torch.randn(2, 3, 24), torch.randn(2, 3, 32, 32)
        reference = copy.deepcopy(backbone.model)
        reference.norm_pre.register_forward_pre_hook(
            lambda _, inputs: torch.cat([inputs[0], more], dim=1)
        )
        with torch.no_grad():
            torch.testing.assert_close(backbone.logits_with_more_tokens(x, more), reference(x))

    def test_none_of_them_change_nothing(self, make_backbone):
        backbone, x = make_backbone(), torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(
                backbone.logits_with_more_tokens(x, torch.zeros(2, 0, 24)), backbone.model(x)
            )


class TestPositions:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"class_token": False, "global_pool": "avg"},
            {"reg_tokens": 3},
            {"reg_tokens": 3, "no_embed_class": True},
            {"pos_embed": "none"},
        ],
    )
    def test_a_token_moved_against_its_position_is_the_same_anywhere(self, make_backbone, options):
        """The last block's input at every cell is token + position, whatever stands before the
        patch tokens.
        """
        backbone = make_backbone(**options)
        tokens = torch.randn(1, 16, 24)
        found = backbone.model._pos_embed(tokens - backbone.positions)[:, -16:]
        torch.testing.assert_close(found, tokens)


class TestFrozen:
    def test_no_parameter_wants_a_gradient(self, make_backbone):
        assert not any(p.requires_grad for p in make_backbone().model.parameters())

    def test_an_untouched_backbone_passes(self, make_backbone):
        backbone = make_backbone()
        backbone.logits(pixels(1, 3, 32, 32))
        backbone.verify_frozen()

    def test_one_changed_weight_is_found(self, make_backbone):
        backbone = make_backbone()
        with torch.no_grad():
            backbone.model.blocks[1].mlp.fc2.bias[3] += 1e-6
        with pytest.raises(PGNError, match=r"tiny.*weights changed"):
            backbone.verify_frozen()

    def test_dropout_is_off(self, make_vit):
        backbone = Backbone(
            make_vit(drop_rate=0.5, proj_drop_rate=0.5).train(), name="tiny", **HALF
        )
        x = pixels(1, 3, 32, 32)
        assert torch.equal(backbone.logits(x), backbone.logits(x))


class TestPatchEmbedding:
    @pytest.mark.parametrize("options", [{}, {"patch_size": 16}, {"pre_norm": True}])
    def test_equals_the_convolution_cell_by_cell_in_reading_order(self, make_backbone, options):
        backbone, x = make_backbone(**options), pixels(2, 3, 32, 32)
        P = backbone.patch_size
        patches = [x[:, :, r : r + P, c : c + P] for r in range(0, 32, P) for c in range(0, 32, P)]
        found = backbone.embedding(torch.stack(patches, dim=1) / 255)
        torch.testing.assert_close(found, backbone.tokens(x), rtol=1e-5, atol=1e-5)

    def test_sizes_are_those_of_the_model(self, make_backbone):
        embedding = make_backbone(patch_size=16, embed_dim=36).embedding
        assert (embedding.patch_size, embedding.width) == (16, 36)

    def test_fingerprint_is_the_documented_one(self, make_backbone):
        embedding = make_backbone(embed_dim=4).embedding
        numbers = embedding.weight.flatten().tolist() + embedding.bias.tolist()
        expected = hashlib.sha256(struct.pack(f"<{4 * 3 * 64 + 4}f", *numbers)).hexdigest()
        assert embedding.sha256() == expected

    def test_a_missing_bias_is_zero(self, make_backbone):
        assert make_backbone(pre_norm=True).embedding.bias.tolist() == [0.0] * 24


def overlapping(make_vit):
    model = make_vit()
    model.patch_embed.proj = nn.Conv2d(3, 24, 9, 8, padding=1)
    return model


def padded(make_vit):
    model = make_vit(img_size=32)
    model.patch_embed.proj = nn.Conv2d(3, 24, 8, 8, padding=1)
    return model


def swin(make_vit):
    return SwinTransformer(
        32, 4, embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4, num_classes=10
    )


STEMS = {
    "swin": swin,
    "convnext": lambda make_vit: timm.create_model(
        "test_convnext", pretrained=False, num_classes=10
    ),
    "hybrid": lambda make_vit: timm.create_model(
        "vit_tiny_r_s16_p8_224", pretrained=False, img_size=32, depth=1, num_classes=10
    ),
    "overlapping": overlapping,
    "norm in the embedding": lambda make_vit: make_vit(embed_norm_layer="layernorm"),
    "unflattened grid": lambda make_vit: make_vit(dynamic_img_size=True),
}


class TestOtherStems:
    """They are detected, not assumed, and answered through rendered images alone."""

    @pytest.fixture(params=STEMS)
    def odd(self, request, make_vit):
        torch.manual_seed(0)
        return Backbone(STEMS[request.param](make_vit).eval(), name="odd", input_size=32, **HALF)

    def test_are_detected(self, odd):
        assert not odd.plain
        assert odd.card()["patch_embedding_sha256"] is None

    @pytest.mark.parametrize("what", ["embedding", "positions"])
    def test_have_no_tokens_that_could_be_pixels(self, odd, what):
        with pytest.raises(
            ConfigurationError,
            match=r"odd.*plain timm VisionTransformer.*library "
            r"of pixels",
        ) as error:
            getattr(odd, what)
        assert one_line(error)

    def test_are_asked_by_their_own_forward_pass(self, odd):
        x = pixels(2, 3, 32, 32)
        with torch.no_grad():
            expected = odd.model((x / 255 - 0.5) / 0.5)
            torch.testing.assert_close(odd.logits(x), expected)
            head = odd.model.get_classifier()
            torch.testing.assert_close(head(odd.features(x)), expected)

    def test_a_convolution_that_pads_is_not_one_map_per_patch(self, make_vit):
        assert not is_plain(padded(make_vit))

    def test_must_tell_their_input_size(self, make_vit):
        with pytest.raises(
            ConfigurationError, match="got no input size, expected one for SwinTransformer"
        ):
            Backbone(swin(make_vit), name="odd", **HALF)

    def test_something_without_a_head_is_refused(self):
        with pytest.raises(ConfigurationError, match="no classification head"):
            Backbone(
                nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), name="odd", input_size=32, **HALF
            )


class TestNewHead:
    """Imports need the first layers alone."""

    def test_one_of_zeros_is_added_where_none_fits_and_told(self, small_weights, tmp_path):
        (tmp_path / "labels.json").write_text(json.dumps(["hen", "jay"]))
        options = {"weights": small_weights, "labels": tmp_path / "labels.json", "new_head": True}
        first, second = load("test_vit3", **options), load("test_vit3", **options)
        assert first.silent
        assert first.weights_sha256 == second.weights_sha256
        assert first.logits(pixels(1, 3, 160, 160)).tolist() == [[0.0, 0.0]]

    def test_the_files_own_is_taken_where_it_fits(self, tmp_path):
        (tmp_path / "labels.json").write_text(json.dumps(["hen", "jay"]))
        tuned = timm.create_model("test_vit3", pretrained=False, num_classes=2)
        save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
        options = {"weights": tmp_path / "tuned.safetensors", "labels": tmp_path / "labels.json"}
        found = load("test_vit3", **options, new_head=True)
        assert not found.silent
        assert found.weights_sha256 == load("test_vit3", **options).weights_sha256

    def test_the_models_own_stays_where_it_fits(self, small_weights, tmp_path):
        (tmp_path / "labels.json").write_text(json.dumps([f"class {i}" for i in range(1000)]))
        found = load(
            "test_vit3", weights=small_weights, labels=tmp_path / "labels.json", new_head=True
        )
        assert not found.silent
        assert found.weights_sha256 == load("test_vit3", weights=small_weights).weights_sha256


class TestLabels:
    def test_without_names_classes_are_numbered(self, make_backbone):
        assert make_backbone(num_classes=3).labels == ("class_0", "class_1", "class_2")

    def test_equal_names_get_a_suffix(self):
        assert unique_labels(["crane", "hen", "crane", "crane"]) == (
            "crane",
            "hen",
            "crane (2)",
            "crane (3)",
        )

    def test_their_number_must_be_that_of_the_classes(self, make_backbone):
        with pytest.raises(ConfigurationError, match="got 2, expected 10"):
            make_backbone(labels=["a", "b"])

    @pytest.mark.parametrize(
        "rows", [["tench", "crane"], [{"name": "tench", "id": 0}, {"name": "crane"}]]
    )
    def test_file_of_names_or_of_objects(self, tmp_path, rows):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(rows))
        assert read_labels(path) == ["tench", "crane"]

    @pytest.mark.parametrize(
        "text", ["tench\ncrane", "[1, 2]", '[{"label": "tench"}]', '{"0": "tench"}', "3", '"ab"']
    )
    def test_another_form_is_refused_in_one_line(self, tmp_path, text):
        path = tmp_path / "labels.json"
        path.write_text(text)
        with pytest.raises(
            ConfigurationError, match="expected a JSON list of names or of objects with a 'name'"
        ) as e:
            read_labels(path)
        assert one_line(e)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"nowhere\.json"):
            read_labels(tmp_path / "nowhere.json")


class TestLoad:
    def test_local_weights_are_loaded_whole(self, small_weights):
        backbone = load("test_vit3", weights=small_weights)
        loaded = backbone.model.state_dict()
        assert all(
            torch.equal(loaded[name], value) for name, value in load_file(small_weights).items()
        )

    def test_geometry_is_the_published_one(self, small_weights):
        backbone = load("test_vit3", weights=small_weights)
        config = timm.get_pretrained_cfg("test_vit3")
        assert (backbone.input_size, backbone.patch_size) == (160, 16)
        assert (backbone.mean, backbone.std) == (config.mean, config.std)
        assert config.crop_pct == 0.95
        assert backbone.profile == ServerProfile("resize_crop", 168, 160)

    def test_labels_come_from_the_file(self, small_weights, tmp_path):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps([f"class {i % 999}" for i in range(1000)]))
        labels = load("test_vit3", weights=small_weights, labels=path).labels
        assert (labels[1], labels[999]) == ("class 1", "class 0 (2)")

    def test_an_unknown_model_is_told_close_names(self):
        with pytest.raises(
            ConfigurationError, match=r"got 'vit_tiny_patch16_244'.*vit_tiny_patch16_224"
        ) as error:
            load("vit_tiny_patch16_244")
        assert one_line(error)

    def test_missing_weights_are_named(self, tmp_path):
        with pytest.raises(
            CheckpointError,
            match=r"no weights file .*gone.safetensors; give "
            r"--weights",
        ) as error:
            load("test_vit3", weights=tmp_path / "gone.safetensors")
        assert one_line(error)

    @pytest.mark.parametrize("damage", ["shape", "missing", "extra"])
    def test_weights_of_another_model_are_refused_in_one_line(
        self, small_weights, tmp_path, damage
    ):
        state = load_file(small_weights)
        if damage == "shape":
            state["norm.weight"] = state["norm.weight"][:-1].clone()
        elif damage == "missing":
            del state["norm.weight"]
        else:
            state["more"] = torch.zeros(1)
        save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match=r"other.safetensors does not fit: .*") as error:
            load("test_vit3", weights=tmp_path / "other.safetensors")
        assert one_line(error)

    @pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x80\x04pickle", b"half"])
    def test_a_corrupt_file_is_refused_in_one_line(self, small_weights, tmp_path, content):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(small_weights.read_bytes()[:100_000] if content == b"half" else content)
        with pytest.raises(CheckpointError, match=r"bad\.safetensors does not fit") as error:
            load("test_vit3", weights=path)
        assert one_line(error)

    def test_a_hub_that_fails_is_one_line_with_a_remedy(self, monkeypatch):
        def fail(*_, **__):
            raise OSError("no\nnetwork")

        monkeypatch.setattr(timm, "create_model", fail)
        with pytest.raises(
            ConfigurationError,
            match=r"test_vit3.*OSError: no network.*give "
            r"--weights",
        ) as error:
            load("test_vit3")
        assert one_line(error)

    @pytest.mark.shared
    def test_the_shared_vit_tiny_loads_strictly(self, shared):
        folder = shared / "weights"
        backbone = load(
            "vit_tiny_patch16_224",
            weights=folder / "vit_tiny_patch16_224.safetensors",
            labels=folder / "imagenet_labels.json",
        )
        assert sum(p.numel() for p in backbone.model.parameters()) == 5_717_416
        assert str(backbone.profile) == "resize_crop:248:224"
        assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
        assert len(set(backbone.labels)) == 1000


class TestBundled:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(
            backbone_module, "find_spec", lambda name: spec if name == "mock_server" else None
        )
        (tmp_path / "weights").mkdir()
        return tmp_path / "weights"

    def test_is_built_from_its_card(self, package, make_vit):
        architecture = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
        }
        card = {
            "architecture": architecture,
            "classes": ["hen", "jay"],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.5, 1],
        }
        (package / "bundled.json").write_text(json.dumps(card))
        model = make_vit(num_classes=2)
        save_file(model.state_dict(), package / "bundled.safetensors")
        backbone = load("bundled")
        assert backbone.labels == ("hen", "jay")
        assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 1.0))
        assert (
            backbone.embedding.sha256() == Backbone(model, name="same", **HALF).embedding.sha256()
        )

    def test_is_told_when_it_is_not_there(self, package):
        with pytest.raises(ConfigurationError, match="not installed; name a timm model"):
            load("bundled")
