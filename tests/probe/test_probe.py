"""What a probe says of endpoints that are known: NumPy ones here, and a few of the bundled
model.
"""

import dataclasses
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgn_client.errors import BudgetExceededError, ConfigurationError
from pgn_client.probe import LIMIT, Findings, probe
from pgn_client.probe.codec import QUALITIES, _coded, _library, metamers
from pgn_client.probe.gratings import Wave, around, middle, needle, quadrature
from pgn_client.probe.posterior import CONTROL, Belief, expected, information, likelihood
from pgn_client.probe.queries import LimitReachedError, Prober, decimals
from pgn_client.probe.resize_hypotheses import FRAME, SIDE, hypotheses
from pgn_client.probe.stimuli import framed, mosaic, recode, rms, to_image
from pgn_client.types import Answer

SPEC = importlib.util.spec_from_file_location(
    "probe_servers", Path(__file__).resolve().parents[2] / "benchmarks" / "probe_servers.py"
)


def server(**changes):
    """A bundled model behind the settings' switches, without HTTP."""
    module = sys.modules.get("probe_servers") or importlib.util.module_from_spec(SPEC)
    sys.modules["probe_servers"] = module
    SPEC.loader.exec_module(module)
    profile, jpeg = changes.pop("profile", "direct"), changes.pop("jpeg", None)
    settings = module.Settings(
        device="cpu",
        profile=module.Profile.parse(profile),
        jpeg=None if jpeg is None else module.Jpeg.parse(jpeg),
        **changes,
    )
    return module.Endpoint(module.Configuration(settings, "bilinear", {}))


class Constant:
    """Sees nothing: the same answer to every image."""

    def __init__(self, answer):
        self.answer = answer
        self.seen = []

    def __call__(self, pictures):
        self.seen += [image.size for image in pictures]
        return [self.answer for _ in pictures]


class Noisy(Constant):
    """Says something else every time."""

    def __call__(self, pictures):
        draw = np.random.default_rng(len(self.seen))
        super().__call__(pictures)
        rows = [np.sort(draw.dirichlet(np.ones(4)))[::-1] for _ in pictures]
        return [Answer(self.answer.labels, tuple(map(float, row))) for row in rows]


FOUR = Answer(("a", "b", "c", "d"), (0.41237891234, 0.3, 0.2, 0.08762108766))


def told(findings: Findings):
    return {
        name: getattr(findings, name).value
        for name in ("profile", "input_size", "codec", "output", "top_k")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"profile": "resize_crop:73:64", "jpeg": "75:420", "top_k": 5},
            {
                "profile": "resize_crop:73:64",
                "codec": "jpeg:75:420",
                "output": "probabilities",
                "top_k": 5,
            },
        ),
        (
            {"profile": "letterbox:64", "output": "logits"},
            {"profile": "letterbox:64", "codec": "lossless", "output": "logits", "top_k": "all"},
        ),
        (
            {"profile": "shortest_edge:64", "decimals": 4},
            {
                "profile": "shortest_edge:64",
                "codec": "lossless",
                "output": "probabilities",
                "top_k": "all",
            },
        ),
        (
            {"profile": "direct", "jpeg": "90:444", "decimals": 5, "top_k": 10},
            {"profile": "direct", "codec": "jpeg:90:444", "output": "probabilities", "top_k": 10},
        ),
    ],
    ids=lambda value: value.get("profile"),
)
def test_a_bundled_model_is_found_as_it_was_configured(changes, expected):
    findings = probe(server(**changes))
    assert told(findings) == expected | {"input_size": 64}
    assert findings.images <= LIMIT
    assert findings.noise < 1e-3
    assert findings.decimals.value == changes.get("decimals", "none")


def test_a_server_that_answers_labels_alone_leaves_the_rest_unknown():
    findings = probe(server(output="label"))
    assert told(findings) == {
        "profile": None,
        "input_size": None,
        "codec": None,
        "output": "label",
        "top_k": 1,
    }
    assert findings.profile.certainty == findings.codec.certainty == "unknown"


@pytest.mark.parametrize("endpoint", [Constant(FOUR), Noisy(FOUR)], ids=["blind", "noisy"])
def test_equal_answers_to_everything_and_noise_are_evidence_of_nothing(endpoint):
    findings = probe(endpoint)
    assert (findings.profile.certainty, findings.codec.certainty) == ("unknown", "unknown")
    assert findings.profile.value is findings.input_size.value is findings.codec.value is None


@pytest.mark.parametrize("limit", [2, 3, 11, 20, 39])
def test_no_more_pictures_are_sent_than_the_limit(limit):
    endpoint, sent = server(), []

    def ask(pictures):
        sent.extend(pictures)
        return endpoint(pictures)

    findings = probe(ask, limit=limit)
    assert findings.images == len(sent) <= limit


def test_a_limit_that_leaves_no_room_for_a_repeat_is_refused():
    with pytest.raises(ConfigurationError, match="got a limit of 1 images, expected at least 2"):
        probe(Constant(FOUR), limit=1)


def test_a_seed_below_zero_is_refused_before_anything_is_sent():
    endpoint = Constant(FOUR)
    with pytest.raises(
        ConfigurationError, match="got a seed of -1, expected a whole number from 0 on"
    ):
        probe(endpoint, seed=-1)
    assert not endpoint.seen


@pytest.mark.parametrize("budget", [2, 9, 25])
def test_a_budget_that_ends_on_the_way_ends_the_search_and_keeps_what_was_found(budget):
    inner, sent = server(), []

    def ask(pictures):
        if len(sent) + len(pictures) > budget:
            raise BudgetExceededError(budget, budget)
        sent.extend(pictures)
        return inner(pictures)

    findings = probe(ask)
    assert findings.images == len(sent) <= budget
    assert findings.output.value == "probabilities"
    with pytest.raises(BudgetExceededError):
        probe(lambda pictures: ask(pictures * 20))


def test_what_the_endpoint_raises_passes_through():
    def ask(pictures):
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        probe(ask)


def test_pictures_beyond_the_limit_are_not_sent_in_part():
    endpoint = Constant(FOUR)
    asker = Prober(endpoint, 2)
    with pytest.raises(LimitReachedError):
        asker(*[Image.new("RGB", (8, 8))] * 3)
    assert not endpoint.seen


def test_one_score_per_answer_makes_nothing_certain():
    findings = probe(server(top_k=1))
    assert findings.top_k.value == 1
    assert "certain" not in {
        findings.profile.certainty,
        findings.codec.certainty,
        findings.input_size.certainty,
    }


def test_a_server_with_another_codec_than_jpeg_is_never_certainly_jpeg():
    inner = server()

    def ask(pictures):
        recoded = []
        for image in pictures:
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=80)
            recoded.append(Image.open(buffer).convert("RGB"))
        return inner(recoded)

    finding = probe(ask).codec
    assert finding.certainty != "certain"
    assert finding.value != "lossless"


def test_a_server_that_drops_colours_is_not_taken_for_one_that_subsamples_them():
    inner = server()
    finding = probe(
        lambda pictures: inner([image.convert("L").convert("RGB") for image in pictures])
    ).codec
    assert finding.value == "lossless"


@pytest.mark.parametrize("target", [64, 73, 224, 256])
@pytest.mark.parametrize("kernel", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_a_needle_vanishes_at_its_own_size_alone(target, kernel):
    grey = np.full((16, 1024, 3), 128.0)
    image = to_image(grey + needle(target)(1024)[None, :, None])
    left = {
        side: rms(np.asarray(image.resize((side, 16), kernel), np.float64) - 128)
        for side in (target - 1, target, target + 1)
    }
    assert left[target] < 0.1 * min(left[target - 1], left[target + 1])


@pytest.mark.parametrize(("quality", "subsampling"), [(50, "420"), (75, "422"), (95, "444")])
def test_metamers_are_one_picture_for_their_own_quality_alone(quality, subsampling):
    one, other = metamers(quality, subsampling, mosaic(32, 0))
    assert rms(one - other) > 0.5
    np.testing.assert_array_equal(
        recode(one, quality, subsampling), recode(other, quality, subsampling)
    )
    finer, coarser = (
        rms(recode(one, q, subsampling) - recode(other, q, subsampling))
        for q in (quality + 3, quality - 3)
    )
    assert min(finer, coarser) > 0.3


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_what_is_left_of_a_pattern_is_as_predicted(quality):
    base, column = mosaic(32, 3), 1 + 3 * QUALITIES.index(quality)
    for overlay in _library()[::40]:
        left = rms(_coded(base + overlay.values, column) - _coded(base, column))
        if np.isfinite(overlay.left[column]):
            assert left == pytest.approx(overlay.left[column], abs=0.6, rel=0.2)


def test_patterns_keep_clear_of_black_and_white():
    base = mosaic(32, 0)
    assert min((base + overlay.values).min() for overlay in _library()) >= 0
    assert max((base + overlay.values).max() for overlay in _library()) <= 255


@pytest.mark.parametrize(
    ("score", "digits"), [(0.25, 2), (1.0, 0), (1e-05, 5), (0.1, 1), (-2.125, 3), (12.0, 0)]
)
def test_the_digits_after_the_point_are_counted(score, digits):
    assert decimals(score) == digits


def test_a_rounding_step_is_no_distance():
    answers = [Answer(("a", "b"), (0.62, 0.38)), Answer(("a", "b"), (0.63, 0.37))]
    asker = Prober(lambda pictures: answers, 4)
    asker(*[Image.new("RGB", (8, 8))] * 2)
    assert asker.distance(*answers) == 0


def test_findings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        probe(Constant(FOUR)).images = 3


class TestWaves:
    @pytest.mark.parametrize("away", [0, 1, -2, 5, 30])
    @pytest.mark.parametrize("target", [96, 224, 257])
    def test_what_a_crop_sees_of_it_is_as_predicted(self, target, away):
        for wave in [w for w in around([target]) if w.width is None or w.width < target / 12]:
            resize = target + away
            for crop in (resize, resize - 12):
                first = round((resize - crop) / 2)
                assert rms(wave(resize)[first : first + crop]) == pytest.approx(
                    wave.seen(resize, crop), abs=1.5
                )

    def test_in_the_middle_a_phase_tells_odd_from_even_and_a_width_how_near(self):
        narrow, wide = middle(250)[0], middle(250)[3]
        assert (narrow.width, wide.width) == (3.0, 24.0)
        assert narrow.seen(248, 248) < 0.2 * narrow.seen(249, 249)
        assert wide.seen(250, 250) < 0.1 * wide.seen(240, 240)
        assert narrow.seen(240, 240) < 0.5 * narrow.seen(241, 241)

    def test_at_a_third_the_rest_of_a_division_by_three_is_told(self):
        (wave,) = [w for w in around([252]) if w.width == 3.0 and w.place.denominator == 3]
        assert max(wave.seen(side, side) for side in (249, 252, 255)) < 0.2 * wave.seen(250, 250)

    def test_a_quadrature_peaks_where_the_wave_vanishes(self):
        for wave in around([224]):
            assert wave.seen(224, 224) < 1e-6
            assert quadrature(wave).seen(224, 224) > 1.2 * quadrature(wave).seen(290, 290)

    @pytest.mark.parametrize("kernel", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
    @pytest.mark.parametrize(("resize", "crop"), [(72, 64), (256, 224), (259, 224)])
    def test_amplitudes_are_what_pillow_leaves(self, resize, crop, kernel):
        known = hypotheses()
        place = 0 if kernel == Image.Resampling.BICUBIC else 1
        one = (
            (known.resize == resize)
            & (known.crop == crop)
            & (known.kernel == place)
            & (known.heard == 1)
        )
        (index,) = np.flatnonzero(one)
        grey = np.full((SIDE, SIDE, 3), 110.0)
        for question in (
            Wave(resize * 4 // 3),
            Wave(resize * 2 // 3),
            *middle(resize)[1:3],
            quadrature(needle(resize)),
            8,
            64,
            96,
        ):
            wave = isinstance(question, Wave)
            pixels = grey + question(SIDE)[None, :, None] if wave else framed(grey, question, FRAME)
            first = round((resize - crop) / 2)
            seen = np.asarray(to_image(pixels).resize((resize, resize), kernel), float)
            seen = seen[first : first + crop, first : first + crop]
            told = known.amplitudes(question, np.array([index]))[0]
            assert rms(seen - 110) == pytest.approx(told, rel=0.1, abs=1.5)


class TestBelief:
    """Three hypotheses, and questions that are what each predicts, in grey levels."""

    @staticmethod
    def belief():
        asker = Prober(Constant(FOUR), 40)
        asker(Image.new("RGB", (8, 8)))
        found = Belief(
            asker, np.array([0.5, 0.3, 0.2]), lambda question, which: np.array(question)[which]
        )
        found.learn((CONTROL, CONTROL, CONTROL), 1.0)
        return found

    def test_an_answer_favours_who_predicted_it(self):
        found = self.belief()
        found.learn((0.0, 20.0, 20.0), 0.9)
        assert found.shares[0] < 0.01
        assert found.shares[1:] == pytest.approx([0.6, 0.4], abs=0.01)
        found.learn((20.0, 0.0, 20.0), 0.0)
        assert found.shares[1] > 0.95

    def test_who_says_nothing_neither_gains_nor_loses(self):
        found = self.belief()
        found.learn((float("nan"), 20.0, 0.0), 0.9)
        assert found.shares[0] == pytest.approx(0.5, abs=1e-6)
        assert found.shares[1] > 0.49

    def test_a_larger_response_is_the_new_control_and_the_earlier_ones_shrink(self):
        first, other = self.belief(), self.belief()
        first.learn((0.0, 5.0, 20.0), 0.5)
        first.learn((20.0, 20.0, 20.0), 10.0)
        assert first.control == 10
        other.learn((20.0, 20.0, 20.0), 10.0)
        other.learn((0.0, 5.0, 20.0), 0.5)
        assert first.shares == pytest.approx(other.shares)
        other.learn((30.0, 0.0, 0.0), 20.0, control=False)
        assert other.control == 10

    def test_the_best_question_is_new_and_splits_the_weights(self):
        found = self.belief()
        useless, good, faint = (20.0, 20.0, 20.0), (0.0, 20.0, 20.0), (2.0, 3.0, 3.0)
        best, bits = found.best([useless, faint, good])
        assert best == good
        assert 0.8 < bits <= 1
        found.learn(good, 0.9)
        assert found.best([useless, good])[0] == useless
        assert found.best([good]) is None

    def test_information_is_none_where_all_predict_the_same_or_nothing(self):
        weights = np.array([0.5, 0.5])
        questions = np.array([[5.0, 5.0], [np.nan, np.nan], [0.0, 20.0], [np.nan, 20.0]])
        assert information(weights, questions, 0.01, 5) == pytest.approx([0, 0, 1, 0], abs=0.1)

    def test_an_answer_below_the_floor_has_a_probability_and_the_rest_a_density(self):
        responses = np.geomspace(0.011, 1e4, 4000)
        for amplitude, scores in ((0.0, 1), (0.5, 5), (3.0, 1), (20.0, 5)):
            below = likelihood(0.0, amplitude, 0.01, scores)
            above = np.trapezoid(likelihood(responses, amplitude, 0.01, scores), np.log(responses))
            assert below + above == pytest.approx(1, abs=0.02)

    def test_few_scores_are_trusted_less(self):
        ratios = [likelihood(0.2, 0.0, 0.01, n) / likelihood(0.2, 20.0, 0.01, n) for n in (1, 3, 9)]
        assert ratios == sorted(ratios)
        assert expected(0) == 0
        assert expected(CONTROL) == pytest.approx(CONTROL, rel=0.1)

    def test_two_labels_that_differ_are_far_apart_where_each_answer_has_one(self):
        answers = [Answer(("a",), (0.5,)), Answer(("b",), (0.5,)), Answer(("a",), (0.5,))]
        asker = Prober(lambda pictures: answers, 4)
        asker(*[Image.new("RGB", (8, 8))] * 3)
        assert asker.distance(answers[0], answers[1]) == 1
        assert asker.distance(answers[0], answers[2]) == 0


def test_only_what_is_seen_makes_equal_answers_mean_anything():
    asker = Prober(Constant(FOUR), 4)
    asker(Image.new("RGB", (8, 8)))
    assert asker.gone(0.0, beside=1.0)
    assert not asker.gone(0.5, beside=1.0)
    assert not asker.gone(0.0, beside=5e-3)
