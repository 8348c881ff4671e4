"""What a probe says of endpoints that are known: NumPy ones here, and a few of the bundled model."""

import dataclasses
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgn_client.errors import ConfigurationError
from pgn_client.probe import LIMIT, Findings, probe
from pgn_client.probe.asking import Asker, LimitReachedError, decimals
from pgn_client.probe.bursts import EVEN, ODD, OPEN, Pair, best_pair, burst, outcome, predicted
from pgn_client.probe.bursts import updated as narrowed
from pgn_client.probe.codec import QUALITIES, _library, metamers
from pgn_client.probe.pictures import mosaic, needle, picture, recode, rms
from pgn_client.probe.questions import DIFFERENT, EITHER, SAME, splits, updated
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
    """Sees nothing: the same answer to every picture."""

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
    return {name: getattr(findings, name).value for name in ("profile", "input_size", "codec", "output", "top_k")}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"profile": "resize_crop:73:64", "jpeg": "75:420", "top_k": 5},
            {"profile": "resize_crop:73:64", "codec": "jpeg:75:420", "output": "probabilities", "top_k": 5},
        ),
        (
            {"profile": "letterbox:64", "output": "logits"},
            {"profile": "letterbox:64", "codec": "lossless", "output": "logits", "top_k": "all"},
        ),
        (
            {"profile": "shortest_edge:64", "decimals": 4},
            {"profile": "shortest_edge:64", "codec": "lossless", "output": "probabilities", "top_k": "all"},
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
    assert told(findings) == {"profile": None, "input_size": None, "codec": None, "output": "label", "top_k": 1}
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


def test_what_the_endpoint_raises_passes_through():
    def ask(pictures):
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        probe(ask)


def test_pictures_beyond_the_limit_are_not_sent_in_part():
    endpoint = Constant(FOUR)
    asker = Asker(endpoint, 2)
    with pytest.raises(LimitReachedError):
        asker(*[Image.new("RGB", (8, 8))] * 3)
    assert not endpoint.seen


def test_one_score_per_answer_makes_nothing_certain():
    findings = probe(server(top_k=1))
    assert findings.top_k.value == 1
    assert "certain" not in {findings.profile.certainty, findings.codec.certainty, findings.input_size.certainty}


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
    finding = probe(lambda pictures: inner([image.convert("L").convert("RGB") for image in pictures])).codec
    assert finding.value == "lossless"


@pytest.mark.parametrize("target", [64, 73, 224, 256])
@pytest.mark.parametrize("kernel", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_a_needle_vanishes_at_its_own_size_alone(target, kernel):
    grey = np.full((16, 1024, 3), 128.0)
    image = picture(grey + needle(1024, target, 70)[None, :, None])
    left = {
        side: rms(np.asarray(image.resize((side, 16), kernel), np.float64) - 128)
        for side in (target - 1, target, target + 1)
    }
    assert left[target] < 0.1 * min(left[target - 1], left[target + 1])


@pytest.mark.parametrize(("quality", "subsampling"), [(50, "420"), (75, "422"), (95, "444")])
def test_metamers_are_one_picture_for_their_own_quality_alone(quality, subsampling):
    one, other = metamers(quality, subsampling, mosaic(32, 0))
    assert rms(one - other) > 0.5
    np.testing.assert_array_equal(recode(one, quality, subsampling), recode(other, quality, subsampling))
    finer, coarser = (
        rms(recode(one, q, subsampling) - recode(other, q, subsampling)) for q in (quality + 3, quality - 3)
    )
    assert min(finer, coarser) > 0.3


def test_patterns_that_a_quality_loses_come_back_unchanged():
    patterns, predictions = _library()
    base, column = mosaic(32, 3), 1 + 3 * QUALITIES.index(75)
    lost = [p for p, prediction in zip(patterns, predictions[:, column], strict=True) if prediction == SAME][::25]
    changed = [rms(recode(base + p.overlay, 75, "444") - recode(base, 75, "444")) / rms(p.values) for p in lost]
    assert len(lost) > 5
    assert np.median(changed) == 0


@pytest.mark.parametrize(("score", "digits"), [(0.25, 2), (1.0, 0), (1e-05, 5), (0.1, 1), (-2.125, 3), (12.0, 0)])
def test_the_digits_after_the_point_are_counted(score, digits):
    assert decimals(score) == digits


def test_a_rounding_step_is_no_distance():
    answers = [Answer(("a", "b"), (0.62, 0.38)), Answer(("a", "b"), (0.63, 0.37))]
    asker = Asker(lambda pictures: answers, 4)
    asker(*[Image.new("RGB", (8, 8))] * 2)
    assert asker.distance(*answers) == 0


def test_a_question_is_worth_its_smaller_side_and_an_answer_removes_who_predicted_otherwise():
    weights, prediction = np.array([0.5, 0.3, 0.2]), np.array([SAME, DIFFERENT, EITHER], np.int8)
    assert splits(weights, prediction[None]) == pytest.approx([0.3])
    np.testing.assert_allclose(updated(weights, prediction, "same"), [0.5, 0, 0.2])
    np.testing.assert_allclose(updated(weights, prediction, "different", doubt=0.1), [0.05, 0.3, 0.2])
    np.testing.assert_allclose(updated(weights, prediction, "unclear"), weights)


def test_findings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        probe(Constant(FOUR)).images = 3


class TestBursts:
    def test_one_of_a_pair_vanishes_after_the_resize_and_says_whether_the_side_is_odd(self):
        for target, side, kind in ((70, 70, EVEN), (71, 71, ODD), (250, 250, EVEN), (250, 246, EVEN), (250, 249, ODD)):
            even, odd = (resized(burst(1024, Pair(target, 3.0), 70, odd=odd), side) for odd in (False, True))
            assert outcome(rms(even), rms(odd)) == kind
            assert predicted(Pair(target, 3.0), 641)[side] in (kind, OPEN)
            assert predicted(Pair(target, 3.0), 641)[target] == (ODD if target % 2 else EVEN)

    def test_the_wider_a_burst_the_nearer_the_side_must_be(self):
        near, far = predicted(Pair(70, 3.0), 641), predicted(Pair(70, 24.0), 641)
        assert (near == EVEN).sum() > (far == EVEN).sum() >= 1
        assert near[72] == EVEN
        assert far[72] != EVEN

    def test_what_was_seen_leaves_little_of_what_predicted_another(self):
        weights = np.zeros(641)
        weights[64:80] = 1
        after = narrowed(weights, Pair(72, 3.0), EVEN)
        assert after[72] == 1
        assert after[71] < 0.1
        assert (narrowed(weights, Pair(72, 3.0), OPEN) == weights).all()

    def test_the_best_pair_is_new_and_splits_the_weights(self):
        weights = np.zeros(641)
        weights[64:80] = 1
        pair, bits = best_pair(weights, set())
        assert bits > 0.9
        assert best_pair(weights, {pair})[0] != pair


def resized(wave, side):
    row = np.tile(128 + wave, (8, 1))
    image = Image.fromarray(np.rint(row).astype(np.uint8)).resize((side, 8), Image.Resampling.BICUBIC)
    return np.asarray(image, float)[4] - 128
