import math

import numpy as np
import pytest
import torch

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting import methods
from pgn_client.prompting.methods import REGISTRY, Rates, RGBMethod, Setting, WhiteBox
from pgn_client.prompting.methods.fine_tune import FineTune
from pgn_client.prompting.methods.vpt import VPTDeep, VPTShallow
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import fit, fit_white_box, load_task, recipe

RATES = Rates(library=1.0, bias=2.0, mixture=3.0, trunk=4.0, mapping=5.0)
CANVAS = Canvas.build(32, 8, "full")
WHITE = [name for name, method in REGISTRY.items() if issubclass(method, WhiteBox)]
each_vpt = pytest.mark.parametrize("method", [VPTShallow, VPTDeep])
each_kind = pytest.mark.parametrize(
    "options",
    [
        {"depth": 3},
        {"depth": 3, "reg_tokens": 2, "no_embed_class": True},
        {"depth": 3, "pre_norm": True, "init_values": 0.1},
        {"depth": 3, "global_pool": "avg"},
        {"depth": 3, "global_pool": "avg", "reg_tokens": 2, "fc_norm": False},
        {"depth": 3, "global_pool": "avg", "class_token": False},
    ],
    ids=["token", "registers", "pre-norm", "avg", "avg, registers", "avg, no class token"],
)


def pixels(count, seed=0):
    return torch.randint(
        0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed)
    ).to(torch.uint8)


def create(method, backbone, **options):
    torch.manual_seed(0)
    return method.create(Setting(CANVAS, 3, 24, depth=backbone.depth, backbone=backbone, **options))


def entering(backbone, pictures):
    """What the first block reads, (B, T, D), written out from the model's parts."""
    m = backbone.model
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    x = m.patch_embed.proj((pictures / 255 - mean) / std).flatten(2).transpose(1, 2)
    prefix = [t.expand(len(x), -1, -1) for t in (m.cls_token, m.reg_token) if t is not None]
    x = (
        torch.cat([*prefix, x + m.pos_embed], 1)
        if m.no_embed_class
        else torch.cat([*prefix, x], 1) + m.pos_embed
    )
    return m.norm_pre(x)


def read(m, x):
    """What is pooled of the last block's tokens, (B, T, D), none of them a prompt."""
    prefix = sum(t.shape[1] for t in (m.cls_token, m.reg_token) if t is not None)
    return m.fc_norm(m.norm(x)[:, 0] if m.global_pool == "token" else m.norm(x)[:, prefix:].mean(1))


class TestVPT:
    @each_kind
    def test_shallow_prompts_stand_beside_the_tokens_once(self, make_backbone, options):
        backbone, pictures = make_backbone(**options), pixels(3)
        model = create(VPTShallow, backbone)
        with torch.no_grad():
            own = entering(backbone, pictures)
            # attention does not care where they stand
            x = torch.cat([own, model.prompts.expand(3, -1, -1)], 1)
            x = backbone.model.blocks(x)[:, : own.shape[1]]
            found = model.scores(None, pictures, Surrogate(backbone, CANVAS))
        torch.testing.assert_close(found, read(backbone.model, x), rtol=1e-4, atol=1e-5)
        assert (found - model.neutral(pictures, Surrogate(backbone, CANVAS))).abs().max() > 0.01

    @each_kind
    def test_deep_prompts_are_new_before_every_block(self, make_backbone, options):
        backbone, pictures = make_backbone(**options), pixels(3)
        model = create(VPTDeep, backbone)
        with torch.no_grad():
            x = entering(backbone, pictures)
            for block, prompts in zip(backbone.model.blocks, model.prompts, strict=True):
                x = block(torch.cat([x, prompts.expand(3, -1, -1)], 1))[:, : x.shape[1]]
            found = model.scores(None, pictures, Surrogate(backbone, CANVAS))
        torch.testing.assert_close(found, read(backbone.model, x), rtol=1e-4, atol=1e-5)

    @each_vpt
    @each_kind
    def test_prompts_that_say_everything_twice_say_nothing(self, make_backbone, method, options):
        """Attention over each token twice is attention over each token once."""
        backbone, picture = make_backbone(**options), pixels(1)
        with torch.no_grad():
            inputs = [entering(backbone, picture)]
            for block in backbone.model.blocks[:-1]:
                inputs.append(block(inputs[-1]))
            model = method(torch.cat(inputs if method is VPTDeep else inputs[:1]))
            surrogate = Surrogate(backbone, CANVAS)
            found, expected = (
                model.scores(None, picture, surrogate),
                model.neutral(picture, surrogate),
            )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    @each_vpt
    @each_kind
    def test_where_tokens_do_not_attend_the_prompts_are_not_seen(
        self, make_backbone, method, options
    ):
        """So they are in no mean."""
        backbone, pictures = make_backbone(**options), pixels(2)
        for block in backbone.model.blocks:
            torch.nn.init.zeros_(block.attn.proj.weight)
        surrogate, model = Surrogate(backbone, CANVAS), create(method, backbone)
        torch.testing.assert_close(
            model.scores(None, pictures, surrogate), model.neutral(pictures, surrogate)
        )

    def test_with_one_block_deep_is_shallow(self, make_backbone):
        backbone = make_backbone(depth=1)
        shallow, deep = (create(method, backbone) for method in (VPTShallow, VPTDeep))
        surrogate = Surrogate(backbone, CANVAS)
        assert torch.equal(*(model.scores(None, pixels(2), surrogate) for model in (shallow, deep)))

    def test_without_prompts_the_features_are_those_that_the_head_reads(self, make_backbone):
        backbone = make_backbone()
        features = create(VPTShallow, backbone).neutral(pixels(2), Surrogate(backbone, CANVAS))
        torch.testing.assert_close(
            backbone.model.head(features), backbone.logits(pixels(2)), rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize(("method", "blocks"), [(VPTShallow, 1), (VPTDeep, 12)])
    def test_ten_prompts_are_drawn_as_published(self, method, blocks):
        torch.manual_seed(0)
        model = method.create(Setting(Canvas.build(224, 16, "full"), 3, 768, depth=12))
        v = math.sqrt(6 / (3 * 16 * 16 + 768))
        assert model.prompts.shape == (blocks, 10, 768)
        assert model.learnable() == blocks * 10 * 768
        assert model.prompts.abs().max().item() == pytest.approx(v, rel=0.01)
        assert model.prompts.abs().max() <= v
        assert model.prompts.std().item() == pytest.approx(v / math.sqrt(3), rel=0.02)
        (group,) = model.prompt_groups(RATES)
        assert (group["lr"], group["weight_decay"]) == (0.03, 0.0)

    @each_vpt
    def test_gradients_reach_the_prompts_alone(self, make_backbone, method):
        backbone = make_backbone(depth=3)
        model = create(method, backbone).train()
        model.scores(None, pixels(4), Surrogate(backbone, CANVAS)).square().sum().backward()
        assert [name for name, _ in model.named_parameters()] == ["prompts"]
        assert (model.prompts.grad.abs().sum(-1) > 0).all()
        assert all(p.grad is None for p in backbone.model.parameters())

    @each_vpt
    def test_in_half_precision_the_features_are_nearly_the_same(self, make_backbone, method):
        backbone = make_backbone(depth=3)
        model = create(method, backbone)
        exact, half = (
            model.scores(None, pixels(4), Surrogate(backbone, CANVAS, half=h))
            for h in (False, True)
        )
        assert half.dtype == torch.float32
        assert 0 < (exact - half).abs().max() < 0.1 * exact.std()

    @pytest.mark.parametrize("pooling", ["max", "map"])
    def test_other_pooling_is_refused(self, make_backbone, pooling):
        backbone = make_backbone(global_pool=pooling)
        model, surrogate = create(VPTShallow, backbone), Surrogate(backbone, CANVAS)
        for answer in (
            lambda: model.neutral(pixels(1), surrogate),
            lambda: model.scores(None, pixels(1), surrogate),
        ):
            with pytest.raises(
                ConfigurationError, match=f"tiny: got pooling {pooling}, expected token or avg"
            ):
                answer()

    @each_vpt
    def test_a_layout_with_prompt_cells_is_refused(self, method):
        with pytest.raises(
            ConfigurationError, match=f"{method.name}: got 12 prompt cells, expected layout full"
        ):
            method.create(Setting(Canvas.build(32, 8), 3, 24))


class TestFineTune:
    @each_kind
    def test_starts_as_the_backbone_is(self, make_backbone, options):
        backbone = make_backbone(**options)
        model, surrogate = create(FineTune, backbone), Surrogate(backbone, CANVAS)
        assert torch.equal(
            model.scores(None, pixels(2), surrogate), model.neutral(pixels(2), surrogate)
        )

    def test_all_of_the_backbone_but_its_head_learns(self, make_backbone):
        backbone = make_backbone()
        model = create(FineTune, backbone)
        head = 24 * 10 + 10
        assert model.learnable() == sum(p.numel() for p in backbone.model.parameters()) - head
        model.scores(None, pixels(4), Surrogate(backbone, CANVAS)).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())

    def test_weights_decay_as_the_recipe_has_it(self, make_backbone):
        (group,) = create(FineTune, make_backbone()).prompt_groups(RATES)
        assert group["lr"] == 5e-5
        assert "weight_decay" not in group

    def test_dropout_stays_off(self, make_backbone):
        backbone = make_backbone(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)
        model, surrogate = create(FineTune, backbone).train(), Surrogate(backbone, CANVAS)
        assert torch.equal(*(model.scores(None, pixels(2), surrogate) for _ in range(2)))

    def test_without_a_backbone_there_is_nothing_to_copy(self):
        with pytest.raises(ConfigurationError, match="fine_tune: got no backbone"):
            FineTune.create(Setting(CANVAS, 3, 24))


@pytest.fixture(scope="module")
def task(make_folder, tmp_path_factory):
    return load_task(make_folder(tmp_path_factory.mktemp("task"), train=8, val=4))


@pytest.fixture(scope="module")
def train(task, make_backbone):
    """Train shortly, each method once: ``train("vpt_deep")``; ``again=True`` trains it anew."""
    kept = {}

    def run(method, *, again=False):
        if again or method not in kept:
            kept[method] = fit_white_box(task, make_backbone(), method, recipe=recipe(epochs=3))
        return kept[method]

    return run


class TestTraining:
    def test_what_can_be_sent_comes_first_in_the_registry(self):
        sendable = [issubclass(method, RGBMethod) for method in REGISTRY.values()]
        assert sendable == sorted(sendable, reverse=True)
        assert {"padding_published", "vpt_shallow", "vpt_deep", "fine_tune"} <= set(WHITE)

    @pytest.mark.parametrize("method", WHITE)
    def test_learns_to_tell_the_colours(self, train, task, method):
        log_p = train(method).log_probs(task.val)
        assert (log_p.shape, log_p.dtype) == ((12, 3), np.float64)
        np.testing.assert_allclose(np.exp(log_p).sum(1), 1, rtol=1e-5)
        assert (log_p.argmax(1) == task.val.labels).mean() > 0.7  # chance is 1/3

    @pytest.mark.parametrize("method", WHITE)
    def test_the_seed_decides(self, train, task, method):
        assert np.array_equal(
            *(train(method, again=again).log_probs(task.val) for again in (False, True))
        )

    @pytest.mark.parametrize(
        "method", ["padding_published", "vpt_shallow", "vpt_deep", "fine_tune"]
    )
    def test_counts_what_was_trained(self, train, method):
        border = 3 * (32 * 32 - 24 * 24)  # 30 pixels of 224 are 4 of 32
        whole = sum(
            p.numel()
            for name, p in train(method).surrogate.backbone.model.named_parameters()
            if not name.startswith("head")
        )
        prompt = {
            "padding_published": border,
            "vpt_shallow": 240,
            "vpt_deep": 480,
            "fine_tune": whole,
        }[method]
        read = 10 if method == "padding_published" else 24
        assert train(method).learnable() == {"prompt": prompt, "mapping": 3 * read + 3, "local": 0}

    @pytest.mark.parametrize("method", ["vpt_shallow", "vpt_deep"])
    def test_prompts_move(self, train, method):
        model = train(method).model
        v = math.sqrt(6 / (3 * 8 * 8 + 24))
        assert model.prompts.abs().max() > v  # none was drawn there

    def test_fine_tuning_changes_every_weight_of_the_copy_and_none_of_the_backbone(
        self, train, make_backbone
    ):
        result, original = train("fine_tune"), make_backbone().model
        assert all(
            torch.equal(v, original.state_dict()[k])
            for k, v in result.surrogate.backbone.model.state_dict().items()
        )
        assert all(
            (v != original.state_dict()[k]).any()
            for k, v in result.model.model.state_dict().items()
        )

    def test_none_of_them_is_sent_to_an_endpoint(self, task, make_backbone):
        with pytest.raises(ConfigurationError) as told:
            methods.deployable("vpt_deep")
        assert "got vpt_deep, which needs the inside of the model" in str(told.value)
        with pytest.raises(ConfigurationError) as refused:
            fit(task, make_backbone(), method="vpt_deep")
        assert str(refused.value) == str(told.value)

    def test_what_can_be_sent_is_no_white_box(self, task, make_backbone):
        with pytest.raises(ConfigurationError, match=r"got padding.*expected a white box; use fit"):
            fit_white_box(task, make_backbone(), "padding")
