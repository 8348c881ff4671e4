import io

import numpy as np
import pytest
import torch
from PIL import Image

from pgn_client.errors import ConfigurationError
from pgn_client.prompting import inversion
from pgn_client.prompting.token_library import LIBRARIES, ReachableLibrary, library

EXACT = [kind for kind, found in LIBRARIES.items() if found.exact]


def draw(kind, size=6, patch=16, width=24):
    torch.manual_seed(0)
    return library(kind).create(size, patch, width)


def after_jpeg(patches):
    """(L, 3, P, P) in [0, 1] → the same through one JPEG of quality 75 with 4:2:0, patches side by
    side.
    """
    pixels = (patches.detach() * 255).round().byte().permute(2, 0, 3, 1).flatten(1, 2).numpy()
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG", quality=75, subsampling=2)
    found = torch.from_numpy(np.asarray(Image.open(buffer)).copy()).float() / 255
    return found.unflatten(1, (len(patches), -1)).permute(1, 3, 0, 2)


class TestExactKinds:
    @pytest.mark.parametrize("kind", EXACT)
    def test_rows_are_valid_patches_whatever_is_learnt(self, kind):
        rows = draw(kind)
        with torch.no_grad():
            rows.rows.mul_(100)
        patches = rows.patches()
        assert patches.shape == (6, 3, 16, 16)
        assert patches.min() >= 0
        assert patches.max() <= 1

    @pytest.mark.parametrize("kind", EXACT)
    def test_tokens_are_those_of_the_patches(self, kind, make_backbone):
        rows, embedding = draw(kind, patch=8), make_backbone().embedding
        torch.testing.assert_close(rows.tokens(embedding), embedding(rows.patches()))

    @pytest.mark.parametrize("kind", EXACT)
    @pytest.mark.parametrize("patch", [1, 2, 3, 14, 32])
    def test_any_side_of_a_patch(self, kind, patch):
        assert draw(kind, patch=patch).patches().shape == (6, 3, patch, patch)

    def test_luma_rows_have_no_colour(self):
        red, green, blue = draw("luma").patches().unbind(1)
        assert torch.equal(red, green)
        assert torch.equal(green, blue)

    def test_what_is_made_for_jpeg_survives_it_better(self):
        error = {
            kind: (after_jpeg(p := draw(kind).patches()) - p).abs().mean().item() for kind in EXACT
        }
        assert error["smooth"] < error["luma"] < error["pixel"]


class TestReachable:
    @pytest.fixture
    def embedding(self, make_backbone):
        return make_backbone().embedding

    @pytest.fixture
    def rows(self, embedding):
        """Rows far outside of what pixels reach, after they went back."""
        found = draw("reachable", patch=8)
        with torch.no_grad():
            found.rows.normal_(std=30)
        self.before = found.rows.detach().clone()
        for _ in range(20):
            found.stay_within(embedding)
        return found

    def residual(self, tokens, embedding):
        with torch.no_grad():
            return (embedding(inversion.bounded(tokens, embedding)) - tokens).norm(
                dim=-1
            ) / tokens.norm(dim=-1)

    def test_rows_and_their_mixtures_are_reached(self, rows, embedding):
        assert self.residual(self.before, embedding).min() > 0.1
        assert self.residual(rows.rows, embedding).max() < 0.005
        mixed = torch.randn(50, 6).mul(3).softmax(-1) @ rows.rows
        assert self.residual(mixed, embedding).max() < 0.005

    def test_what_is_reachable_stays_where_it_is(self, embedding):
        tokens = embedding(torch.rand(6, 3, 8, 8))
        kept = ReachableLibrary(tokens.clone())
        kept.stay_within(embedding)
        torch.testing.assert_close(kept.rows.detach(), tokens, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("kind", [kind for kind in LIBRARIES if kind != "reachable"])
    def test_no_other_kind_is_moved(self, kind, embedding):
        other = draw(kind, patch=8)
        before = other.rows.detach().clone()
        other.stay_within(embedding)
        assert torch.equal(other.rows, before)


def test_an_unknown_kind_is_told_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"'rgb'.*pixel, smooth, luma, latent, reachable"):
        library("rgb")
