import math
import sys
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgn_client.errors import ConfigurationError, MissingDependencyError, ShapeError
from pgn_client.evaluation.statistics import (
    accuracy_interval,
    discordant,
    mcnemar,
    paired_bootstrap,
    pooled_bootstrap,
)
from pgn_client.mapping.fusion import (
    ALPHAS,
    GatePoint,
    best_fusion,
    best_gate,
    fuse,
    gate,
    gate_curve,
)

DISCORDANT = list(combinations_with_replacement((0, 1, 7, 40, 101, 500, 1450, 1550, 3000), 2))
"""How many images only one of two methods gets right, from none to thousands."""


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
            assert abs(accuracy - end) == pytest.approx(
                1.959963984540054 * math.sqrt(end * (1 - end) / 30)
            )

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
        assert (low, high) == (
            pytest.approx(0.1 - half, abs=2e-3),
            pytest.approx(0.1 + half, abs=2e-3),
        )

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
        assert (flipped_low, flipped_high) == (
            pytest.approx(-high, abs=0.02),
            pytest.approx(-low, abs=0.02),
        )

    def test_the_same_seed_gives_the_same_interval(self):
        a, b = pair(30, 10, 60)
        assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)

    def test_different_images_are_refused(self):
        with pytest.raises(ShapeError, match="same images"):
            paired_bootstrap(np.ones(3, bool), np.ones(4, bool), seed=0)

    def test_no_resamples_are_refused(self):
        with pytest.raises(ConfigurationError, match="resamples"):
            paired_bootstrap(np.ones(3, bool), np.ones(3, bool), seed=0, resamples=0)


class TestPooledBootstrap:
    def test_one_run_is_the_paired_bootstrap(self):
        a, b = pair(30, 12, 50, 8)
        row = a.astype(int) - b.astype(int)
        assert pooled_bootstrap([row], seed=3) == pytest.approx(
            paired_bootstrap(a, b, seed=3), abs=0.011
        )

    def test_seeds_are_averaged_image_by_image(self):
        # Four images, two seeds that agree on all: as sure as one seed, not surer.
        row = np.repeat([1, -1, 0], 40)
        assert pooled_bootstrap([(row + row) / 2], seed=0) == pooled_bootstrap([row], seed=0)

    def test_every_run_counts_the_same_whatever_its_size(self):
        mean, _, _ = pooled_bootstrap(
            [np.array([1]), np.zeros(99, int), -np.ones(4, int), np.ones(2, int)], seed=0
        )
        assert mean == (1 + 0 - 1 + 1) / 4

    def test_interval_has_the_analytic_width(self):
        # Variances of one difference: 0.5 - 0.1² and 0.2; of the mean of the runs: (0.49/1000 +
        # 0.2/4000) / 4.
        first = np.repeat([1, -1, 0], [300, 200, 500])
        second = np.repeat([1, -1, 0], [400, 400, 3200])
        mean, low, high = pooled_bootstrap([first, second], seed=0)
        half = 1.96 * math.sqrt((0.49 / 1000 + 0.2 / 4000) / 4)
        assert mean == pytest.approx(0.05)
        assert (low, high) == (
            pytest.approx(0.05 - half, abs=2e-3),
            pytest.approx(0.05 + half, abs=2e-3),
        )

    def test_runs_are_drawn_independently(self):
        # Drawn together, two opposite runs would always cancel.
        row = np.repeat([1, -1], 50)
        _, low, high = pooled_bootstrap([row, -row], seed=0)
        assert high - low == pytest.approx(2 * 1.96 * math.sqrt(1 / 200), abs=0.03)

    def test_about_95_percent_of_the_intervals_hold_the_true_mean(self):
        rng = np.random.default_rng(0)
        runs = [(100, [0.1, 0.2, 0.7]), (200, [0.3, 0.1, 0.6]), (400, [0.05, 0.05, 0.9])]
        truth = (-0.1 + 0.2 + 0.0) / 3
        held = 0
        for trial in range(400):
            rows = [rng.choice([1, -1, 0], size=n, p=shares) for n, shares in runs]
            _, low, high = pooled_bootstrap(rows, seed=trial, resamples=500)
            held += low <= truth <= high
        assert held / 400 == pytest.approx(0.95, abs=0.033)  # three standard errors

    def test_no_runs_are_refused(self):
        with pytest.raises(ShapeError, match="no runs"):
            pooled_bootstrap([], seed=0)

    def test_an_empty_run_is_refused(self):
        with pytest.raises(ShapeError, match="n >= 1"):
            pooled_bootstrap([np.zeros(3, int), np.zeros(0, int)], seed=0)

    def test_another_difference_is_refused(self):
        with pytest.raises(ConfigurationError, match="outside"):
            pooled_bootstrap([np.array([0, 2])], seed=0)

    def test_no_resamples_are_refused(self):
        with pytest.raises(ConfigurationError, match="resamples"):
            pooled_bootstrap([np.zeros(3, int)], seed=0, resamples=0)


class TestMcNemar:
    @pytest.mark.parametrize(
        ("only_a", "only_b", "p"),
        [
            (0, 0, 1.0),
            (3, 3, 1.0),
            (0, 5, 2 / 32),
            (3, 10, 2 * (1 + 13 + 78 + 286) / 8192),
            (1, 9, 2 * (1 + 10) / 1024),
            (9, 1, 2 * (1 + 10) / 1024),
            (2, 8, 2 * (1 + 10 + 45) / 1024),
        ],
    )
    def test_small_counts_equal_the_binomial_sum(self, only_a, only_b, p):
        assert mcnemar(*pair(only_a, only_b, 5, 5)) == pytest.approx(p)

    def test_the_counts_are_of_images_that_only_one_gets_right(self):
        assert discordant(*pair(3, 10, 5, 7)) == (3, 10)

    def test_rows_of_different_images_are_refused(self):
        with pytest.raises(ShapeError, match="the same images"):
            discordant(np.ones(3, bool), np.ones(4, bool))

    @pytest.mark.parametrize(("only_a", "only_b"), DISCORDANT)
    def test_all_counts_equal_the_exact_integer_sum(self, only_a, only_b):
        m = only_a + only_b
        tail = sum(math.comb(m, k) for k in range(min(only_a, only_b) + 1))
        exact = min(1.0, 2 * tail / 2**m)  # Python divides big integers exactly
        assert mcnemar(*pair(only_a, only_b, 1)) == pytest.approx(exact, rel=1e-12, abs=1e-300)

    @pytest.mark.parametrize(("only_a", "only_b"), DISCORDANT)
    def test_all_counts_equal_the_sum_by_logarithms(self, only_a, only_b):
        """The formula of version 0.1; on thousands of images its logarithms lose up to 1e-11."""
        m = only_a + only_b
        logs = (
            math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) - m * math.log(2)
            for k in range(min(only_a, only_b) + 1)
        )
        by_logs = min(1.0, 2 * math.fsum(map(math.exp, logs)))
        tolerance = 1e-12 if m <= 1000 else 1e-11
        assert mcnemar(*pair(only_a, only_b, 1)) == pytest.approx(
            by_logs, rel=tolerance, abs=1e-300
        )

    def test_without_scipy_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy.stats", None)
        with pytest.raises(MissingDependencyError, match=r"McNemar's test.*\[train\]"):
            mcnemar(*pair(3, 1))

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
        np.testing.assert_allclose(
            np.exp(fuse(self.endpoint, self.local, 0.5)), mean / mean.sum(axis=1, keepdims=True)
        )

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

    def test_the_lowest_log_loss_decides_not_the_accuracy(self):
        # alpha = 1 alone is right on both images, but by a hair; alpha = 0 is right on one, with
        # certainty.
        endpoint = np.log([[0.999, 0.001], [0.51, 0.49]])
        local = np.log([[0.51, 0.49], [0.49, 0.51]])
        alpha = best_fusion(endpoint, local, np.array([0, 1]))
        assert alpha < 0.5  # where the second image is wrong
        losses = {a: -fuse(endpoint, local, a)[[0, 1], [0, 1]].mean() for a in ALPHAS}
        assert losses[alpha] == min(losses.values())

    def test_equal_sides_keep_the_endpoint(self):
        assert best_fusion(self.endpoint, self.endpoint.copy(), np.array([0, 1])) == 0.0

    def test_labels_of_another_length_are_refused(self):
        with pytest.raises(ShapeError, match="labels"):
            best_fusion(self.endpoint, self.local, np.array([0]))


def answers(confidences, right):
    """Return log-probabilities over two classes: the true one is 0, named with this confidence
    where right.
    """
    p = np.asarray(confidences, float)
    return np.log(
        np.where(np.asarray(right, bool)[:, None], np.stack([p, 1 - p], 1), np.stack([1 - p, p], 1))
    )


def zeros(n):
    return np.zeros(n, np.int64)


class TestGate:
    # The client's own comparison: not sent where exp(max log p) >= query_below.
    local = answers([0.9, 0.75, 0.6], [True, True, False])
    served = answers([0.8, 0.8, 0.8], [True, False, True])

    def test_the_sure_are_answered_locally_and_the_rest_is_served(self):
        gated = gate(self.served, self.local, 0.7)
        np.testing.assert_array_equal(gated, [self.local[0], self.local[1], self.served[2]])

    def test_a_confidence_equal_to_the_threshold_is_not_sent(self):
        threshold = math.exp(self.local[1].max())
        np.testing.assert_array_equal(gate(self.served, self.local, threshold)[1], self.local[1])
        np.testing.assert_array_equal(
            gate(self.served, self.local, math.nextafter(threshold, 1))[1], self.served[1]
        )

    def test_zero_sends_nothing(self):
        np.testing.assert_array_equal(gate(self.served, self.local, 0), self.local)

    def test_none_sends_even_the_certain(self):
        with np.errstate(divide="ignore"):
            certain = np.log([[1.0, 0.0]])
        np.testing.assert_array_equal(gate(self.served[:1], certain, None), self.served[:1])

    def test_one_still_answers_the_certain_locally(self):
        with np.errstate(divide="ignore"):
            certain = np.log([[1.0, 0.0]])
        np.testing.assert_array_equal(gate(self.served[:1], certain, 1), certain)

    def test_the_scores_passed_in_are_not_handed_out(self):
        assert not np.shares_memory(gate(self.served, self.local, None), self.served)

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
    def test_a_threshold_outside_its_range_is_refused(self, threshold):
        with pytest.raises(ConfigurationError, match="query_below"):
            gate(self.served, self.local, threshold)

    def test_shapes_that_differ_are_refused(self):
        with pytest.raises(ShapeError, match="gate"):
            gate(self.served, self.local[:1], None)

    def test_the_curve_counts_what_is_sent_and_what_is_right(self):
        # Local is right on the first two, served on the first and the last.
        assert gate_curve(self.served, self.local, zeros(3), [1.0, 0.8, 0.7, 0.0]) == [
            GatePoint(1.0, 1.0, 2 / 3),
            GatePoint(0.8, 2 / 3, 2 / 3),
            GatePoint(0.7, 1 / 3, 1.0),
            GatePoint(0.0, 0.0, 2 / 3),
        ]

    def test_the_curve_refuses_a_threshold_outside_its_range(self):
        with pytest.raises(ConfigurationError, match="query_below"):
            gate_curve(self.served, self.local, zeros(3), [0.5, 1.5])

    @pytest.mark.parametrize("labels", [zeros(2), zeros(0)])
    def test_the_curve_refuses_labels_of_another_length(self, labels):
        with pytest.raises(ShapeError, match="labels"):
            gate_curve(self.served, self.local, labels, [0.5])


class TestBestGate:
    """Served gives each true class 0.9 here; a local head that is right and surer than that is the
    better one.
    """

    def served(self, n):
        return answers([0.9] * n, [True] * n)

    def test_it_sends_no_more_than_keeps_the_log_loss(self):
        local = answers([0.6, 0.95, 0.7, 0.92], [False, True, False, True])
        assert best_gate(self.served(4), local, zeros(4)) == math.exp(local[3].max())

    def test_a_local_head_that_is_as_good_sends_nothing(self):
        assert best_gate(self.served(3), self.served(3), zeros(3)) == 0.0

    def test_a_loss_among_the_sure_may_be_made_up_by_the_less_sure(self):
        # Kept alone, the surest loses log(0.9 / 0.89); the next three gain log(0.91 / 0.9) each.
        # The last loses more.
        local = answers([0.97, 0.96, 0.96, 0.55], [True, True, True, False])
        local[0] = np.log([0.89, 0.11])
        local[0, 1] = math.log(
            0.97
        )  # it is sure of another class, but gives the true one 0.89 (not normalised)
        assert best_gate(self.served(4), local, zeros(4)) == math.exp(local[1].max())

    def test_a_local_head_that_only_loses_sends_everything(self):
        assert best_gate(self.served(3), answers([0.9, 0.8, 0.7], [False] * 3), zeros(3)) is None

    def test_right_but_less_sure_is_a_loss_too(self):
        assert best_gate(self.served(2), answers([0.8, 0.7], [True, True]), zeros(2)) is None

    def test_images_of_one_confidence_go_the_same_way(self):
        # One of the two is answered better locally, but no threshold tells them apart.
        assert best_gate(self.served(2), answers([0.95, 0.95], [True, False]), zeros(2)) is None

    def test_certain_images_that_are_wrong_make_no_threshold_above_one(self):
        with np.errstate(divide="ignore"):
            local = np.log([[0.0, 1.0], [0.6, 0.4]])
        assert best_gate(self.served(2), local, zeros(2)) is None

    def test_a_probability_rounded_above_one_counts_as_one(self):
        # exp(4e-16) > 1. Local is better only where it is certain.
        local = np.array([[4e-16, -40.0], [-0.9, -0.5]])
        assert best_gate(self.served(2), local, zeros(2)) == 1.0

    @given(
        st.lists(
            st.tuples(st.sampled_from([0.5, 0.6, 0.8, 0.95, 0.99]), st.booleans(), st.booleans()),
            min_size=1,
        ),
    )
    def test_it_agrees_with_trying_every_threshold(self, images):
        confidences, local_right, served_right = zip(*images, strict=True)
        local, served = (
            answers(confidences, local_right),
            answers([0.9] * len(images), served_right),
        )
        labels = zeros(len(images))

        def score(threshold):
            return gate(served, local, threshold)[:, 0].sum()

        # The lowest threshold sends the fewest.
        tries = [0.0, *sorted({math.exp(row.max()) for row in local})]
        expected = next(
            (threshold for threshold in tries if score(threshold) >= score(None) - 1e-9), None
        )
        assert best_gate(served, local, labels) == expected

    @given(
        st.lists(st.tuples(st.floats(0.5, 1.0), st.booleans(), st.booleans()), min_size=1),
        st.lists(st.floats(0, 1)),
    )
    def test_the_curve_agrees_with_the_gate(self, images, thresholds):
        confidences, local_right, served_right = zip(*images, strict=True)
        with np.errstate(divide="ignore"):
            local = answers(confidences, local_right)
        served = answers([0.9] * len(images), served_right)
        labels, n = zeros(len(images)), len(images)
        for point in gate_curve(served, local, labels, thresholds):
            gated = gate(served, local, point.query_below)
            sent = sum(math.exp(row.max()) < point.query_below for row in local)
            assert point == GatePoint(
                point.query_below, sent / n, int((gated.argmax(axis=1) == labels).sum()) / n
            )

    @pytest.mark.parametrize("labels", [zeros(2), zeros(0)])
    def test_labels_of_another_length_are_refused(self, labels):
        with pytest.raises(ShapeError, match="labels"):
            best_gate(TestGate.served, TestGate.local, labels)
