import numpy as np
import pytest
import torch

from pgn_client.checkpoint.card import BackboneCard, Card, LibraryCard
from pgn_client.errors import ConfigurationError
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting import methods
from pgn_client.prompting.generator import generator_input
from pgn_client.prompting.methods import PGN, InputIndependent, Rates, Setting
from pgn_client.prompting.methods.linear_probe import LinearProbe, features
from pgn_client.prompting.token_library import LIBRARIES
from pgn_client.surrogate import backbone as backbones
from pgn_client.surrogate.returned_scores import returned_scores
from pgn_client.surrogate.surrogate import Surrogate

RATES = Rates(library=1.0, bias=2.0, mixture=3.0, trunk=4.0, mapping=5.0)


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


def create(method=PGN, library="pixel"):
    torch.manual_seed(0)
    model = method.create(Setting(Canvas.build(32, 8), 3, 24, library=library, library_size=6))
    model.start(peaked=True)
    if method is PGN:
        torch.nn.init.normal_(model.generator.mixture.weight)  # so that the image matters
    return model.eval()


def rate_of(model, parameter):
    return [
        g["lr"] for g in model.parameter_groups(RATES) if any(p is parameter for p in g["params"])
    ]


class TestRegistry:
    def test_names_lead_to_their_classes(self):
        assert methods.get("pgn") is PGN
        assert methods.get("input_independent") is InputIndependent

    def test_an_unknown_name_is_told_the_known_ones(self):
        with pytest.raises(ConfigurationError, match=r"'vpt'.*pgn, input_independent"):
            methods.get("vpt")

    def test_an_unknown_library_is_told_the_known_ones(self):
        with pytest.raises(ConfigurationError, match=r"'rgb'.*pixel, smooth"):
            create(library="rgb")


class TestPGN:
    def test_every_picture_has_its_own_prompt(self):
        patches, _ = create().render(pixels(2, 3, 16, 16), resolution=16)
        assert (patches[0] != patches[1]).any()

    def test_starts_with_contrast(self):
        torch.manual_seed(0)
        model = PGN.create(Setting(Canvas.build(112, 8), 3, 24))
        model.start(peaked=True)
        mixture = model.generator.mixture
        assert mixture.bias.std().item() == pytest.approx(2, rel=0.05)
        assert mixture.weight.std().item() == pytest.approx(0.02, rel=0.05)

    def test_each_part_learns_at_its_own_rate(self):
        model = create()
        g = model.generator
        assert rate_of(model, model.library.rows) == [1.0]
        assert rate_of(model, g.mixture.bias) == [2.0]
        assert rate_of(model, g.mixture.weight) == [3.0]
        assert all(
            rate_of(model, p) == [4.0] for p in [*g.trunk.parameters(), *g.local_head.parameters()]
        )

    def test_everything_learns_once(self):
        model = create()
        listed = [id(p) for group in model.parameter_groups(RATES) for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in model.parameters())

    @pytest.mark.parametrize("library", LIBRARIES)
    def test_is_restored_whole(self, library):
        model = create(library=library)
        card = Card(
            method="pgn",
            classes=("a", "b", "c"),
            layout="ring",
            library=LibraryCard(library, 6),
            backbone=BackboneCard("toy", 32, 8, (0, 0, 0), (1, 1, 1)),
        )
        again = PGN.restore(card, model.state_dict())
        x = torch.randn(2, 3, 16, 16)
        assert not again.training
        assert type(again.library) is LIBRARIES[library]
        assert torch.equal(again.library.rows, model.library.rows)
        assert all(torch.equal(a, b) for a, b in zip(again(x), model(x), strict=True))

    def test_a_latent_library_needs_the_patch_embedding(self):
        model = create(library="latent")
        with pytest.raises(ConfigurationError, match="no patch embedding"):
            model.prompt_patches(torch.ones(1, 12, 6) / 6, None, "bounded")

    @pytest.mark.parametrize("library", ["pixel", "latent"])
    def test_tokens_stay_in_float32_under_autocast(self, make_backbone, library):
        model, embedding = create(library=library), make_backbone().embedding
        weights = torch.randn(2, 12, 6).softmax(-1)
        expected = model.prompt_tokens(weights, embedding)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.prompt_tokens(weights, embedding)
        assert torch.equal(found, expected)


class TestInputIndependent:
    def test_all_pictures_get_the_same_prompt(self):
        patches, local = create(InputIndependent).render(pixels(3, 3, 16, 16), resolution=16)
        assert (patches == patches[0]).all()
        assert not torch.equal(local[0], local[1])  # its local head looks all the same

    def test_the_prompt_is_the_bias(self):
        model = create(InputIndependent)
        mixed = torch.einsum(
            "kl,lcyx->kyxc",
            model.generator.mixture.bias.view(12, 6).softmax(-1),
            model.library.patches(),
        )
        patches, _ = model.render(pixels(1, 3, 16, 16), resolution=16)
        assert (patches[0] == (255 * mixed).round()).all()

    def test_all_but_the_mixtures_weights_learn(self):
        model = create(InputIndependent)
        listed = {id(p) for group in model.parameter_groups(RATES) for p in group["params"]}
        assert {name for name, p in model.named_parameters() if id(p) not in listed} == {
            "generator.mixture.weight"
        }
        assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
            "generator.mixture.weight"
        ]

    def test_the_prompts_loss_trains_bias_and_library_alone(self, make_backbone):
        model = create(InputIndependent).train()
        weights, _ = model(torch.randn(4, 3, 16, 16))
        model.prompt_tokens(weights, make_backbone().embedding).square().sum().backward()
        moved = {
            name
            for name, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        assert moved == {"generator.mixture.bias", "library.rows"}


def both_ways(backbone, canvas, library="pixel"):
    """Logits of mixed tokens, and those of the painted image by the model's own forward pass."""
    P = backbone.patch_size
    torch.manual_seed(0)
    model = PGN.create(Setting(canvas, 3, backbone.width, library=library, library_size=6)).eval()
    model.start(peaked=True)
    fitted, surrogate = pixels(3, 3, *canvas.box[2:]), Surrogate(backbone, canvas)
    with torch.no_grad():
        weights, _ = model(generator_input(fitted, 16))
        prompts, canvases = (
            model.prompt_tokens(weights, backbone.embedding),
            surrogate.neutral(fitted),
        )
        tokens, painted = backbone.tokens(canvases), canvases.float()
        tokens[:, list(canvas.cells)] = prompts
        for k, (row, column) in enumerate(canvas.corners()):
            painted[:, :, row : row + P, column : column + P] = (
                255 * model.prompt_patches(weights, None)[:, k]
            )
        logits = backbone.logits_from_tokens(tokens)
        # as training asks
        torch.testing.assert_close(surrogate.scores(fitted, prompts), returned_scores(logits))
        return logits, backbone.logits(painted)


class TestLatentPathIsThePixelPath:
    """Training mixes tokens; serving sends images: the same function."""

    @pytest.mark.parametrize("library", ["pixel", "smooth", "luma"])
    @pytest.mark.parametrize("layout", ["ring", "corner", "rows:2"])
    def test_logits_are_equal_before_rounding(self, make_backbone, layout, library):
        backbone = make_backbone()
        latent, rgb = both_ways(backbone, Canvas.build(32, 8, layout), library)
        torch.testing.assert_close(latent, rgb, rtol=0, atol=1e-4)

    def test_logits_are_equal_in_every_plain_vit(self, plain_vit):
        latent, rgb = both_ways(
            plain_vit, Canvas.build(plain_vit.input_size, plain_vit.patch_size, "ring")
        )
        torch.testing.assert_close(latent, rgb, rtol=0, atol=1e-4)
        assert rgb.std() > 0.01

    def test_logits_are_equal_in_the_real_vit_tiny(self, shared):
        backbone = backbones.load(
            "vit_tiny_patch16_224", weights=shared / "weights" / "vit_tiny_patch16_224.safetensors"
        )
        latent, rgb = both_ways(backbone, Canvas.build(224, 16, "ring"))
        torch.testing.assert_close(latent, rgb, rtol=0, atol=1e-4)

    def test_labels_are_equal_after_rounding(self, make_adapter, make_backbone, pictures):
        from pgn_client.imaging.compositor import fit_to_canvas

        adapter, backbone = make_adapter(profile="direct"), make_backbone()
        surrogate = Surrogate(backbone, adapter.canvas)
        fitted = torch.from_numpy(
            np.stack([fit_to_canvas(p, adapter.canvas) for p in pictures])
        ).permute(0, 3, 1, 2)
        model, _ = adapter.runtime
        with torch.no_grad():
            weights, _ = model(generator_input(fitted, 16))
            latent = surrogate.scores(fitted, model.prompt_tokens(weights, backbone.embedding))
            sent = torch.from_numpy(
                np.stack([np.asarray(image) for image in adapter(pictures)])
            ).permute(0, 3, 1, 2)
            deployed = backbone.logits(sent).log_softmax(-1)
        assert (latent.argmax(1) == deployed.argmax(1)).all()
        assert 0 < (latent - deployed).abs().max() < 0.1

    def test_neutral_canvases_are_what_the_compositor_makes(self, make_backbone):
        from pgn_client.imaging.compositor import compose

        canvas, fitted = Canvas.build(32, 8, "corner"), pixels(1, 3, 24, 24)
        ours = np.asarray(compose(fitted[0].permute(1, 2, 0).numpy(), None, canvas))
        assert (
            Surrogate(make_backbone(), canvas).neutral(fitted)[0].permute(1, 2, 0).numpy() == ours
        ).all()


class TestLinearProbe:
    def test_features_are_those_of_the_backbone(self, make_backbone):
        backbone, x = make_backbone(), pixels(3, 3, 32, 32)
        with torch.no_grad():
            logits = backbone.model.head(torch.from_numpy(features(backbone, x)).float())
            torch.testing.assert_close(logits, backbone.logits(x), rtol=1e-4, atol=1e-4)

    def test_separates_what_a_line_separates(self):
        rng = np.random.default_rng(0)
        y = np.arange(60) % 3
        x = 100 + np.eye(3)[y] * 5 + rng.normal(size=(60, 3))
        probe = LinearProbe.fit(x[:30], y[:30], 3)
        log_p = probe.log_probs(x[30:])
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1)
        assert (log_p.argmax(1) == y[30:]).mean() > 0.9

    def test_a_constant_feature_does_no_harm(self):
        y = np.arange(20) % 2
        x = np.stack([y + 0.1 * np.random.default_rng(0).normal(size=20), np.full(20, 7.0)], axis=1)
        assert (LinearProbe.fit(x, y, 2).log_probs(x).argmax(1) == y).all()
