import sys

import numpy as np
import pytest

from pgn_client.errors import MissingDependencyError
from pgn_client.mapping.frequency import blm, blm_plus, one_to_one
from pgn_client.mapping.label_mapping import log_scores
from pgn_client.types import Answer


class TestBayesianMapping:
    def test_weights_equal_the_hand_computed_ones(self):
        # Three source labels, two classes, top-1: N+ = [[0.8 + 0.6, 0], [0, 0.9], [0, 0.5]].
        p = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.05, 0.9, 0.05], [0.2, 0.3, 0.5]])
        weight = blm_plus(p, np.array([0, 0, 1, 1]), 2)
        # P(t|s) = 1.4/2.4, 0.9/1.9, 0.5/1.5; columns are then normalised over s.
        q1, q2 = 0.9 / 1.9, 0.5 / 1.5
        np.testing.assert_allclose(weight, [[1, 0], [0, q1 / (q1 + q2)], [0, q2 / (q1 + q2)]])

    def test_a_source_label_shared_by_two_classes_is_split_by_its_posterior(self):
        weight = blm_plus(
            np.array([[0.75, 0.25], [0.625, 0.375], [0.0, 1.0]]), np.array([0, 1, 1]), 2
        )
        # N+ = [[0.75, 0.625], [0, 1]]; P = [[0.75/2.375, 0.625/2.375], [0, 1/2]].
        a, b = 0.625 / 2.375, 0.5
        np.testing.assert_allclose(weight, [[1, a / (a + b)], [0, b / (a + b)]])

    @pytest.mark.parametrize(
        ("C", "k"), [(2, 1), (6, 1), (7, 1), (13, 1), (14, 2), (20, 3), (100, 15)]
    )
    def test_k_is_fifteen_percent_of_the_classes_and_at_least_one(self, C, k):
        p = np.arange(40, 0, -1.0)[None] / 820
        assert int((blm_plus(p, np.array([0]), C)[:, 0] > 0).sum()) == k

    def test_labels_that_were_not_returned_carry_no_weight(self):
        # C = 20 means top-3, but the answer returned one label; the other 9 tie.
        features = log_scores([Answer(("s0",), (0.55,))], tuple(f"s{i}" for i in range(10)))
        weight = blm_plus(np.exp(features), np.array([4]), 20)
        np.testing.assert_array_equal(weight[:, 4], np.eye(10)[0])

    def test_a_class_without_examples_gets_a_flat_column_of_its_prior(self):
        weight = blm_plus(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 0]), 2)
        np.testing.assert_allclose(weight[:, 1], 2 / (2 + 2) / 2)  # C·1/(n + C), spread over S = 2
        np.testing.assert_allclose(weight[:, 0], [1, 0])


class TestBLM:
    def test_weights_equal_the_hand_computed_ones(self):
        # N = [[1, 1], [0, 1]]: the likeliest label counts, whatever its probability.
        weight = blm(np.array([[0.75, 0.25], [0.625, 0.375], [0.0, 1.0]]), np.array([0, 1, 1]), 2)
        a, b = 1 / 3, 1 / 2
        np.testing.assert_allclose(weight, [[1, a / (a + b)], [0, b / (a + b)]])

    def test_at_few_classes_blm_plus_is_its_soft_form(self):
        p = np.random.default_rng(0).dirichlet(np.ones(5), size=50)
        hard = np.eye(5)[p.argmax(axis=1)]
        labels = np.arange(50) % 3
        np.testing.assert_allclose(blm(p, labels, 3), blm_plus(hard, labels, 3))


class TestOneToOne:
    def test_the_assignment_is_the_best_and_not_the_greedy_one(self):
        # Counts [[3, 2], [2, 0]]: the greedy way takes (s0, t0) first and gets 3; the best way gets
        # 2 + 2.
        rows, labels = [], []
        for s, t, times in ((0, 0, 3), (0, 1, 2), (1, 0, 2)):
            rows += [np.eye(2)[s]] * times
            labels += [t] * times
        np.testing.assert_array_equal(
            one_to_one(np.array(rows), np.array(labels), 2), [[0, 1], [1, 0]]
        )

    def test_no_source_label_serves_two_classes(self):
        p = np.random.default_rng(0).dirichlet(np.ones(12), size=60)
        weight = one_to_one(p, np.arange(60) % 7, 7)
        assert weight.sum(axis=0).tolist() == [1] * 7
        assert weight.sum(axis=1).max() == 1

    def test_where_counts_tie_the_mean_probability_decides(self):
        # both classes' likeliest label is the first
        p = np.array([[0.6, 0.3, 0.1], [0.6, 0.1, 0.3]])
        assert one_to_one(p, np.array([0, 1]), 2).argmax(axis=0).tolist() in ([0, 2], [1, 0])
        assert one_to_one(np.array([[0.9, 0.1, 0.0], [0.5, 0.1, 0.4]]), np.array([0, 1]), 2).argmax(
            axis=0
        ).tolist() == [0, 2]

    def test_classes_that_are_left_over_keep_a_small_prior(self):
        weight = one_to_one(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 2]), 3)
        left = [t for t in range(3) if weight[:, t].max() < 1]
        assert len(left) == 1
        np.testing.assert_allclose(weight[:, left[0]], 3 / (3 + 3) / 2)

    def test_a_class_without_examples_takes_no_label_for_itself(self):
        weight = one_to_one(np.eye(4)[[0, 1, 1]], np.array([0, 1, 1]), 3)
        np.testing.assert_allclose(weight[:, 2], 3 / (3 + 3) / 4)
        assert weight[:, :2].argmax(axis=0).tolist() == [0, 1]

    def test_without_scipy_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "scipy.optimize", None)
        with pytest.raises(MissingDependencyError, match=r"one-to-one label mapping.*\[train\]"):
            one_to_one(np.eye(2), np.array([0, 1]), 2)
