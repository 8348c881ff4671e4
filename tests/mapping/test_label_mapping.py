import json
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgn_client.errors import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    ShapeError,
)
from pgn_client.mapping.label_mapping import KINDS, LabelMapping, fit, log_scores, vocabulary
from pgn_client.mapping.logistic_regression import (
    _Rotated,
    logistic_regression,
    logistic_regression_cv,
)
from pgn_client.mapping.probability import FLOOR
from pgn_client.types import Answer


def probabilities(answer, source):
    return np.exp(log_scores([answer], source))[0]


def gaussian_task(n, d, C, *, seed=0, spread=1.0):
    """Features (n, d) of C overlapping classes, and labels (n,)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    return rng.normal(size=(C, d))[y] * spread + rng.normal(size=(n, d)) * 2, y


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


class TestFeatures:
    def test_vocabulary_is_the_sorted_union(self):
        assert vocabulary([Answer(("b", "a"), (0.6, 0.4)), Answer(("c", "a"), (0.6, 0.4))]) == (
            "a",
            "b",
            "c",
        )

    def test_full_probabilities_come_back_in_the_order_of_the_source(self):
        np.testing.assert_allclose(
            probabilities(Answer(("b", "a"), (0.7, 0.3)), ("a", "b")), [0.3, 0.7]
        )

    def test_residual_mass_is_spread_evenly_over_missing_labels(self):
        np.testing.assert_allclose(
            probabilities(Answer(("a",), (0.7,)), ("a", "b", "c")), [0.7, 0.15, 0.15]
        )

    def test_no_missing_label_exceeds_a_returned_one(self):
        # r = 0.49 would go to c alone; the cap of 0.01 leaves (0.5, 0.01, 0.01) / 0.52.
        answer = Answer(("a", "b"), (0.5, 0.01))
        np.testing.assert_allclose(
            probabilities(answer, ("a", "b", "c")),
            [0.5 / 0.52, 0.01 / 0.52, 0.01 / 0.52],
            rtol=1e-6,
        )

    def test_hard_label_is_one_hot_with_the_floor(self):
        expected = np.array([FLOOR, 1.0, FLOOR]) / (1 + 2 * FLOOR)
        np.testing.assert_allclose(
            probabilities(Answer(("b",), (1.0,), "label"), ("a", "b", "c")), expected
        )

    def test_logits_and_their_softmax_give_the_same_row(self):
        logits = np.array([3.0, 1.0, -40.0])
        p = tuple(np.exp(logits) / np.exp(logits).sum())
        names = ("a", "b", "c")
        np.testing.assert_allclose(
            log_scores([Answer(names, tuple(logits), "logits")], names),
            log_scores([Answer(names, p)], names),
        )

    def test_missing_logits_get_the_floor(self):
        p = probabilities(Answer(("a", "b"), (1000.0, 1000.0), "logits"), ("a", "b", "c"))
        np.testing.assert_allclose(p, np.array([0.5, 0.5, FLOOR]) / (1 + FLOOR))

    def test_labels_returned_twice_are_summed(self):
        np.testing.assert_allclose(
            probabilities(Answer(("a", "b", "a"), (0.4, 0.4, 0.2)), ("a", "b")), [0.6, 0.4]
        )

    def test_unknown_labels_lose_their_mass(self):
        np.testing.assert_allclose(
            probabilities(Answer(("x", "a", "b"), (0.6, 0.3, 0.1)), ("a", "b")), [0.75, 0.25]
        )

    def test_answer_without_a_known_label_names_both_sides(self):
        with pytest.raises(ConfigurationError, match=r"'x'.*'a'"):
            log_scores([Answer(("x",), (1.0,), "label")], ("a", "b"))

    def test_answer_without_a_known_label_is_uniform_when_not_strict(self):
        rows = log_scores(
            [Answer(("x",), (1.0,), "label"), Answer(("x",), (0.2,))], ("a", "b"), strict=False
        )
        np.testing.assert_allclose(np.exp(rows), 0.5)

    @pytest.mark.parametrize("scores", [(float("nan"), 0.5), (float("inf"), 0.5), (0.5,)])
    def test_scores_that_are_no_numbers_are_refused(self, scores):
        with pytest.raises(ConfigurationError, match="finite number"):
            log_scores([Answer(("a", "b"), scores)], ("a", "b"))

    @settings(max_examples=50)
    @given(
        st.lists(st.floats(0, 1), min_size=1, max_size=6),
        st.sampled_from(["probabilities", "logits"]),
        st.integers(1, 9),
    )
    def test_rows_are_finite_and_sum_to_one(self, scores, kind, S):
        labels = tuple(f"s{i}" for i in range(len(scores)))
        row = log_scores([Answer(labels, tuple(scores), kind)], tuple(f"s{i}" for i in range(S)))
        assert np.isfinite(row).all()
        assert np.exp(row).sum() == pytest.approx(1)


class TestAdditiveMapping:
    def test_score_is_the_normalised_weighted_sum(self):
        mapping = LabelMapping(
            "blm+", ("a", "b"), ("x", "y"), np.array([[1.0, 0.2], [0.0, 0.8]]), np.zeros(2)
        )
        # f = (0.7, 0.7·0.2 + 0.3·0.8) = (0.7, 0.38)
        got = np.exp(mapping([Answer(("a", "b"), (0.7, 0.3))]))
        np.testing.assert_allclose(got, [[0.7 / 1.08, 0.38 / 1.08]])


class TestLogisticRegression:
    @pytest.mark.parametrize(("n", "d", "C"), [(120, 5, 3), (60, 200, 4)])
    @pytest.mark.parametrize("l2", [1.0, 1e-2])
    def test_agrees_with_scikit_learn(self, n, d, C, l2):
        linear_model = pytest.importorskip("sklearn.linear_model")
        X, y = gaussian_task(n, d, C)
        reference = linear_model.LogisticRegression(C=1 / (n * l2), tol=1e-10, max_iter=5000).fit(
            X, y
        )
        weight, bias = logistic_regression(X, y, C, l2)
        np.testing.assert_allclose(
            softmax(X @ weight + bias), reference.predict_proba(X), atol=1e-4
        )
        np.testing.assert_allclose(
            weight, reference.coef_.T, atol=1e-3 * abs(reference.coef_).max()
        )

    def test_gradient_agrees_with_finite_differences(self):
        X, y = gaussian_task(20, 4, 3)
        problem = _Rotated(X, y, 3, np.eye(4)[:, :3])
        function = problem.objective(0.3, np.linspace(0.5, 2, 5))
        at = np.random.default_rng(1).normal(size=15)
        steps = np.eye(15) * 1e-5
        numeric = [(function(at + h)[0] - function(at - h)[0]) / 2e-5 for h in steps]
        np.testing.assert_allclose(function(at)[1], numeric, atol=1e-8)

    def test_gradient_vanishes_at_the_solution_in_the_given_coordinates(self):
        X, y = gaussian_task(50, 80, 3)
        weight, bias = logistic_regression(X, y, 3, 0.1)
        residual = (softmax(X @ weight + bias) - np.eye(3)[y]) / len(y)
        np.testing.assert_allclose(X.T @ residual + 0.1 * weight, 0, atol=1e-5)
        np.testing.assert_allclose(residual.sum(axis=0), 0, atol=1e-6)

    def test_a_strong_penalty_leaves_the_offset(self):
        X, y = gaussian_task(40, 3, 3)
        weight, _ = logistic_regression(X, y, 3, 1e6, offset=np.eye(3))
        np.testing.assert_allclose(weight, np.eye(3), atol=1e-4)

    def test_the_penalty_is_the_distance_from_the_offset(self):
        X, y = gaussian_task(40, 3, 3)
        weight, bias = logistic_regression(X, y, 3, 0.1, offset=np.eye(3))
        residual = (softmax(X @ weight + bias) - np.eye(3)[y]) / len(y)
        np.testing.assert_allclose(X.T @ residual + 0.1 * (weight - np.eye(3)), 0, atol=1e-5)

    def test_a_start_at_the_solution_stays_there(self):
        X, y = gaussian_task(40, 60, 3)
        weight, bias = logistic_regression(X, y, 3, 0.1)
        again, bias_again = logistic_regression(X, y, 3, 0.1, start=(weight, bias))
        np.testing.assert_allclose(again, weight, atol=1e-12)
        np.testing.assert_allclose(bias_again, bias, atol=1e-9)

    @pytest.mark.parametrize("offset", [None, np.eye(3)])
    def test_an_absent_class_keeps_a_small_probability(self, offset):
        X, y = gaussian_task(40, 3, 2)
        weight, bias = logistic_regression(X, y, 3, 1.0, offset=offset)
        p = softmax(X @ weight + bias)[:, 2]
        assert np.isfinite(bias).all()
        assert 0.3 / 43 < np.exp(np.log(p).mean()) < 3 / 43

    def test_cross_validation_prefers_a_strong_penalty_on_noise_and_a_weak_one_on_signal(self):
        rng = np.random.default_rng(0)
        X, y = rng.normal(size=(100, 5)), rng.integers(0, 2, 100)
        noise = logistic_regression_cv(X, y, 2)
        signal = logistic_regression_cv(X, (X[:, 0] > 0).astype(np.int64), 2)
        assert signal.l2 < noise.l2
        assert signal.log_loss < 0.3 < noise.log_loss

    def test_the_scale_of_the_features_does_not_matter(self):
        X, y = gaussian_task(100, 5, 3)
        one, other = (logistic_regression_cv(X * factor, y, 3) for factor in (1.0, 1000.0))
        np.testing.assert_allclose(one.weight, other.weight * 1000, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("l2", [0.0, -1.0, float("nan")])
    def test_a_penalty_that_is_not_positive_is_refused(self, l2):
        X, y = gaussian_task(10, 2, 2)
        with pytest.raises(ConfigurationError, match="l2"):
            logistic_regression(X, y, 2, l2)

    def test_without_scipy_it_says_what_to_install(self, monkeypatch):
        X, y = gaussian_task(10, 2, 2)
        monkeypatch.setitem(sys.modules, "scipy.optimize", None)
        with pytest.raises(MissingDependencyError, match=r"logistic regression.*\[train\]"):
            logistic_regression(X, y, 2, 1.0)


class TestFit:
    def permuted(self, n=200, S=4):
        """Answers of an endpoint that is right, but calls each class by the name of the next."""
        rng = np.random.default_rng(0)
        y = rng.integers(0, S, n)
        logits = rng.normal(size=(n, S))
        logits[np.arange(n), (y + 1) % S] += 4
        return np.log(softmax(logits)), y, tuple("abcd")

    def test_identity_wins_where_the_endpoint_is_calibrated_on_the_task(self):
        rng = np.random.default_rng(0)
        p = rng.dirichlet(np.full(3, 0.5), size=400).clip(FLOOR)
        p /= p.sum(axis=1, keepdims=True)
        y = np.array([rng.choice(3, p=row) for row in p])
        y_in_class_order = np.array([1, 2, 0])[y]  # classes are (c, a, b)
        fitted = fit(
            np.log(p),
            y_in_class_order,
            ("a", "b", "c"),
            ("c", "a", "b"),
            kinds=("identity", "blm+"),
        )
        assert fitted.mapping.kind == "identity"
        np.testing.assert_allclose(
            np.exp(fitted.mapping.log_probs(np.log(p))), p[:, [2, 0, 1]], rtol=1e-4
        )

    def test_a_fitted_kind_wins_where_the_names_are_wrong(self):
        X, y, names = self.permuted()
        fitted = fit(X, y, names, names)
        assert fitted.log_loss["identity"] > fitted.log_loss["blm+"] > fitted.log_loss["linear"]
        assert fitted.mapping.kind == "linear"
        assert (fitted.mapping.log_probs(X).argmax(axis=1) == y).mean() > 0.9

    def test_validation_examples_choose_the_kind_where_there_are_some(self):
        """The training labels are permuted; the validation labels are as the endpoint says."""
        X, y, names = self.permuted()
        alone, judged = (
            fit(X, y, names, names, val=val) for val in (None, (X[:50], X[:50].argmax(axis=1)))
        )
        assert (alone.mapping.kind, judged.mapping.kind) == ("linear", "identity")
        for kind, loss in judged.log_loss.items():
            p = np.exp(fit(X, y, names, names, kinds=(kind,)).mapping.log_probs(X[:50])).clip(FLOOR)
            log_p = np.log(p / p.sum(axis=1, keepdims=True))
            assert loss == pytest.approx(-log_p[np.arange(50), X[:50].argmax(axis=1)].mean())

    def test_copies_of_a_picture_are_held_out_together(self):
        """A copy in the training folds would give its image away: noise would look like something
        to be learnt.
        """
        rng = np.random.default_rng(0)
        X, y = np.log(softmax(rng.normal(size=(60, 80)))), np.arange(60) % 3
        twice = np.concatenate([X, X + rng.normal(0, 1e-3, X.shape)]), np.tile(y, 2)
        source, classes = tuple(map(str, range(80))), ("a", "b", "c")
        parted, together = (
            fit(*twice, source, classes, kinds=("linear",), copies=n) for n in (1, 2)
        )
        assert parted.log_loss["linear"] < 0.5 < np.log(3) - 0.05 < together.log_loss["linear"]
        assert together.l2 > 100 * parted.l2

    def test_identity_is_not_tried_where_a_class_is_no_source_label(self):
        X, y, names = self.permuted()
        assert "identity" not in fit(X, y, names, ("a", "b", "c", "z")).log_loss

    def test_identity_alone_where_a_class_is_no_source_label_is_an_error(self):
        X, y, names = self.permuted()
        with pytest.raises(ConfigurationError, match="'z'"):
            fit(X, y, names, ("a", "b", "c", "z"), kinds=("identity",))

    def test_residual_form_starts_from_the_endpoint_where_labels_are_the_classes(self):
        # Four examples cannot teach a mapping; the endpoint is right, and the residual form keeps
        # it right.
        y = np.array([0, 1, 2, 3])
        X = np.log(softmax(6.0 * np.eye(4)[y]))
        linear = fit(X, y, tuple("abcd"), tuple("abcd"), kinds=("linear",)).mapping
        np.testing.assert_array_equal(linear.log_probs(X).argmax(axis=1), y)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "y", [[0, 0], [0, 1], [0, 1, 2], [0, 0, 0, 0, 3], [1, 1, 1, 1, 1, 1, 2]]
    )
    def test_tiny_and_lopsided_sets_give_finite_probabilities(self, y, kind):
        labels = np.array(y)
        X = np.log(softmax(np.random.default_rng(0).normal(size=(len(y), 4))))
        fitted = fit(X, labels, tuple("abcd"), tuple("abcd"), kinds=(kind,))
        log_p = fitted.mapping.log_probs(X)
        assert np.isfinite(log_p).all()
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1)
        assert np.isfinite(fitted.log_loss[kind])

    @pytest.mark.parametrize("kind", ["blm+", "linear"])
    def test_answers_that_are_all_the_same_still_fit(self, kind):
        fitted = fit(
            np.log(np.full((10, 2), 0.5)), np.arange(10) % 2, ("s", "t"), ("a", "b"), kinds=(kind,)
        )
        np.testing.assert_allclose(
            fitted.mapping.log_probs(np.log(np.full((1, 2), 0.5))), np.log(0.5), atol=1e-6
        )

    def test_hard_labels_of_unrelated_names_are_learned(self):
        answers = [
            Answer((name,), (1.0,), "label")
            for name in ("cat", "dog", "cat", "cow", "dog", "cow") * 5
        ]
        y = np.array([0, 1, 0, 1, 1, 1] * 5)
        source = vocabulary(answers)
        for kind in ("blm", "blm+", "linear"):
            mapping = fit(
                log_scores(answers, source), y, source, ("pet", "other"), kinds=(kind,)
            ).mapping
            np.testing.assert_array_equal(mapping(answers).argmax(axis=1), y)

    def test_the_same_seed_gives_the_same_fit(self):
        X, y, names = self.permuted()
        one, other = (fit(X, y, names, ("w", "x", "y", "z"), seed=3) for _ in range(2))
        assert one.log_loss == other.log_loss
        np.testing.assert_array_equal(one.mapping.weight, other.mapping.weight)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"X": np.array([[0.0, np.nan], [0.0, 0.0]])}, ConfigurationError, "NaN"),
            ({"y": np.array([0, 2])}, ConfigurationError, r"\[0, 2\)"),
            ({"y": np.array([0, -1])}, ConfigurationError, r"\[0, 2\)"),
            ({"classes": ("a",), "y": np.array([0, 0])}, ConfigurationError, "1 classes"),
            ({"X": np.zeros((1, 2)), "y": np.array([0])}, ConfigurationError, "1 examples"),
            ({"y": np.array([0])}, ShapeError, "labels"),
            ({"X": np.zeros((2, 3))}, ShapeError, "2 columns"),
            ({"kinds": ("nearest",)}, ConfigurationError, "identity"),
        ],
    )
    def test_input_that_does_not_fit_says_so(self, change, error, message):
        given_ = {
            "X": np.zeros((2, 2)),
            "y": np.array([0, 1]),
            "classes": ("a", "b"),
            "kinds": ("linear",),
        } | change
        with pytest.raises(error, match=message):
            fit(given_["X"], given_["y"], ("s", "t"), given_["classes"], kinds=given_["kinds"])

    def test_no_numpy_warning_escapes_on_extreme_scores(self):
        X = np.where(np.eye(4)[np.arange(40) % 4] > 0, 0.0, np.log(FLOOR))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = fit(X, np.arange(40) % 4, tuple("abcd"), tuple("wxyz"))
        assert fitted.log_loss["linear"] < 0.01


class TestParts:
    mapping = LabelMapping(
        "linear", ("ä", "b"), ("x", "y"), np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([5.0, 6.0])
    )

    def test_card_and_arrays_rebuild_the_mapping(self):
        card = json.loads(json.dumps(self.mapping.card()))
        again = LabelMapping.from_parts(card, self.mapping.arrays())
        answers = [Answer(("ä", "b"), (0.7, 0.3))]
        np.testing.assert_array_equal(again(answers), self.mapping(answers))
        assert (again.kind, again.source, again.classes) == ("linear", ("ä", "b"), ("x", "y"))

    @pytest.mark.parametrize(
        ("card", "arrays"),
        [
            ({"kind": "magic"}, {}),
            ({"source": ["only"]}, {}),
            ({"classes": None}, {}),
            ({}, {"bias": np.zeros(3)}),
            ({}, {"weight": "text"}),
        ],
    )
    def test_parts_that_do_not_fit_are_a_checkpoint_error(self, card, arrays):
        with pytest.raises(CheckpointError):
            LabelMapping.from_parts(self.mapping.card() | card, self.mapping.arrays() | arrays)

    def test_a_missing_part_is_a_checkpoint_error(self):
        with pytest.raises(CheckpointError, match="weight"):
            LabelMapping.from_parts(self.mapping.card(), {})

    def test_only_linear_is_not_additive(self):
        assert not self.mapping.additive
        assert LabelMapping("identity", ("a", "b"), ("a", "b"), np.eye(2), np.zeros(2)).additive

    def test_features_of_another_width_are_refused(self):
        with pytest.raises(ShapeError, match=r"\(n, 2\)"):
            self.mapping.log_probs(np.zeros((1, 3)))


ANSWERS = {
    "all probabilities": lambda p, names: Answer(names, tuple(p)),
    "logits": lambda p, names: Answer(names, tuple(np.log(p + 1e-9)), "logits"),
    "top 2": lambda p, names: Answer(
        *zip(*sorted(zip(names, p, strict=True), key=lambda x: -x[1])[:2], strict=True)
    ),
    "one decimal": lambda p, names: Answer(names, tuple(p.round(1))),
    "one label": lambda p, names: Answer((names[int(p.argmax())],), (1.0,), "label"),
}


class TestEveryKindReadsEveryAnswer:
    @pytest.mark.parametrize("output", ANSWERS)
    @pytest.mark.parametrize("kind", KINDS)
    @settings(max_examples=15)
    @given(data=st.data())
    def test_without_losing_a_number(self, kind, output, data):
        """Imbalanced and absent classes, labels never seen while fitting, more classes than labels
        and fewer.
        """
        S, C = data.draw(st.integers(2, 7)), data.draw(st.integers(2, 9))
        y = np.array(data.draw(st.lists(st.integers(0, C - 1), min_size=2, max_size=12)))
        seed, concentration = (
            data.draw(st.integers(0, 99)),
            data.draw(st.sampled_from([0.01, 0.3, 5.0])),
        )
        p = np.random.default_rng(seed).dirichlet(np.full(S, concentration), size=len(y) + 3)
        names = tuple(f"s{i}" for i in range(S))
        classes = names[:C] if kind == "identity" else tuple(f"c{i}" for i in range(C))
        answers = [ANSWERS[output](row, names) for row in p]
        source = names if kind == "identity" else vocabulary(answers[: len(y)])
        rows = log_scores(answers, source, strict=False)
        fitted = fit(rows[: len(y)], y % len(classes), source, classes, kinds=(kind,))
        log_p = fitted.mapping.log_probs(rows)
        assert np.isfinite(log_p).all()
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1)
        assert np.isfinite(fitted.log_loss[kind])


def embedded(X):
    return [
        Answer(tuple(f"dim {i}" for i in range(X.shape[1])), tuple(row), "embedding")
        for row in X.tolist()
    ]


class TestEmbeddings:
    def test_a_linear_head_is_fitted_on_the_features_as_they_are_whatever_their_scale(self):
        X, y = gaussian_task(200, 12, 3, spread=4.0)
        rows = [log_scores(embedded(X * scale), vocabulary(embedded(X))) for scale in (1.0, 1e4)]
        fits = [fit(x, y, vocabulary(embedded(X)), ("0", "1", "2")) for x in rows]
        np.testing.assert_allclose(
            *(f.mapping.log_probs(x) for f, x in zip(fits, rows, strict=True)), atol=1e-4
        )
        assert fits[0].mapping.kind == "linear"
        assert (fits[0].mapping(embedded(X)).argmax(axis=1) == y).mean() > 0.9

    def test_the_order_of_the_features_is_kept_beyond_ten(self):
        answers = embedded(np.arange(24.0).reshape(2, 12))
        np.testing.assert_array_equal(
            log_scores(answers, vocabulary(answers)), np.arange(24.0).reshape(2, 12)
        )

    def test_no_other_kind_reads_them(self):
        X, y = gaussian_task(20, 4, 2)
        with pytest.raises(ConfigurationError, match="linear"):
            fit(X, y, vocabulary(embedded(X)), ("a", "b"), kinds=("identity", "blm+"))

    def test_other_features_than_those_fitted_on_are_refused(self):
        answers = embedded(np.zeros((1, 3)))
        with pytest.raises(ConfigurationError, match="fit the mapping again"):
            log_scores(answers, vocabulary(embedded(np.zeros((1, 4)))))
        with pytest.raises(ConfigurationError, match="fit the mapping again"):
            log_scores([*answers, Answer(("cat",), (1.0,))], vocabulary(answers))
