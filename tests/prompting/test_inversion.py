import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgn_client.errors import ConfigurationError
from pgn_client.prompting import inversion
from pgn_client.surrogate.patch_embedding import PatchEmbedding

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def embedding(width, patch, seed=0, decay=0.0):
    """A random patch embedding, its singular values falling by ``decay`` decades."""
    noise = torch.Generator().manual_seed(seed)
    W = torch.randn(width, 3 * patch * patch, generator=noise) / (3 * patch * patch) ** 0.5
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    W = U @ torch.diag(S * torch.logspace(0, -decay, len(S))) @ V
    return PatchEmbedding(
        W.view(width, 3, patch, patch), torch.randn(width, generator=noise), MEAN, STD
    )


def rand(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def residual(patches, tokens, E):
    """‖W norm(x) + b - p‖² of each token."""
    return (E(patches) - tokens).square().sum(-1)


class TestExact:
    def test_embedding_the_mixed_patches_is_mixing_the_embedded_rows(self):
        E, rows = embedding(24, 8), rand(10, 3, 8, 8)
        weights = rand(2, 5, 10, seed=2).mul(5).softmax(-1)
        torch.testing.assert_close(
            E(inversion.exact(weights, rows)), weights @ E(rows), rtol=1e-5, atol=1e-5
        )

    def test_a_mixture_stays_in_the_gamut(self):
        mixed = inversion.exact(rand(2, 5, 10).mul(9).softmax(-1), rand(10, 3, 8, 8).round())
        assert mixed.min() >= 0
        assert mixed.max() <= 1 + 1e-6

    def test_a_certain_choice_is_the_row_itself(self):
        rows = rand(4, 3, 2, 2)
        weights = torch.eye(4)[None]
        assert torch.equal(inversion.exact(weights, rows)[0], rows)


class TestPseudoInverse:
    def test_is_exact_where_nothing_is_clipped(self):
        E = embedding(24, 8)
        tokens = E(0.5 + 0.02 * (rand(6, 3, 8, 8) - 0.5))
        patches = inversion.pseudo_inverse(tokens, E)
        assert patches.min() > 0
        assert patches.max() < 1
        assert residual(patches, tokens, E).max() < 1e-8

    def test_is_the_least_norm_solution(self):
        E = embedding(24, 8)
        tokens = E(0.5 + 0.02 * (rand(1, 3, 8, 8) - 0.5))
        found = E.normalise(inversion.pseudo_inverse(tokens, E)).flatten(1)
        expected = np.linalg.lstsq(
            E.weight.flatten(1).double(), (tokens - E.bias).double()[0], rcond=None
        )[0]
        np.testing.assert_allclose(found[0], expected, atol=1e-5)

    def test_is_clipped_to_the_gamut(self):
        patches = inversion.pseudo_inverse(100 * rand(3, 24), embedding(24, 8))
        assert patches.min() == 0
        assert patches.max() == 1


class TestUnclipped:
    def test_reaches_any_token_where_the_gamut_does_not(self):
        E, tokens = embedding(24, 8), 100 * rand(3, 24)
        assert residual(inversion.unclipped(tokens, E), tokens, E).max() < 1e-3
        assert residual(inversion.pseudo_inverse(tokens, E), tokens, E).min() > 1
        torch.testing.assert_close(
            inversion.unclipped(tokens, E).clamp(0, 1), inversion.pseudo_inverse(tokens, E)
        )


class TestReach:
    def test_tells_what_each_route_loses(self):
        E = embedding(24, 8)
        near, far = inversion.reach(E(rand(20, 3, 8, 8)), E), inversion.reach(100 * rand(20, 24), E)
        assert near["bounded_most"] < 1e-3
        assert far["pseudo_inverse"] >= far["bounded"] > 0.3
        assert far["norm"] > far["norm_of_pixels"] == near["norm_of_pixels"] > 0

    def test_condition_is_that_of_the_matrix(self):
        E = embedding(24, 8, decay=2.0)
        assert inversion.reach(rand(4, 24), E)["condition"] == pytest.approx(
            np.linalg.cond(E.weight.flatten(1).numpy()), rel=1e-3
        )
        # 48 pixels, 60 directions
        assert inversion.reach(rand(4, 60), embedding(60, 4))["condition"] is None


class TestBounded:
    @settings(max_examples=40)
    @given(
        width=st.integers(1, 20),
        seed=st.integers(0, 1000),
        scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]),
        decay=st.sampled_from([0.0, 2.0]),
        steps=st.sampled_from([1, 5, 40, 200]),
    )
    def test_no_token_is_worse_than_by_the_clipped_pseudo_inverse(
        self, width, seed, scale, decay, steps
    ):
        E = embedding(width, 2, seed, decay)
        tokens = scale * (rand(3, 4, width, seed=seed) - 0.5)
        patches = inversion.bounded(tokens, E, steps=steps)
        assert patches.shape == (3, 4, 3, 2, 2)
        assert patches.min() >= 0
        assert patches.max() <= 1
        start = residual(inversion.pseudo_inverse(tokens, E), tokens, E)
        assert (residual(patches, tokens, E) <= start * (1 + 1e-4) + 1e-7).all()

    def test_recovers_tokens_of_real_patches(self):
        E = embedding(24, 8)
        tokens = E(rand(8, 3, 8, 8).round())  # black-and-white patches: the corners of the gamut
        # clipping wrecks them
        assert residual(inversion.pseudo_inverse(tokens, E), tokens, E).mean() > 0.1
        assert residual(inversion.bounded(tokens, E), tokens, E).max() < 1e-3

    @pytest.mark.parametrize(("width", "patch"), [(8, 2), (12, 2), (16, 2), (24, 4)])
    @pytest.mark.parametrize("scale", [0.5, 4.0])
    def test_reaches_the_optimum_of_an_independent_solver(self, width, patch, scale):
        optimize = pytest.importorskip("scipy.optimize")
        E = embedding(width, patch)
        tokens = scale * torch.randn(3, width, generator=torch.Generator().manual_seed(3))
        lo, hi = (x.double().numpy() for x in inversion.gamut(E))
        found = residual(inversion.bounded(tokens, E, steps=2000), tokens, E).tolist()
        for token, error in zip(tokens, found, strict=True):
            target = (token - E.bias).double().numpy()
            solved = optimize.lsq_linear(
                E.weight.flatten(1).double().numpy(), target, (lo, hi), tol=1e-12
            )
            assert error == pytest.approx(2 * solved.cost, rel=1e-3, abs=1e-4)

    def test_two_hundred_steps_are_nearly_enough(self):
        E = embedding(24, 4)
        tokens = 2 * torch.randn(4, 24, generator=torch.Generator().manual_seed(3))
        short, long = (
            residual(inversion.bounded(tokens, E, steps=n), tokens, E) for n in (200, 5000)
        )
        torch.testing.assert_close(short, long, rtol=1e-2, atol=1e-3)


class TestGamut:
    def test_is_the_normalised_black_and_white(self):
        lo, hi = inversion.gamut(embedding(3, 2))
        expected = [
            [(value - m) / s for m, s in zip(MEAN, STD, strict=True) for _ in range(4)]
            for value in (0, 1)
        ]
        np.testing.assert_allclose(torch.stack([lo, hi]), expected, rtol=1e-6)


class TestRoute:
    def test_names_lead_to_their_functions(self):
        assert inversion.route("bounded") is inversion.bounded
        assert inversion.route("pseudo_inverse") is inversion.pseudo_inverse

    def test_an_unknown_name_is_told_the_known_ones(self):
        with pytest.raises(ConfigurationError, match=r"'exact'.*bounded, pseudo_inverse"):
            inversion.route("exact")
