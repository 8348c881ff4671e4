"""The linear baseline and prompts for masks, on a tiny random model."""

import math

import pytest
import torch
from torch.nn import functional as F

from pgn_client.errors import ConfigurationError, ShapeError
from pgn_client.mapping.logistic_regression import grouped, logistic_regression_cv
from pgn_client.prompting.methods.base import RESIDUAL_SITES
from pgn_client.prompting.methods.expres import EXPRES
from pgn_client.segmentation import (
    IGNORED,
    Episode,
    LinearHead,
    MaskPrompts,
    Numbers,
    fit_linear,
    fit_prompts,
    patch_tokens,
    tuned,
    versions,
)
from pgn_client.segmentation.linear import VERSIONS, enlarged, patch_targets, pixel_loss, version
from pgn_client.segmentation.train import drawn

COLOURS = torch.tensor([[40, 40, 40], [220, 60, 50], [60, 90, 230]])


def painted(count, seed=0):
    """Images of 32 pixels whose upper half is of class 1 or 2, with noise, and their masks."""
    noise = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 32, 32, dtype=torch.uint8)
    for i, mask in enumerate(masks):
        mask[:16] = 1 + i % 2
    pictures = COLOURS[masks.long()].permute(0, 3, 1, 2) + torch.randint(
        -20, 21, (count, 3, 32, 32), generator=noise
    )
    return pictures.clamp(0, 255).to(torch.uint8), masks


def episode(shots=2):
    return Episode(("background", "red", "blue"), *painted(2 * shots), *painted(2, seed=1))


def head(backbone, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return LinearHead(
        torch.randn(backbone.width, 3, generator=noise), torch.randn(3, generator=noise)
    )


@pytest.fixture(scope="module")
def backbone(make_backbone):
    return make_backbone(depth=2, reg_tokens=1)


class TestLinear:
    def test_patch_tokens_are_the_models_own(self, backbone):
        pictures, _ = painted(3)
        m = backbone.model
        pixels = backbone.embedding.normalise(pictures / 255)
        torch.testing.assert_close(
            patch_tokens(backbone, pictures), m.forward_features(pixels)[:, 2:]
        )

    def test_a_patch_has_the_class_of_most_of_its_pixels(self):
        mask = torch.zeros(1, 8, 8, dtype=torch.uint8)
        mask[0, :4, :3] = 2  # 12 of 16 pixels
        mask[0, :4, 4:5] = 1  # 4 of 16
        mask[0, 4:, :4] = IGNORED
        assert patch_targets(mask, 4, 3).tolist() == [[2, 0, IGNORED, 0]]

    def test_scores_lie_where_their_patches_are(self):
        scores = torch.zeros(1, 16, 2)
        scores[0, 4 * 1 + 2, 1] = 1.0  # row 1, column 2
        found = enlarged(scores, 32)
        assert found.shape == (1, 2, 32, 32)
        assert divmod(found[0, 1].argmax().item(), 32) in {(11, 19), (11, 20), (12, 19), (12, 20)}
        assert not found[0, 0].any()

    def test_the_eight_versions_are_different_and_begin_with_the_picture(self):
        picture = torch.arange(16).view(4, 4)
        found = [version(picture, v) for v in range(VERSIONS)]
        assert torch.equal(found[0], picture)
        assert len({tuple(f.flatten().tolist()) for f in found}) == 8

    def test_quarters_go_along_with_the_pictures_versions(self, backbone):
        pictures, _ = painted(3)
        quarters = torch.arange(4).view(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)
        masks = quarters.to(torch.uint8).expand(3, -1, -1)
        seen = versions(backbone, pictures, masks)
        assert seen.tokens.shape == (24, 16, 24)
        assert torch.equal(seen.quarters % 4, patch_targets(seen.masks, 8, 4))
        assert torch.equal(seen.quarters[:, 0] // 4, torch.arange(3).repeat(8))
        turned = version(pictures, 3)
        assert torch.equal(seen.tokens[9:12], patch_tokens(backbone, turned))

    @pytest.mark.parametrize("shots", [1, 3])
    def test_it_is_exact_where_the_patches_can_be_separated(self, backbone, shots):
        learnt, asked = painted(2 * shots), painted(4, seed=9)
        fitted = fit_linear(versions(backbone, *learnt), 8, 3)
        found = enlarged(fitted(patch_tokens(backbone, asked[0])), 32).argmax(1)
        # the patches' middle rows
        assert (found[:, [4, 12, 20, 28]] == asked[1][:, [4, 12, 20, 28]]).all()

    def test_ignored_pixels_teach_nothing(self, backbone):
        pictures, masks = painted(4)
        masks[:, 16:] = IGNORED  # no background is left
        fitted = fit_linear(versions(backbone, pictures, masks), 8, 3)
        assert set(fitted(patch_tokens(backbone, pictures)).argmax(-1).unique().tolist()) <= {1, 2}

    def test_tuning_lowers_the_pixels_loss_and_leaves_its_start_alone(self, backbone):
        seen = versions(backbone, *painted(4))
        start = head(backbone)
        before = start.weight.clone()
        found = tuned(start, seen)
        assert torch.equal(start.weight, before)
        assert pixel_loss(found(seen.tokens), seen.masks) < pixel_loss(
            start(seen.tokens), seen.masks
        )

    def test_pictures_of_another_size_are_refused(self, backbone):
        with pytest.raises(
            ShapeError,
            match=r"got images of \(30, 32\), expected \(32, 32\); "
            r"resize them",
        ):
            patch_tokens(backbone, torch.zeros(1, 3, 30, 32, dtype=torch.uint8))


class TestFolds:
    def test_no_fold_parts_a_group(self):
        groups = torch.arange(7).repeat_interleave(3).numpy()
        held = [
            set(groups[out])
            for train, out in grouped(groups, 3, seed=0)
            if not set(groups[train]) & set(groups[out])
        ]
        assert sorted(len(h) for h in held) == [2, 2, 3]
        assert set.union(*held) == set(range(7))

    def test_one_group_cannot_be_parted(self):
        x, y = torch.randn(6, 2).double().numpy(), torch.tensor([0, 1] * 3).numpy()
        with pytest.raises(ConfigurationError, match="got 1 group, expected at least 2"):
            logistic_regression_cv(x, y, 2, groups=y * 0)


class TestPrompts:
    def test_a_closed_gate_leaves_the_linear_heads_logits(self, backbone):
        start, (pictures, _) = head(backbone), painted(2)
        model = MaskPrompts.create(backbone, 3, 2, start)
        with torch.no_grad():
            model.gate.zero_()
            patches, _ = model.prompts.encoded(backbone.tokens(pictures), backbone)
            assert torch.equal(model(pictures, backbone), start(patches))

    def test_scores_are_what_the_formula_says(self, backbone):
        start, (pictures, _) = head(backbone), painted(2)
        model = MaskPrompts.create(backbone, 3, 2, start)
        with torch.no_grad():
            model.gate.fill_(0.7)
            model.log_scale.fill_(math.log(5.0))
            x, o = model.prompts.encoded(backbone.tokens(pictures), backbone)
            found = model(pictures, backbone)
        for i, p, c in ((0, 0, 0), (0, 5, 1), (1, 15, 2)):
            prototype = (o[i, 2 * c] + o[i, 2 * c + 1]) / 2
            cosine = x[i, p] @ prototype / (x[i, p].norm() * prototype.norm())
            expected = x[i, p] @ start.weight[:, c] + start.bias[c] + 0.7 * 5.0 * cosine
            assert found[i, p, c].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)

    def test_each_part_alone(self, backbone):
        start, (pictures, _) = head(backbone), painted(2)
        torch.manual_seed(0)
        by_head = MaskPrompts.create(backbone, 3, 2, start, prototypes=False)
        by_prototypes = MaskPrompts.create(backbone, 3, 2, None)
        both = MaskPrompts(by_prototypes.prompts, 3, start)
        with torch.no_grad():
            assert by_head.parts(pictures, backbone)[1] is None
            first, second = both.parts(pictures, backbone)
            assert torch.equal(by_prototypes(pictures, backbone), second)
            assert torch.equal(both(pictures, backbone), first + both.gate * second)
            # the patches read the prompts
            assert not torch.equal(first, start(patch_tokens(backbone, pictures)))

    def test_the_loss_is_of_the_sum_and_of_the_prototypes(self, backbone):
        model, (pictures, masks) = MaskPrompts.create(backbone, 3, 2, head(backbone)), painted(2)
        masks[0, :3] = IGNORED
        with torch.no_grad():
            by_head, by_prototypes = model.parts(pictures, backbone)
            expected = 0.0
            for scores in (by_head + model.gate * by_prototypes, by_prototypes):
                log_p = F.log_softmax(enlarged(scores, 32), 1)
                counts = masks != IGNORED
                picked = log_p.gather(1, masks.clamp(max=2).long()[:, None])[:, 0]
                expected -= picked[counts].mean()
            assert model.loss(pictures, masks, backbone).item() == pytest.approx(
                expected.item(), rel=1e-5
            )

    def test_gradients_reach_all_that_learns_and_nothing_else(self, backbone):
        model, (pictures, masks) = MaskPrompts.create(backbone, 3, 2, head(backbone)), painted(4)
        model.loss(pictures, masks, backbone).backward()
        names = {name for name, _ in model.named_parameters()}
        residuals = {f"prompts.residuals.{site}" for site in RESIDUAL_SITES}
        assert names == {"prompts.prompts", "head.0", "head.1", "log_scale", "gate"} | residuals
        for name, parameter in model.named_parameters():
            assert parameter.grad.abs().sum() > 0, name
        assert all(p.grad is None for p in backbone.model.parameters())

    def test_training_lowers_the_loss_and_leaves_model_and_start_alone(self, backbone):
        task, start = episode(), head(backbone)
        before = start.weight.clone()
        numbers = Numbers(steps=15)
        trained = fit_prompts(task, backbone, start, numbers=numbers)
        fresh = fit_prompts(task, backbone, start, numbers=Numbers(steps=0))
        losses = [
            m.loss(task.support, task.support_masks, backbone).item() for m in (trained, fresh)
        ]
        assert losses[0] < 0.7 * losses[1]
        backbone.verify_frozen()
        assert torch.equal(start.weight, before)
        assert trained.predict(task.query, backbone).shape == (2, 32, 32)

    def test_a_seed_gives_the_same_again(self, backbone):
        first, again, other = (
            fit_prompts(episode(), backbone, None, numbers=Numbers(steps=2), seed=s).prompts.prompts
            for s in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_queries_are_not_looked_at(self, backbone):
        task = episode()
        blind = Episode(
            task.classes, task.support, task.support_masks, task.query * 0, task.query_masks * 0
        )
        a, b = (
            fit_prompts(t, backbone, None, numbers=Numbers(steps=2)).prompts.prompts
            for t in (task, blind)
        )
        assert torch.equal(a, b)

    def test_pictures_and_masks_are_turned_together_and_each_comes_once(self):
        task = episode(shots=2)
        torch.manual_seed(0)
        batches = drawn(task, batch=3)
        for _ in range(3):
            pictures, masks = (torch.cat(x) for x in zip(next(batches), next(batches), strict=True))
            assert len(pictures) == 4
            assert ((pictures[:, 0] > 130) == (masks == 1)).all()  # red pixels are of class 1
            assert sorted((masks == 1).any((1, 2)).tolist()) == [False, False, True, True]

    def test_prompts_that_do_not_fit_and_nothing_to_score_with(self, backbone):
        with pytest.raises(
            ConfigurationError, match="got 7 prompts, expected as many for each of 3 classes"
        ):
            MaskPrompts(EXPRES(torch.zeros(7, 24), {}), 3, None)
        with pytest.raises(ConfigurationError, match="got neither head nor prototypes"):
            MaskPrompts.create(backbone, 3, 2, None, prototypes=False)

    def test_pictures_of_another_size_are_refused(self, backbone):
        task = episode()
        wrong = Episode(
            task.classes, task.support[..., :24], task.support_masks, task.query, task.query_masks
        )
        with pytest.raises(ShapeError, match=r"got images of \(32, 24\), expected \(32, 32\)"):
            fit_prompts(wrong, backbone, None)
        model = MaskPrompts.create(backbone, 3, 1, None)
        with pytest.raises(ShapeError, match="resize them"):
            model.predict(wrong.support, backbone)
