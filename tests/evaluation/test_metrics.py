import numpy as np
import pytest

from pgn_client.errors import ShapeError
from pgn_client.evaluation.metrics import (
    Bin,
    ClassScore,
    by_class,
    calibration_error,
    confusion,
    reliability,
)


def answers(confidences, answered):
    """Log-probabilities over three classes: this confidence in this class, the rest shared by the
    other two.
    """
    p = np.asarray(confidences, float)[:, None]
    return np.log(np.where(np.eye(3, dtype=bool)[answered], p, (1 - p) / 2))


class TestCalibration:
    def test_as_often_right_as_sure_is_zero(self):
        log_p = answers([0.8] * 5 + [0.5] * 4, [0] * 9)
        labels = np.array([0, 0, 0, 0, 1, 0, 0, 1, 2])
        assert calibration_error(reliability(log_p, labels)) == pytest.approx(0, abs=1e-12)

    def test_certain_and_right_is_zero(self):
        with np.errstate(divide="ignore"):
            certain = np.log(np.eye(3)[[0, 1, 2]])
        assert reliability(certain, np.array([0, 1, 2])) == [Bin(3, 1.0, 1.0)]
        assert calibration_error(reliability(certain, np.array([0, 1, 2]))) == 0

    def test_certain_and_wrong_is_one(self):
        with np.errstate(divide="ignore"):
            certain = np.log(np.eye(3)[[0, 1, 2]])
        assert calibration_error(reliability(certain, np.array([1, 2, 0]))) == 1

    def test_a_case_by_hand(self):
        # Bins of 1/15: 0.62 and 0.65 share ((9/15, 10/15]) and are both right; 0.95 is in the last,
        # one of two right.
        log_p = answers([0.62, 0.65, 0.95, 0.95], [0, 1, 2, 2])
        low, high = bins = reliability(log_p, np.array([0, 1, 2, 0]))
        assert (low.count, low.confidence, low.accuracy) == (2, pytest.approx(0.635), 1.0)
        assert (high.count, high.confidence, high.accuracy) == (2, pytest.approx(0.95), 0.5)
        assert calibration_error(bins) == pytest.approx((2 * 0.365 + 2 * 0.45) / 4)

    def test_too_sure_and_not_sure_enough_cancel_within_a_bin_but_not_across(self):
        mixed = reliability(answers([0.95, 0.95], [0, 0]), np.array([0, 1]))
        apart = reliability(answers([0.5, 0.95], [0, 0]), np.array([0, 1]))
        assert calibration_error(mixed) == pytest.approx(0.45)
        assert calibration_error(apart) == pytest.approx((0.5 + 0.95) / 2)

    def test_an_edge_belongs_to_the_bin_below_it(self):
        log_p = answers([9 / 15, 9.5 / 15], [0, 0])
        assert np.exp(log_p[0, 0]) == 9 / 15
        assert [b.count for b in reliability(log_p, np.array([0, 0]))] == [1, 1]

    def test_bins_go_from_the_least_sure_and_hold_every_image_once(self):
        bins = reliability(
            answers(np.linspace(0.34, 1 - 1e-9, 50), np.zeros(50, int)), np.zeros(50, np.int64)
        )
        assert sum(b.count for b in bins) == 50
        assert [b.confidence for b in bins] == sorted(b.confidence for b in bins)
        assert len(bins) == 10  # from 5/15 on

    def test_a_probability_a_hair_above_one_is_one(self):
        log_p = np.array([[1e-16, -40.0]])
        assert reliability(log_p, np.array([0])) == [Bin(1, 1.0, 1.0)]

    @pytest.mark.parametrize("labels", [np.zeros(0, np.int64), np.zeros(3, np.int64)])
    def test_labels_of_another_length_or_none_are_refused(self, labels):
        with pytest.raises(ShapeError, match="metrics"):
            reliability(np.zeros((len(labels) and 2, 3)), labels)


class TestByClass:
    # Of class a three: two so answered, one as b. Of b one, answered as a. Of c none, and none so
    # answered.
    labels = np.array([0, 0, 0, 1])
    log_p = answers([0.9] * 4, [0, 0, 1, 0])

    def test_rows_are_what_is_true_and_columns_what_is_answered(self):
        assert confusion(self.log_p, self.labels).tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]

    def test_scores_by_hand(self):
        a, b, c = by_class(confusion(self.log_p, self.labels), ["a", "b", "c"])
        assert a == ClassScore("a", 3, 2 / 3, 2 / 3, 2 / 3)
        assert b == ClassScore("b", 1, 0.0, 0.0, 0.0)
        assert c == ClassScore("c", 0, None, None, None)

    def test_a_class_that_is_never_answered_has_no_precision_but_an_f1_of_zero(self):
        (_, b) = by_class(np.array([[2, 0], [1, 0]]), ["a", "b"])
        assert b == ClassScore("b", 1, None, 0.0, 0.0)

    def test_f1_is_the_harmonic_mean(self):
        a, _ = by_class(np.array([[3, 1], [6, 0]]), ["a", "b"])
        assert (a.precision, a.recall) == (pytest.approx(1 / 3), 0.75)
        assert a.f1 == pytest.approx(2 / (3 + 4 / 3))

    def test_labels_of_another_length_are_refused(self):
        with pytest.raises(ShapeError, match="metrics"):
            confusion(np.zeros((2, 3)), np.zeros(3, np.int64))
