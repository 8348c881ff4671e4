import numpy as np
import pytest
import torch

from pgn_client.prompting.generator import PromptGenerator, ResNet10, generator_input
from pgn_client.prompting.token_library import LatentLibrary, PixelLibrary, TokenLibrary

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def import_published(state):
    """Build a generator and a library from the keys of the authors' state dict."""
    rows = state["tl_vectors"]
    names = {
        "model.input_net": "trunk.input_net",
        "model.blocks": "trunk.blocks",
        "model.output_net.2": "mixture",
    }
    renamed = {ours + k.removeprefix(theirs): v for theirs, ours in names.items()
               for k, v in state.items() if k.startswith(theirs + ".")}  # fmt: skip
    assert len(renamed) == len(state) - 1  # all but the library
    generator = PromptGenerator(
        len(state["model.output_net.2.bias"]) // len(rows), len(rows), classes=2
    )
    missing, unexpected = generator.load_state_dict(renamed, strict=False)
    assert (sorted(missing), unexpected) == (["local_head.bias", "local_head.weight"], [])
    return generator.eval(), LatentLibrary(rows)


class TestPublished:
    @pytest.mark.shared
    @pytest.mark.parametrize("name", ["pgn_clip_cifar100", "pgn_vit_eurosat", "pgn_dino_sun397"])
    def test_checkpoints_give_the_published_prompts(self, shared, name):
        folder = shared / "golden"
        generator, library = import_published(torch.load(folder / f"{name}.pt", weights_only=True))
        published = np.load(folder / "pgn_published_outputs.npz")
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        with torch.no_grad():
            weights, _ = generator((torch.from_numpy(published["images"]) / 255 - mean) / std)
            prompts = weights @ library.rows
        assert prompts.shape[1] == 16
        np.testing.assert_allclose(prompts.numpy(), published[name], atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("size", "width", "parameters"),
        [(256, 768, 1_032_304), (128, 768, 669_808), (128, 384, 620_656)],
    )
    def test_sizes_are_the_published_ones_without_the_local_head(self, size, width, parameters):
        generator, library = (
            PromptGenerator(16, size, classes=10),
            LatentLibrary.create(size, 8, width),
        )
        count = sum(p.numel() for p in [*generator.parameters(), *library.parameters()])
        assert count - sum(p.numel() for p in generator.local_head.parameters()) == parameters

    def test_convolutions_start_as_kaiming_normal_fan_out(self):
        torch.manual_seed(0)
        weight = ResNet10().blocks[3].net[3].weight  # 128 x 128 x 3 x 3: fan out 1152
        assert weight.std().item() == pytest.approx((2 / 1152) ** 0.5, rel=0.02)
        assert weight.mean().item() == pytest.approx(0, abs=1e-3)

    def test_batch_norms_start_as_the_identity(self):
        norms = [m for m in ResNet10().modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert len(norms) == 9
        assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)

    def test_latent_rows_start_with_a_spread_of_a_fiftieth(self):
        torch.manual_seed(0)
        assert LatentLibrary.create(256, 32, 768).rows.std().item() == pytest.approx(0.02, rel=0.02)


class TestMixture:
    def test_weights_are_positive_and_sum_to_one(self):
        weights, local = PromptGenerator(5, 7, classes=3)(torch.randn(4, 3, 24, 24))
        assert weights.shape == (4, 5, 7)
        assert local.shape == (4, 3)
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 5))

    def test_stays_in_float32_under_autocast(self):
        generator = PromptGenerator(5, 64, classes=3)
        with torch.no_grad():
            generator.mixture.bias.normal_(std=2)
        with torch.autocast("cpu", torch.bfloat16):
            weights, local = generator(torch.randn(4, 3, 24, 24))
        assert local.dtype == torch.bfloat16  # autocast was at work
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 5), rtol=0, atol=1e-6)

    def test_depends_on_the_picture(self):
        weights, _ = PromptGenerator(5, 7, classes=3).eval()(torch.randn(2, 3, 24, 24))
        assert not torch.allclose(weights[0], weights[1])


class TestLibraries:
    def test_pixel_rows_are_valid_colours(self):
        patches = PixelLibrary(50 * torch.randn(6, 3, 4, 4), 4).patches()
        assert patches.min() >= 0
        assert patches.max() <= 1

    def test_pixel_rows_start_with_contrast(self):
        torch.manual_seed(0)
        library = PixelLibrary.create(64, 8)
        assert library.rows.shape == (64, 3, 8, 8)
        assert library.rows.std().item() == pytest.approx(1, rel=0.02)

    def test_a_library_must_say_what_its_rows_are(self):
        with pytest.raises(TypeError, match="TokenLibrary"):
            TokenLibrary(torch.zeros(1)).tokens(None)


class TestInput:
    def test_runs_from_minus_one_to_one(self):
        x = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 20, 16)
        found = generator_input(x, 8)
        assert found.shape == (2, 3, 8, 8)
        torch.testing.assert_close(found[0], torch.full((3, 8, 8), -1.0))
        torch.testing.assert_close(found[1], torch.ones(3, 8, 8))

    def test_halving_with_antialias_keeps_the_mean(self):
        x = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(
            torch.uint8
        )
        torch.testing.assert_close(
            generator_input(x, 16).mean(), x.float().mean() / 127.5 - 1, rtol=0, atol=0.01
        )

    def test_at_its_own_size_it_is_the_picture(self):
        x = torch.randint(0, 256, (1, 3, 8, 8)).to(torch.uint8)
        torch.testing.assert_close(generator_input(x, 8), x / 127.5 - 1)
