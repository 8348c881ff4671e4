"""EXPRES against its formula, written out from a model's parts."""

import math

import pytest
import torch

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting.methods import Rates, Setting
from pgn_client.prompting.methods.base import RESIDUAL_SITES
from pgn_client.prompting.methods.expres import EXPRES, SITES, multiply_adds
from pgn_client.surrogate.surrogate import Surrogate
from tests.training.test_white_box import CANVAS, create, each_kind, entering, pixels


def drawn(backbone, **options):
    """One whose residuals are not zero any more."""
    model = create(EXPRES, backbone, **options)
    with torch.no_grad():
        for residual in model.residuals.values():
            residual.normal_(0, 0.3)
    return model


def written_out(backbone, model, pictures):
    """(B, D): the class docstring's equations, one by one."""
    m, count = backbone.model, len(model.prompts)
    z = torch.cat([entering(backbone, pictures), model.prompts.expand(len(pictures), -1, -1)], 1)

    def add(x, site, block):
        x = x.clone()
        if site in model.residuals:
            x[:, -count:] += model.residuals[site][block]
        return x

    for i, block in enumerate(m.blocks):
        a = block.attn
        u = add(block.norm1(z), "norm1", i)
        parts = [add(t, site, i) for t, site in zip(a.qkv(u).chunk(3, -1), "qkv", strict=True)]
        q, k, v = (t.unflatten(-1, (a.num_heads, -1)).transpose(1, 2) for t in parts)
        attention = (a.q_norm(q) @ a.k_norm(k).transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(
            -1
        )
        y = add(a.proj((attention @ v).transpose(1, 2).flatten(2)), "proj", i)
        z = z + block.ls1(y)
        z = z + block.ls2(add(block.mlp(add(block.norm2(z), "norm2", i)), "mlp", i))
    return m.fc_norm(m.norm(z[:, -count:])).mean(1)


@pytest.mark.parametrize("sites", [RESIDUAL_SITES, SITES])
@each_kind
def test_features_are_what_the_equations_say(make_backbone, sites, options):
    backbone, pictures = make_backbone(**options), pixels(3)
    model = drawn(backbone, sites=sites)
    with torch.no_grad():
        found = model.scores(None, pictures, Surrogate(backbone, CANVAS))
        torch.testing.assert_close(
            found, written_out(backbone, model, pictures), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("site", SITES)
def test_each_site_is_a_switch_of_its_own(make_backbone, site):
    backbone, pictures = make_backbone(depth=3), pixels(3)
    surrogate = Surrogate(backbone, CANVAS)
    model, plain = drawn(backbone, sites=(site,)), drawn(backbone, sites=())
    with torch.no_grad():
        plain.prompts.copy_(model.prompts)
        found = model.scores(None, pictures, surrogate)
        torch.testing.assert_close(
            found, written_out(backbone, model, pictures), rtol=1e-4, atol=1e-5
        )
        assert (found - plain.scores(None, pictures, surrogate)).abs().max() > 1e-3
    assert plain.learnable() == 10 * 24
    assert model.learnable() == 10 * 24 * (1 + backbone.depth)


def test_with_qk_norm_the_residuals_come_before_it(make_backbone):
    backbone, pictures = make_backbone(depth=2, qk_norm=True), pixels(2)
    model = drawn(backbone)
    with torch.no_grad():
        found = model.scores(None, pictures, Surrogate(backbone, CANVAS))
        torch.testing.assert_close(
            found, written_out(backbone, model, pictures), rtol=1e-4, atol=1e-5
        )


def test_a_training_starts_from_plain_output_tokens(make_backbone):
    backbone, pictures = make_backbone(depth=3), pixels(2)
    model, surrogate = create(EXPRES, backbone), Surrogate(backbone, CANVAS)
    assert all(not residual.any() for residual in model.residuals.values())
    assert torch.equal(model.neutral(pictures, surrogate), model.scores(None, pictures, surrogate))


def test_patch_tokens_come_out_beside_the_output_tokens(make_backbone):
    backbone, pictures = make_backbone(depth=2, reg_tokens=2), pixels(2)
    model = create(EXPRES, backbone)
    patches, outputs = model.encoded(backbone.tokens(pictures), backbone)
    assert (patches.shape, outputs.shape) == ((2, 16, 24), (2, 10, 24))
    with torch.no_grad():
        far = model.prompts - 1e3 * backbone.model.cls_token[0]  # the patches read the prompts
        model.prompts.copy_(far)
    assert not torch.equal(model.encoded(backbone.tokens(pictures), backbone)[0], patches)


def test_vit_b_with_ten_prompts_learns_as_many_numbers_as_the_design_says():
    torch.manual_seed(0)
    model = EXPRES.create(Setting(Canvas.build(224, 16, "full"), 3, 768, depth=12))
    assert model.learnable() == 468_480
    assert model.prompts.abs().max().item() == pytest.approx(
        math.sqrt(6 / (3 * 16 * 16 + 768)), rel=0.01
    )


def test_gradients_reach_prompts_and_residuals_and_nothing_else(make_backbone):
    backbone = make_backbone(depth=3)
    model = drawn(backbone, sites=SITES).train()
    model.scores(None, pixels(4), Surrogate(backbone, CANVAS)).square().sum().backward()
    assert {name for name, _ in model.named_parameters()} == {
        "prompts",
        *(f"residuals.{site}" for site in SITES),
    }
    for name, parameter in model.named_parameters():
        assert (parameter.grad.abs().sum(-1) > 0).all(), name
    assert all(p.grad is None for p in backbone.model.parameters())


def test_the_model_is_left_as_it_was_even_after_a_failure(make_backbone):
    backbone, pictures = make_backbone(depth=3), pixels(2)
    model, surrogate = drawn(backbone), Surrogate(backbone, CANVAS)
    before = backbone.logits(pictures)
    model.scores(None, pictures, surrogate)
    with pytest.raises(RuntimeError):
        model.output_tokens(torch.zeros(2, 16, 7), backbone)
    assert torch.equal(backbone.logits(pictures), before)
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_in_half_precision_the_features_are_nearly_the_same(make_backbone):
    backbone = make_backbone(depth=3)
    model = drawn(backbone)
    exact, half = (
        model.scores(None, pixels(4), Surrogate(backbone, CANVAS, half=h)) for h in (False, True)
    )
    assert half.dtype == torch.float32
    assert 0 < (exact - half).abs().max() < 0.1 * exact.std()


def test_blocks_of_another_kind_are_refused(make_backbone):
    backbone = make_backbone(depth=2)
    model = create(EXPRES, backbone)
    del backbone.model.blocks[1].norm1
    with pytest.raises(
        ConfigurationError,
        match=r"tiny: got a Block without norm1, expected the blocks of a "
        r"plain ViT",
    ):
        model.scores(None, pixels(1), Surrogate(backbone, CANVAS))
    assert not any(module._forward_hooks for module in backbone.model.modules())


def test_an_unknown_site_and_a_layout_with_cells_are_refused():
    with pytest.raises(
        ConfigurationError,
        match="got the site 'ln', expected some of norm1, q, k, v, proj, norm2, mlp",
    ):
        EXPRES.create(Setting(CANVAS, 3, 24, sites=("q", "ln")))
    with pytest.raises(
        ConfigurationError, match="expres: got 12 prompt cells, expected layout full"
    ):
        EXPRES.create(Setting(Canvas.build(32, 8), 3, 24))


def test_prompts_and_residuals_learn_at_one_rate_without_decay(make_backbone):
    (group,) = create(EXPRES, make_backbone()).prompt_groups(Rates(1, 2, 3, 4, 5))
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.1, 0.0, 6)


def test_multiply_adds_are_the_formula():
    n, d = 197 + 10, 768
    # q, k, v; projection; MLP; scores and values
    per_block = 3 * n * d * d + n * d * d + 8 * n * d * d + 2 * n * n * d
    assert multiply_adds(n, d, 12) == 12 * per_block
