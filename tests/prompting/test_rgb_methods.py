import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgn_client.checkpoint.card import BackboneCard, Card, LibraryCard
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.imaging.compositor import compose, fit_to_canvas, seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting import methods
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.generator import generator_input
from pgn_client.prompting.methods import PGN, REGISTRY, InputIndependent, Rates, RGBMethod, Setting
from pgn_client.prompting.methods.masked import MaskedPrompt, MaskGenerator
from pgn_client.prompting.methods.padding import Border, border_mask
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import fit, load_task, recipe
from pgn_client.types import ServerProfile

RATES = Rates(library=1.0, bias=2.0, mixture=3.0, trunk=4.0, mapping=5.0)
RGB = [name for name, method in REGISTRY.items() if issubclass(method, RGBMethod)]
WHOLE = [name for name in RGB if REGISTRY[name].layout == "full"]
ADDED = ["padding", "masked", "low_rank"]  # to the image, and starting from nothing added
# numbers of the ResNet10: 464 + 4,672 + 14,496 + 57,664 + 230,016 of stem and blocks
TRUNK = 307_312

each_rgb = pytest.mark.parametrize("name", RGB)
each_whole = pytest.mark.parametrize("name", WHOLE)
each_added = pytest.mark.parametrize("name", ADDED)


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


def create(name, size=32, patch=8, **options):
    method = methods.get(name)
    return method.create(
        Setting(Canvas.build(size, patch, method.layout), 3, 24, **{"library_size": 6} | options)
    )


def prompted(name, scale=1.0, seed=0, **options):
    """A method in evaluation mode whose prompt is N(0, scale²) wherever it learns something but in
    its networks.
    """
    torch.manual_seed(seed)
    model = create(name, **options)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if (
                not part.startswith(("generator.trunk", "generator.local_head", "mask."))
                and parameter.requires_grad
            ):
                parameter.normal_(std=scale)
    return model.eval()


def fitted(model, count=3, seed=0):
    """Noise in the size of the image's box on the method's canvas of 32 pixels."""
    return pixels(count, 3, *Canvas.build(32, 8, model.layout).box[2:], seed=seed)


def painted(model, pictures):
    """(B, 3, H, W) canvases or (B, K, 3, P, P) patches in unit space, before they are rounded."""
    with torch.no_grad():
        code, _ = model(generator_input(pictures, 16))
        return model.painted(code, pictures, None, "exact")


def render(model, pictures, **options):
    return model.render(pictures, resolution=16, **options)[0]


def channels_last(pictures):
    return pictures.permute(0, 2, 3, 1)


def of_masks(masks):
    """A masked prompt that adds a hundredth of ``masks`` to middle grey: (B, 3, h, w) → what is
    added.
    """
    model = create("masked")
    with torch.no_grad():
        model.pattern.fill_(0.01)
        return model.paint(masks, torch.full((len(masks), 3, 32, 32), 0.5)) - 0.5


class TestNumbersThatAPaperWouldCount:
    def test_border_of_vp(self):
        assert create("padding", 224, 16).learnable() == 69_840 == 3 * (224**2 - 164**2)

    def test_low_rank_prompt(self):
        assert create("low_rank", 224, 16).learnable() == 5_376 == 3 * 2 * 224 * 4

    def test_mask_generator_is_the_published_one(self):
        assert sum(p.numel() for p in MaskGenerator().parameters()) == 102_339

    def test_masked_prompt_is_mask_generator_and_pattern(self):
        assert create("masked", 224, 16).learnable() == 102_339 + 3 * 224 * 224

    def test_pgn_is_trunk_mixture_and_library(self):
        assert (
            create("pgn", 224, 16, library_size=64).learnable()
            == TRUNK + 129 * 52 * 64 + 64 * 3 * 16**2
        )

    def test_input_independent_prompt_is_library_and_bias(self):
        assert (
            create("input_independent", 224, 16, library_size=64).learnable()
            == 52 * 64 + 64 * 3 * 16**2
        )

    def test_blend_is_a_pgn_on_all_patches_and_its_share(self):
        assert (
            create("blend", 224, 16, library_size=64).learnable()
            == TRUNK + 129 * 196 * 64 + 64 * 3 * 16**2 + 1
        )

    @each_rgb
    def test_the_local_head_is_not_counted(self, name):
        few, many = (
            methods.get(name).create(
                Setting(Canvas.build(32, 8, methods.get(name).layout), classes, 24)
            )
            for classes in (2, 200)
        )
        assert few.learnable() == many.learnable()


class TestWhatLearns:
    @each_rgb
    def test_everything_that_learns_is_listed_once(self, name):
        model = create(name)
        listed = [id(p) for group in model.parameter_groups(RATES) for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)

    @each_rgb
    def test_the_local_head_learns_at_the_trunks_rate(self, name):
        model = create(name)
        head = [
            group["lr"]
            for group in model.parameter_groups(RATES)
            for p in group["params"]
            if p is model.generator.local_head.weight
        ]
        assert head == [4.0]

    @pytest.mark.parametrize("name", [name for name in RGB if create(name).learnable()])
    def test_the_endpoints_answer_teaches_the_whole_prompt(self, name, make_backbone):
        model = prompted(name, 0.1).train()
        model.start(peaked=False)
        # so that little is clamped
        pictures = pixels(4, 3, *Canvas.build(32, 8, model.layout).box[2:]) // 4 + 96
        code, _ = model(generator_input(pictures, 16))
        surrogate = Surrogate(make_backbone(), Canvas.build(32, 8, model.layout))
        model.scores(code, pictures, surrogate)[:, 0].sum().backward()
        untaught = [
            p.shape
            for g in model.prompt_groups(RATES)
            for p in g["params"]
            if p.grad is None or not p.grad.any()
        ]
        assert untaught == []


class TestGamut:
    @given(name=st.sampled_from(RGB), power=st.integers(-3, 6), seed=st.integers(0, 1000))
    @settings(max_examples=60)
    def test_what_is_painted_is_a_valid_picture_whatever_is_learnt(self, name, power, seed):
        model = prompted(name, 10.0**power, seed)
        found = painted(model, fitted(model, seed=seed))
        assert found.min() >= 0
        assert found.max() <= 1 + 1e-6  # a convex mixture of ones may end at the next float

    @each_added
    @pytest.mark.parametrize("sign", [-1, 1])
    def test_a_huge_prompt_ends_at_black_and_white_and_does_not_wrap(self, name, sign):
        model = create(name)
        with torch.no_grad():
            for group in model.prompt_groups(RATES):
                for parameter in group["params"]:
                    parameter.fill_(1e6)
            first = model.prompt_groups(RATES)[0]["params"][0]
            first.mul_(sign)
        found = painted(model.eval(), pixels(2, 3, 32, 32))
        changed = (
            border_mask(32).expand_as(found)
            if name == "padding"
            else torch.ones_like(found, dtype=torch.bool)
        )
        assert (found[changed] == (sign > 0)).all()


class TestNothingLearnt:
    def test_a_grey_frame_sends_the_neutral_canvas_bit_for_bit(self):
        model, canvas = create("grey_frame"), Canvas.build(32, 8, "ring")
        pictures = fitted(model)
        patches, _ = model.eval().render(pictures, resolution=16)
        rows = pictures.permute(0, 2, 3, 1).numpy()
        sent = [compose(p, q, canvas) for p, q in zip(rows, patches.numpy(), strict=True)]
        neutral = [compose(p, None, canvas) for p in rows]
        assert [s.tobytes() for s in sent] == [n.tobytes() for n in neutral]

    @each_added
    def test_sends_the_picture_bit_for_bit(self, name):
        torch.manual_seed(0)
        # every grey value
        ramp = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 4).view(2, 3, 32, 32)
        assert torch.equal(render(create(name).eval(), ramp), channels_last(ramp))

    @each_added
    def test_is_answered_as_the_neutral_picture(self, name, make_backbone):
        model, pictures = create(name).eval(), pixels(3, 3, 32, 32)
        surrogate = Surrogate(make_backbone(), Canvas.build(32, 8, "full"))
        with torch.no_grad():
            code, _ = model(generator_input(pictures, 16))
            assert torch.equal(
                model.scores(code, pictures, surrogate), model.neutral(pictures, surrogate)
            )


class TestPadding:
    def test_the_border_is_thirty_of_224_pixels_wide(self):
        mask = border_mask(224)
        inside = torch.zeros(224, dtype=torch.bool)
        inside[30:194] = True
        assert torch.equal(~mask, inside[:, None] & inside[None, :])

    def test_changes_the_border_alone(self):
        model, pictures = create("padding").eval(), pixels(2, 3, 32, 32)
        torch.nn.init.normal_(model.border.values)
        found = render(model, pictures)
        assert torch.equal(found[:, 4:28, 4:28], channels_last(pictures)[:, 4:28, 4:28])

    def test_changes_every_pixel_of_the_border(self):
        model, grey = create("padding").eval(), torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
        torch.nn.init.constant_(model.border.values, 10 / 255)
        assert torch.equal(render(model, grey)[0, :, :, 0] == 110, border_mask(32))

    def test_its_numbers_lie_in_reading_order_channel_by_channel(self):
        # 2 pixels wide: 16² - 12² = 112
        border = Border(torch.arange(1.0, 1 + 3 * 112).view(3, 112), 16)
        expected, number = np.zeros((3, 16, 16)), 0
        for channel in range(3):
            for row in range(16):
                for column in range(16):
                    if not (2 <= row < 14 and 2 <= column < 14):
                        number += 1
                        expected[channel, row, column] = number
        assert (border().detach().numpy() == expected).all()

    def test_all_pictures_get_the_same_border(self):
        black = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        black[1, :, 4:28, 4:28] = 200
        first, second = render(prompted("padding"), black)
        assert torch.equal(first[border_mask(32)], second[border_mask(32)])


class TestMasked:
    @pytest.mark.parametrize(("resolution", "side"), [(96, 12), (16, 2), (20, 3)])
    def test_a_mask_patch_is_eight_pixels_of_the_generators_input(self, resolution, side):
        masks, _ = create("masked").eval()(torch.randn(2, 3, resolution, resolution))
        assert masks.shape == (2, 3, side, side)

    def test_masks_are_constant_on_their_patches(self):
        masks = torch.randn(2, 3, 2, 2)
        by_hand = np.kron(masks.numpy(), np.ones((16, 16)))
        np.testing.assert_allclose(of_masks(masks).numpy(), 0.01 * by_hand, atol=1e-6)

    def test_masks_differ_by_picture(self):
        model = create("masked").eval()
        grey = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
        grey[1, :, :16] = 0
        masks, _ = model(generator_input(grey, 16))
        assert (masks[0] != masks[1]).any()

    def test_the_pattern_is_seen_through_the_mask(self):
        model, masks = prompted("masked", 0.1), torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)
        with torch.no_grad():
            found = model.paint(masks, torch.full((1, 3, 32, 32), 0.5))[0]
        half = (0.5 + 0.5 * model.pattern[2]).clamp(0, 1)
        whole = (0.5 + model.pattern[1]).clamp(0, 1)
        torch.testing.assert_close(found, torch.stack([torch.full((32, 32), 0.5), whole, half]))

    def test_pattern_and_mask_learn_at_their_own_rates(self):
        pattern, mask, _local = create("masked").parameter_groups(RATES)
        assert (pattern["lr"], mask["lr"]) == (MaskedPrompt.pattern_rate, MaskedPrompt.mask_rate)


class TestLowRank:
    def test_the_prompt_is_of_rank_four_in_every_channel(self):
        model = prompted("low_rank", 0.1)
        with torch.no_grad():
            added = model.paint(None, torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64))[0] - 0.5
        assert added.abs().max() < 0.5  # nothing is clamped
        assert torch.linalg.matrix_rank(added, rtol=1e-4).tolist() == [4, 4, 4]

    def test_the_prompt_is_the_sum_of_four_outer_products(self):
        model = prompted("low_rank", 0.1)
        up, down = model.up.detach().numpy(), model.down.detach().numpy()
        expected = [sum(np.outer(up[c, :, k], down[c, k]) for k in range(4)) for c in range(3)]
        with torch.no_grad():
            added = model.paint(None, torch.full((1, 3, 32, 32), 0.5))[0] - 0.5
        np.testing.assert_allclose(added.numpy(), expected, atol=1e-6)


class TestBlend:
    def test_lays_its_patches_row_by_row(self):
        model, pictures = prompted("blend"), pixels(2, 3, 32, 32)
        with torch.no_grad():
            model.share.fill_(1e4)  # the prompt alone
            weights, _ = model(generator_input(pictures, 16))
            patches = torch.einsum("bkl,lcyx->bkcyx", weights, model.library.rows.sigmoid())
        expected = torch.zeros(2, 3, 32, 32)
        for k in range(16):
            row, column = divmod(k, 4)
            expected[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = patches[:, k]
        torch.testing.assert_close(painted(model, pictures), expected)

    def test_a_share_of_nothing_is_the_picture_bit_for_bit(self):
        model, pictures = prompted("blend"), pixels(2, 3, 32, 32)
        torch.nn.init.constant_(model.share, -1e4)
        assert torch.equal(render(model, pictures), channels_last(pictures))

    def test_a_share_of_all_is_the_prompt_whatever_the_picture(self):
        model, pictures = prompted("blend"), pixels(2, 3, 32, 32)
        torch.nn.init.constant_(model.share, 1e4)
        first, second = render(model, pictures, prompted_by=pictures[:1].expand(2, -1, -1, -1))
        assert torch.equal(first, second)

    def test_starts_with_a_tenth_of_the_prompt(self):
        assert create("blend").share.sigmoid().item() == pytest.approx(0.1)

    def test_is_a_weighted_mean_of_picture_and_prompt(self):
        model, white = create("blend").eval(), torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
        torch.nn.init.constant_(model.library.rows, -1e4)  # black
        torch.nn.init.constant_(model.share, np.log(3))  # sigmoid(ln 3) = 3/4
        assert (render(model, white) == 64).all()  # round(255 / 4)

    @pytest.mark.parametrize(
        "options", [{}, {"patch_size": 16, "img_size": 64}, {"global_pool": "avg"}]
    )
    @pytest.mark.parametrize("share", [-2.0, 0.0, 2.0])
    def test_blended_tokens_are_the_tokens_of_the_blend(self, make_backbone, options, share):
        backbone = make_backbone(**options)
        size, patch = backbone.input_size, backbone.patch_size
        model, pictures = prompted("blend", size=size, patch=patch), pixels(3, 3, size, size)
        torch.nn.init.constant_(model.share, share)
        with torch.no_grad():
            code, _ = model(generator_input(pictures, 16))
            latent = model.scores(
                code, pictures, Surrogate(backbone, Canvas.build(size, patch, "full"))
            )
            rgb = backbone.logits(255 * painted(model, pictures)).log_softmax(-1)
        torch.testing.assert_close(latent, rgb, rtol=1e-4, atol=1e-4)

    def test_tokens_stay_in_float32_under_autocast(self, make_backbone):
        model, pictures = prompted("blend"), pixels(2, 3, 32, 32)
        torch.nn.init.constant_(model.share, 1e4)
        surrogate = Surrogate(make_backbone(), Canvas.build(32, 8, "full"))
        with torch.no_grad():
            code, _ = model(generator_input(pictures, 16))
            expected = model.scores(code, pictures, surrogate)
            with torch.autocast("cpu", torch.bfloat16):
                found = model.scores(code, pictures, surrogate)
        assert torch.equal(found, expected)

    def test_a_latent_library_is_refused(self):
        with pytest.raises(
            ConfigurationError, match="method blend: got a latent library, expected pixel"
        ):
            create("blend", library="latent")


class TestTrainingIsServing:
    """Training scores floats, or tokens; the endpoint answers whole grey values."""

    @each_rgb
    def test_answers_are_those_to_the_pictures_that_are_sent(self, make_backbone, name):
        model, backbone = prompted(name, 0.3), make_backbone()
        canvas, pictures = Canvas.build(32, 8, model.layout), fitted(model, count=16)
        surrogate = Surrogate(backbone, canvas)
        sent = [
            np.asarray(compose(p, q, canvas))
            for p, q in zip(
                channels_last(pictures).numpy(), render(model, pictures).numpy(), strict=True
            )
        ]
        with torch.no_grad():
            code, _ = model(generator_input(pictures, 16))
            trained = model.scores(code, pictures, surrogate)
            served = surrogate.pixel_scores(torch.from_numpy(np.stack(sent)).permute(0, 3, 1, 2))
        assert (trained.argmax(1) == served.argmax(1)).all()
        # a random ViT is steep: rounding moves it a little
        assert (trained.exp() - served.exp()).abs().max() < 0.1

    @each_whole
    def test_what_is_sent_is_rounded_to_the_nearest_grey_value(self, name):
        model = prompted(name, 0.3)
        pictures = fitted(model)
        error = render(model, pictures).float() - 255 * painted(model, pictures).movedim(-3, -1)
        assert error.abs().max() <= 0.5001

    @each_whole
    def test_the_server_sees_exactly_the_canvas(self, make_adapter, pictures, name):
        adapter = make_adapter(method=name, layout="full", profile="resize_crop:37:32")
        canvases, _ = adapter.render(
            np.stack([fit_to_canvas(image, adapter.canvas) for image in pictures])
        )
        for image, canvas in zip(adapter(pictures), canvases, strict=True):
            assert image.size == (37, 37)
            assert (seen_by_server(image, ServerProfile("resize_crop", 37, 32), 32) == canvas).all()


class TestPromptedByAnother:
    """The control of ``pgn evaluate``: whose prompt it is matters, and nothing else changes."""

    @pytest.mark.parametrize("method", [PGN, InputIndependent])
    def test_a_pgns_patches_are_those_of_the_other_picture(self, method):
        model = prompted(method.name)
        mine, other = fitted(model, seed=1), fitted(model, seed=2)
        assert torch.equal(render(model, mine, prompted_by=other), render(model, other))

    @pytest.mark.parametrize("name", ["input_independent", "padding", "low_rank"])
    def test_changes_nothing_where_all_pictures_share_a_prompt(self, name):
        model = prompted(name)
        mine, other = fitted(model, seed=1), fitted(model, seed=2)
        assert torch.equal(render(model, mine, prompted_by=other), render(model, mine))

    @pytest.mark.parametrize("name", ["pgn", "masked", "blend"])
    def test_changes_what_is_painted_where_every_picture_has_its_own(self, name):
        model = prompted(name, 0.3)
        mine, other = fitted(model, seed=1), fitted(model, seed=2) // 4
        assert (render(model, mine, prompted_by=other) != render(model, mine)).any()

    @each_added
    def test_the_picture_stays_its_own_under_the_others_prompt(self, name):
        model = create(name).eval()  # adds nothing
        mine, other = fitted(model, seed=1), fitted(model, seed=2)
        assert torch.equal(render(model, mine, prompted_by=other), channels_last(mine))

    def test_a_blend_is_of_the_own_picture_and_the_others_prompt(self):
        model = prompted("blend")
        mine, other = fitted(model, seed=1), fitted(model, seed=2)
        torch.nn.init.constant_(model.share, 1e4)
        prompt = painted(model, other)
        torch.nn.init.zeros_(model.share)  # one half
        expected = 255 * (mine / 255 + prompt) / 2
        found = render(model, mine, prompted_by=other).movedim(-1, -3)
        assert (found - expected).abs().max() <= 0.5001


class TestRestore:
    @each_rgb
    def test_a_restored_method_paints_the_same_pixels(self, name):
        model = prompted(name, 0.3).train()
        pictures = fitted(model)
        model(generator_input(pictures, 16))  # so that running statistics count too
        card = Card(
            method=name,
            classes=("a", "b", "c"),
            layout=model.layout,
            library=LibraryCard("pixel", 6),
            backbone=BackboneCard("toy", 32, 8, (0, 0, 0), (1, 1, 1)),
        )
        again = methods.deployable(name).restore(card, model.state_dict())
        assert not again.training
        assert torch.equal(render(again, pictures), render(model.eval(), pictures))

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            ("padding", {"border.values": np.zeros((3, 5), np.float32)}),
            ("padding", {"border.values": np.zeros((3, 5000), np.float32)}),
            ("masked", {"pattern": np.zeros((3, 16, 16), np.float32)}),
            ("masked", {"pattern": np.zeros((3, 1, 1), np.float32)}),
            ("low_rank", {"up": np.zeros((3, 16, 4), np.float32)}),
            ("low_rank", {"up": np.zeros((3, 1, 4), np.float32)}),
            ("low_rank", {"down": np.zeros((3, 5, 32), np.float32)}),
            ("blend", {"library.rows": np.zeros((6, 3, 4, 4), np.float32)}),
        ],
    )
    def test_tensors_of_another_size_are_refused(self, make_adapter, pictures, name, damage):
        whole = make_adapter(method=name, layout="full")
        with pytest.raises(CheckpointError, match="tensors do not fit its card"):
            PromptAdapter(whole.info, whole._tensors | damage).prepare(pictures)


class TestLayout:
    @pytest.mark.parametrize("name", [name for name in RGB if name not in WHOLE])
    def test_a_method_with_prompt_cells_is_refused_on_the_full_canvas(self, name):
        with pytest.raises(
            ConfigurationError,
            match=f"method {name}: got a layout without prompt cells, expected layout ring, corner",
        ):
            methods.get(name).create(Setting(Canvas.build(32, 8, "full"), 3, 24))

    @each_whole
    @pytest.mark.parametrize(("layout", "cells"), [("ring", 12), ("corner", 7), ("rows:1", 4)])
    def test_a_method_that_paints_the_picture_is_refused_beside_prompt_cells(
        self, name, layout, cells
    ):
        with pytest.raises(
            ConfigurationError,
            match=f"method {name}: got {cells} prompt cells, expected layout full",
        ):
            methods.get(name).create(Setting(Canvas.build(32, 8, layout), 3, 24))

    @pytest.mark.parametrize(
        ("name", "layout"), [("padding", "ring"), ("blend", "corner"), ("pgn", "full")]
    )
    def test_training_refuses_a_layout_that_does_not_suit(
        self, make_backbone, make_folder, tmp_path, name, layout
    ):
        task = load_task(make_folder(tmp_path, train=2, val=1))
        with pytest.raises(ConfigurationError, match=f"method {name}: got .* expected layout"):
            fit(task, make_backbone(), method=name, layout=layout, recipe=recipe(epochs=1))


class TestDeployable:
    @each_rgb
    def test_is_every_method_made_of_pixels(self, name):
        assert methods.deployable(name) is REGISTRY[name]

    @pytest.mark.parametrize("name", [name for name in REGISTRY if name not in RGB])
    def test_a_white_box_is_told_what_can_be_sent(self, name):
        with pytest.raises(
            ConfigurationError,
            match=f"got {name}, which needs the inside.*pgn, input_independent, .*blend",
        ):
            methods.deployable(name)

    def test_training_for_an_endpoint_refuses_a_white_box(
        self, make_backbone, make_folder, tmp_path
    ):
        task = load_task(make_folder(tmp_path, train=2, val=1))
        with pytest.raises(
            ConfigurationError, match="padding_published, which needs the inside of the model"
        ):
            fit(task, make_backbone(), method="padding_published", recipe=recipe(epochs=1))
