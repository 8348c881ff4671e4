import math

import numpy as np
import pytest

from pgn_client.errors import ConfigurationError, ShapeError
from pgn_client.statistics import accuracy_interval, best_fusion, fuse, mcnemar, paired_bootstrap


def pair(only_a, only_b, both=0, neither=0):
    a = np.array([True] * only_a + [False] * only_b + [True] * both + [False] * neither)
    b = np.array([False] * only_a + [True] * only_b + [True] * both + [False] * neither)
    return a, b


class TestAccuracyInterval:
    def test_half_of_a_hundred_has_the_textbook_wilson_interval(self):
        # centre 1/2; half width z·sqrt(1/400 + z²/40000) / (1 + z²/100) = 0.09617.
        accuracy, low, high = accuracy_interval(np.arange(100) % 2 == 0)
        assert accuracy == 0.5
        assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))

    def test_none_of_ten_reaches_up_to_z_squared_over_n_plus_z_squared(self):
        z2 = 1.959963984540054**2
        assert accuracy_interval(np.zeros(10, bool)) == (0.0, 0.0, pytest.approx(z2 / (10 + z2)))

    @pytest.mark.parametrize("n", [1, 7, 10, 1000])
    def test_all_correct_ends_at_one(self, n):
        accuracy, low, high = accuracy_interval(np.ones(n, bool))
        assert (accuracy, high) == (1.0, 1.0)
        assert 0 < low < 1

    def test_ends_satisfy_the_score_equation(self):
        accuracy, *ends = accuracy_interval(np.arange(30) < 7)
        for end in ends:
            assert abs(accuracy - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 30))

    def test_an_empty_row_is_refused(self):
        with pytest.raises(ShapeError, match="n >= 1"):
            accuracy_interval(np.zeros(0, bool))


class TestPairedBootstrap:
    def test_interval_has_the_analytic_width(self):
        # Variance of one difference: (b + c)/n - ((b - c)/n)² = 0.3 - 0.01.
        a, b = pair(400, 200, 800, 600)
        difference, low, high = paired_bootstrap(a, b, seed=0)
        half = 1.96 * math.sqrt((0.3 - 0.1**2) / 2000)
        assert difference == pytest.approx(0.1)
        assert (low, high) == (pytest.approx(0.1 - half, abs=2e-3), pytest.approx(0.1 + half, abs=2e-3))

    def test_it_agrees_with_drawing_the_images_one_by_one(self):
        a, b = pair(9, 4, 20, 7)
        rng = np.random.default_rng(1)
        images = rng.integers(0, 40, size=(10_000, 40))
        expected = np.quantile((a[images].mean(axis=1) - b[images].mean(axis=1)), [0.025, 0.975])
        _, low, high = paired_bootstrap(a, b, seed=0)
        np.testing.assert_allclose([low, high], expected, atol=0.026)  # one image

    def test_methods_that_never_differ_have_a_point_interval(self):
        assert paired_bootstrap(*pair(0, 0, 3, 4), seed=0) == (0.0, 0.0, 0.0)

    def test_swapping_the_methods_flips_the_sign(self):
        a, b = pair(30, 10, 60)
        difference, low, high = paired_bootstrap(a, b, seed=0)
        flipped, flipped_low, flipped_high = paired_bootstrap(b, a, seed=0)
        assert flipped == -difference
        assert (flipped_low, flipped_high) == (pytest.approx(-high, abs=0.02), pytest.approx(-low, abs=0.02))

    def test_the_same_seed_gives_the_same_interval(self):
        a, b = pair(30, 10, 60)
        assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)

    def test_different_images_are_refused(self):
        with pytest.raises(ShapeError, match="same images"):
            paired_bootstrap(np.ones(3, bool), np.ones(4, bool), seed=0)

    def test_no_resamples_are_refused(self):
        with pytest.raises(ConfigurationError, match="resamples"):
            paired_bootstrap(np.ones(3, bool), np.ones(3, bool), seed=0, resamples=0)


class TestMcNemar:
    @pytest.mark.parametrize(
        ("only_a", "only_b", "p"),
        [
            (0, 0, 1.0),
            (3, 3, 1.0),
            (0, 5, 2 / 32),
            (1, 9, 2 * (1 + 10) / 1024),
            (9, 1, 2 * (1 + 10) / 1024),
            (2, 8, 2 * (1 + 10 + 45) / 1024),
        ],
    )
    def test_small_counts_equal_the_binomial_sum(self, only_a, only_b, p):
        assert mcnemar(*pair(only_a, only_b, 5, 5)) == pytest.approx(p)

    def test_large_counts_equal_the_exact_integer_sum(self):
        exact = 2 * sum(math.comb(3000, k) for k in range(1451)) / 2**3000  # Python divides big integers exactly
        assert mcnemar(*pair(1450, 1550)) == pytest.approx(exact, rel=1e-9)

    def test_a_hopeless_case_is_zero_and_no_error(self):
        assert mcnemar(*pair(5000, 0)) == 0.0


class TestFusion:
    endpoint = np.log([[0.8, 0.2], [0.4, 0.6]])
    local = np.log([[0.5, 0.5], [0.9, 0.1]])

    def test_ends_are_the_two_sides(self):
        np.testing.assert_allclose(fuse(self.endpoint, self.local, 0), self.endpoint)
        np.testing.assert_allclose(fuse(self.endpoint, self.local, 1), self.local)

    def test_the_middle_is_the_normalised_geometric_mean(self):
        mean = np.sqrt(np.exp(self.endpoint + self.local))
        np.testing.assert_allclose(np.exp(fuse(self.endpoint, self.local, 0.5)), mean / mean.sum(axis=1, keepdims=True))

    def test_impossible_classes_of_the_other_side_do_not_matter_at_the_ends(self):
        with np.errstate(divide="ignore"):
            certain = np.log([[1.0, 0.0]])
        np.testing.assert_allclose(fuse(self.endpoint[:1], certain, 0), self.endpoint[:1])

    @pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
    def test_alpha_outside_its_range_is_refused(self, alpha):
        with pytest.raises(ConfigurationError, match="alpha"):
            fuse(self.endpoint, self.local, alpha)

    def test_shapes_that_differ_are_refused(self):
        with pytest.raises(ShapeError, match="fusion"):
            fuse(self.endpoint, self.local[:1], 0.5)

    def test_the_side_that_is_right_gets_all_the_weight_it_needs(self):
        right, wrong = np.log([[0.9, 0.1]]), np.log([[0.1, 0.9]])
        labels = np.array([0])
        # Right from alpha = 0.55 on; log-loss is lowest at 1.
        assert best_fusion(wrong, right, labels) == 1.0
        assert best_fusion(right, wrong, labels) == 0.0

    def test_accuracy_comes_before_log_loss(self):
        # alpha = 1 alone is right on both images, but by a hair; alpha = 0 is right on one, with certainty.
        endpoint = np.log([[0.999, 0.001], [0.51, 0.49]])
        local = np.log([[0.51, 0.49], [0.49, 0.51]])
        labels = np.array([0, 1])
        alpha = best_fusion(endpoint, local, labels)
        # Right on the second image needs (1 - alpha)·log(51/49) < alpha·log(51/49): alpha > 1/2, then as low as can be.
        assert alpha == 0.55

    def test_equal_sides_keep_the_endpoint(self):
        assert best_fusion(self.endpoint, self.endpoint.copy(), np.array([0, 1])) == 0.0

    def test_labels_of_another_length_are_refused(self):
        with pytest.raises(ShapeError, match="labels"):
            best_fusion(self.endpoint, self.local, np.array([0]))
