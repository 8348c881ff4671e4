"""Published checkpoints: the three at hand, and ones of any size that are drawn here in the
authors' form.
"""

import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pgn_client.checkpoint import summary
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.evaluation.fidelity import agreement, follow
from pgn_client.imaging.compositor import fit_to_canvas
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.generator import PromptGenerator, generator_input
from pgn_client.prompting.import_published import import_published, read
from pgn_client.prompting.methods.published import MEAN, NAMES, STD
from pgn_client.training.rival import task_of
from pgn_client.types import ServerProfile

LAYOUT = "cells:10,11,13,14,15@0,0,2,2"  # of the tiny ViT's 4 x 4 cells
THREE = ["pgn_clip_cifar100", "pgn_vit_eurosat", "pgn_dino_sun397"]


def published_state(prompts=5, size=6, width=24, scale=0.1):
    """A state dict as the authors' code writes it."""
    torch.manual_seed(1)
    ours = PromptGenerator(prompts, size, 2).state_dict()
    theirs = {v: k for k, v in NAMES.items()}
    state = {"tl_vectors": scale * torch.randn(size, width)}
    for name, tensor in ours.items():
        for prefix, published in theirs.items():
            if f"generator.{name}".startswith(prefix):
                state[published + f"generator.{name}".removeprefix(prefix)] = tensor
    return state


@pytest.fixture
def file(tmp_path):
    def write(state=None, **sizes):
        path = tmp_path / "theirs.pt"
        torch.save(published_state(**sizes) if state is None else state, path)
        return path

    return write


@pytest.fixture
def imported(file, make_backbone):
    return import_published(file(), make_backbone(), layout=LAYOUT)


@pytest.mark.slow
class TestTheThree:
    @pytest.fixture
    def outputs(self, shared):
        return np.load(shared / "golden" / "pgn_published_outputs.npz")

    @pytest.mark.parametrize("name", THREE)
    def test_prompts_are_those_of_the_authors_code(self, name, shared, outputs, make_backbone):
        rows = read(shared / "golden" / f"{name}.pt")["tl_vectors"]
        backbone = make_backbone(img_size=224, patch_size=32, embed_dim=rows.shape[1])
        adapter = import_published(shared / "golden" / f"{name}.pt", backbone)
        images = [Image.fromarray(image.transpose(1, 2, 0)) for image in outputs["images"]]
        np.testing.assert_allclose(adapter.prompt_tokens(images), outputs[name], atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "count"), list(zip(THREE, [1_032_304, 669_808, 620_656], strict=True))
    )
    def test_learnable_numbers_are_those_of_the_paper(self, name, count, shared, make_backbone):
        rows = read(shared / "golden" / f"{name}.pt")["tl_vectors"]
        backbone = make_backbone(img_size=224, patch_size=32, embed_dim=rows.shape[1])
        assert (
            import_published(shared / "golden" / f"{name}.pt", backbone).info["learnable"]["prompt"]
            == count
        )


class TestAsPublished:
    """The forward pass of the authors' code: whole images, CLIP's normalisation, prompts behind
    all tokens.
    """

    def test_logits_are_those_of_the_sequence_that_they_trained(self, file, make_backbone):
        backbone = make_backbone(img_size=224, patch_size=32)
        adapter = import_published(file(), backbone)
        images = [Image.effect_noise((224, 224), 90).convert("RGB") for _ in range(2)]
        seen = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(
            0, 3, 1, 2
        )
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        with torch.inference_mode():
            prompts = torch.from_numpy(adapter.prompt_tokens(images))
            expected = backbone.logits_with_more_tokens((seen / 255 - mean) / std, prompts)
            code, _ = adapter.runtime[0](generator_input(seen, 224))
            found = adapter.runtime[0].published_logits(code, seen, backbone)
        torch.testing.assert_close(found, expected)

    def test_retention_begins_with_it(self, file, make_backbone):
        backbone = make_backbone(img_size=224, patch_size=32)
        adapter = import_published(file(scale=1.0), backbone)
        rng = np.random.default_rng(0)
        images = [
            Image.fromarray(rng.integers(0, 256, (230, 224, 3), dtype=np.uint8)) for _ in range(4)
        ]
        fitted = np.stack([fit_to_canvas(image, adapter.canvas) for image in images])
        looked_at = adapter.looked_at(images)
        found = follow(adapter, backbone, fitted, looked_at=looked_at)
        stages = ["published", "latent", "float", "clipped", "uint8", "jpeg95_444", "jpeg75_420"]
        assert list(found) == stages
        np.testing.assert_allclose(found["float"], found["latent"], atol=0.02)  # rows within reach
        np.testing.assert_allclose(found["uint8"], found["latent"], atol=0.15)
        elsewhere = follow(adapter, backbone, fitted, looked_at=np.zeros_like(looked_at))
        assert abs(elsewhere["latent"] - found["latent"]).max() > 0.3
        assert agreement(found)["published"] == 1

    def test_a_backbone_of_another_size_has_no_such_step(self, file, make_backbone, pictures):
        adapter = import_published(file(), make_backbone(), layout=LAYOUT)
        fitted = np.stack([fit_to_canvas(image, adapter.canvas) for image in pictures])
        found = follow(adapter, make_backbone(), fitted, looked_at=adapter.looked_at(pictures))
        assert next(iter(found)) == "latent"


class TestImport:
    def test_tokens_of_no_picture_are_none(self, imported):
        assert imported.prompt_tokens([]).shape == (0, 5, 24)

    def test_tokens_do_not_depend_on_the_batch(self, imported, pictures):
        many = imported.prompt_tokens(pictures * 8)
        np.testing.assert_allclose(many[35:], imported.prompt_tokens(pictures), atol=1e-5)

    @pytest.mark.parametrize(
        ("prompts", "size", "width"), [(1, 1, 8), (5, 6, 24), (7, 3, 40), (12, 20, 16)]
    )
    def test_any_size_is_read_from_the_file(self, prompts, size, width, file, make_backbone):
        path = file(prompts=prompts, size=size, width=width)
        adapter = import_published(path, make_backbone(embed_dim=width))
        assert adapter.canvas.prompts == prompts
        assert adapter.info["library"]["size"] == size
        assert adapter.prompt_tokens([Image.new("RGB", (30, 20))]).shape == (1, prompts, width)

    def test_the_generator_looks_at_the_picture_and_not_at_the_canvas(self, imported):
        rng = np.random.default_rng(0)
        square = Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8))
        wide = Image.new("RGB", (448, 224), "red")
        wide.paste(square, (112, 0))  # the centre crop of the wide one is the square one
        np.testing.assert_array_equal(
            *(imported.prompt_tokens([image]) for image in (square, wide))
        )

    @pytest.mark.parametrize("size", [(300, 200), (90, 64)])
    def test_it_looks_as_the_authors_test_pictures_are_made(self, imported, size):
        """Their code: torchvision's Resize(224) and CenterCrop(224) with their defaults."""
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        theirs = transforms.Compose([transforms.Resize(224), transforms.CenterCrop(224)])(image)
        np.testing.assert_array_equal(imported.looked_at([image])[0], np.asarray(theirs))

    def test_what_the_model_finds_at_a_cell_is_the_prompt_without_that_position(
        self, imported, make_backbone, pictures
    ):
        """Small rows are within what pixels reach: position added, the published token stands
        there.
        """
        backbone = make_backbone()
        tokens = torch.from_numpy(imported.prompt_tokens(pictures))
        sent = np.stack([np.asarray(image) for image in imported(pictures)])
        assert imported.info["reach"]["bounded_most"] < 0.01
        with torch.inference_mode():
            seen = backbone.tokens(torch.from_numpy(sent).permute(0, 3, 1, 2)) + backbone.positions
        cells = list(imported.canvas.cells)
        # rounding to whole grey values
        step = 0.01 * backbone.embedding.weight.flatten(1).norm(dim=1).max()
        assert (seen[:, cells] - tokens).abs().max() < 2 * step * 24**0.5

    def test_the_picture_is_in_the_box_and_unused_cells_are_grey(self, imported, pictures):
        (image,) = imported(pictures[:1])
        pixels = np.asarray(image)
        assert pixels.shape == (32, 32, 3)
        fitted = np.asarray(pictures[0].convert("RGB").resize((16, 16), Image.Resampling.BICUBIC))
        assert (pixels[:16, :16] == fitted).all()
        used = set(imported.canvas.cells) | {0, 1, 4, 5}
        for cell in set(range(16)) - used:
            top, left = cell // 4 * 8, cell % 4 * 8
            assert (pixels[top : top + 8, left : left + 8] == 128).all()

    def test_the_local_head_is_silent_and_has_no_say(self, imported, pictures):
        prepared = imported.prepare(pictures)
        assert imported.info["fusion"] == 0.0
        assert all(np.ptp(p.local_log_probs) == 0 for p in prepared)

    def test_the_endpoints_classes_are_its_own(self, imported, make_backbone):
        assert tuple(imported.info["classes"]) == make_backbone().labels
        rows = np.log(np.random.default_rng(0).dirichlet(np.ones(10), 3))
        np.testing.assert_allclose(imported.mapping.log_probs(rows), rows, atol=1e-4)

    @pytest.mark.parametrize("inversion", ["bounded", "pseudo_inverse"])
    def test_what_is_saved_paints_the_same(
        self, inversion, file, make_backbone, pictures, tmp_path
    ):
        profile = ServerProfile("resize_crop", 37, 32)
        adapter = import_published(
            file(), make_backbone(), layout=LAYOUT, profile=profile, inversion=inversion
        )
        adapter.save(tmp_path / "ours.safetensors")
        again = PromptAdapter.load(tmp_path / "ours.safetensors")
        assert [a.tobytes() for a in again(pictures)] == [a.tobytes() for a in adapter(pictures)]
        assert again(pictures)[0].size == (37, 37)

    def test_the_card_says_where_it_comes_from_and_what_is_lost(self, imported, tmp_path):
        imported.save(tmp_path / "ours.safetensors")
        text = summary(imported.info)
        assert "theirs.pt" in text
        assert "unreached" in text
        assert imported.info["imported"]["file"] == "theirs.pt"

    def test_large_rows_are_told_to_be_out_of_reach(self, file, make_backbone):
        small, large = (
            import_published(file(scale=scale), make_backbone(), layout=LAYOUT).info["reach"]
            for scale in (0.1, 50)
        )
        assert small["bounded"] < 0.01 < large["bounded"] <= large["pseudo_inverse"]

    def test_it_cannot_be_evaluated_as_if_it_were_trained_here(
        self, imported, make_folder, tmp_path
    ):
        with pytest.raises(ConfigurationError, match="imported"):
            task_of(imported, make_folder(tmp_path, train=2, val=2, test=2))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestRefusals:
    def test_nothing_in_the_file_is_executed(self, tmp_path, make_backbone):
        path = tmp_path / "evil.pt"
        path.write_bytes(pickle.dumps(Payload(tmp_path / "touched"), protocol=2))
        torch.save({"tl_vectors": Payload(tmp_path / "touched")}, tmp_path / "zipped.pt")
        for evil in (path, tmp_path / "zipped.pt"):
            with pytest.raises(CheckpointError, match="cannot be read as tensors alone"):
                import_published(evil, make_backbone())
        assert not (tmp_path / "touched").exists()

    @pytest.mark.parametrize(
        "content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated", b"\x80\x02."]
    )
    def test_what_is_no_checkpoint(self, content, tmp_path, make_backbone):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            import_published(tmp_path / "x.pt", make_backbone())

    def test_a_file_that_is_not_there(self, tmp_path, make_backbone):
        with pytest.raises(CheckpointError, match=r"no\.pt"):
            import_published(tmp_path / "no.pt", make_backbone())

    def test_a_folder(self, tmp_path, make_backbone):
        with pytest.raises(CheckpointError, match="it is a folder"):
            import_published(tmp_path, make_backbone())

    def test_flipped_bits_which_torch_reads_on_over(self, file, make_backbone):
        path = file()
        data = bytearray(path.read_bytes())
        at = data.index(published_state()["tl_vectors"].numpy().tobytes())
        data[at : at + 8] = bytes(255 - byte for byte in data[at : at + 8])
        path.write_bytes(data)
        assert torch.load(path, weights_only=True)["tl_vectors"].shape == (6, 24)
        with pytest.raises(CheckpointError, match=r"cannot be read"):
            import_published(path, make_backbone())

    def test_a_truncated_file(self, file, make_backbone):
        path = file()
        path.write_bytes(path.read_bytes()[:-4000])
        with pytest.raises(CheckpointError):
            import_published(path, make_backbone())

    @pytest.mark.parametrize(
        "state", [[torch.zeros(3)], {"tl_vectors": 3}, {"epoch": 1, "state_dict": {}}]
    )
    def test_something_else_than_a_dict_of_tensors(self, state, file, make_backbone):
        with pytest.raises(CheckpointError, match="expected a dict of tensors"):
            import_published(file(state), make_backbone())

    @pytest.mark.parametrize("change", ["tl_vectors", "model.output_net.2.bias"])
    def test_a_state_dict_of_something_else(self, change, file, make_backbone):
        state = published_state()
        del state[change]
        with pytest.raises(CheckpointError, match="expected tl_vectors"):
            import_published(file(state), make_backbone())

    def test_numbers_that_are_none(self, file, make_backbone):
        state = published_state()
        state["tl_vectors"][2, 3] = float("nan")
        with pytest.raises(CheckpointError, match="not finite in tl_vectors"):
            import_published(file(state), make_backbone())

    def test_a_bias_without_a_dimension(self, file, make_backbone):
        with pytest.raises(CheckpointError, match="expected tl_vectors"):
            import_published(
                file(published_state() | {"model.output_net.2.bias": torch.tensor(1.0)}),
                make_backbone(),
            )

    @pytest.mark.parametrize("at", range(0, 4000, 97))
    def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(self, at, file, make_backbone):
        path = file()
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)
        with suppress(CheckpointError):
            import_published(path, make_backbone(), layout=LAYOUT)

    @pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
    def test_tensors_that_do_not_fit_are_named(self, change, file, make_backbone):
        state, name = published_state(), "model.blocks.2.downsample.bias"
        if change == "missing":
            del state[name]
        elif change == "unknown":
            state["model.extra"] = torch.zeros(1)
        else:
            state[name] = torch.zeros(3)
        with pytest.raises(
            CheckpointError,
            match=r"model\.extra" if change == "unknown" else r"2\.downsample\.bias",
        ):
            import_published(file(state), make_backbone())

    def test_another_backbones_prompts(self, file, make_backbone):
        with pytest.raises(CheckpointError, match="got tokens of 40 numbers, expected 24 for tiny"):
            import_published(file(width=40), make_backbone())

    @pytest.mark.parametrize("layout", ["ring", "cells:15@0,0,2,2"])
    def test_a_layout_with_another_number_of_cells(self, layout, file, make_backbone):
        with pytest.raises(ConfigurationError, match="expected 5, one per prompt"):
            import_published(file(), make_backbone(), layout=layout)

    def test_more_prompts_than_cells(self, file, make_backbone):
        with pytest.raises(ConfigurationError, match="16 prompts, expected fewer than 16"):
            import_published(file(prompts=16), make_backbone())

    def test_an_unknown_inversion(self, file, make_backbone):
        with pytest.raises(ConfigurationError, match="magic"):
            import_published(file(), make_backbone(), inversion="magic")
