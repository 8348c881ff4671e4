"""What a server's numbers mean is settled by an option, by a probe, or by each answer alone."""

import itertools
import json
import logging
import math

import httpx
import numpy as np
import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.mapping.label_mapping import LabelMapping, log_scores
from pgn_client.probe.score_type import find_output
from pgn_client.types import Answer, Prepared
from pgn_client.wire.endpoint import Endpoint, Found
from pgn_client.wire.loaded_adapter import LoadedAdapter
from pgn_client.wire.prediction import probabilities, warn_of_few_labels
from pgn_client.wire.protocols import MalformedAnswerError, WireResponse, open_protocol
from tests.wire.fakes import Server, client, picture

LOGITS = (2.0, 0.5, -1.0)
NAMES = ("cat", "dog", "owl")
LABELLED = (
    "huggingface",
    "huggingface-zero-shot",
    "kserve-v1",
    "vertex",
    "sagemaker",
    "torchserve",
)
VERTEX = "https://h/v1/projects/p/locations/l/endpoints/1:predict"


def bound(protocol: str, found: Found | None = None, **options):
    """The wire format, for an endpoint with these options."""
    url = VERTEX if protocol == "vertex" else "https://h"
    fixed = {"scores": "scores", "labels": "labels"} if protocol == "custom" else {}
    endpoint = Endpoint(
        url,
        protocol=protocol,
        model="m",
        labels=NAMES,
        options=fixed | options,
        found=found or Found(),
    )
    return open_protocol(endpoint)


def response(protocol: str, scores) -> WireResponse:
    """A server's response with these scores of the three labels."""
    pairs = [{"label": n, "score": s} for n, s in zip(NAMES, scores, strict=True)]
    document = {
        "kserve-v1": {"predictions": [pairs]},
        "vertex": {"predictions": [pairs]},
        "custom": {"labels": NAMES, "scores": list(scores)},
        "oip": {
            "outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": list(scores)}]
        },
    }.get(protocol, pairs)
    return WireResponse(200, {}, json.dumps(document).encode())


def read(protocol: str, numbers, /, **options) -> Answer:
    (answer,) = bound(protocol, **options).decode(response(protocol, numbers))
    return answer


def sigmoid(numbers):
    return tuple(1 / (1 + math.exp(-x)) for x in numbers)


def softmax(numbers):
    e = np.exp(numbers)
    return tuple((e / e.sum()).tolist())


# ---- no memory of earlier answers


@pytest.mark.parametrize("protocol", [*LABELLED, "custom", "oip"])
def test_answers_are_read_alike_in_every_order(protocol):
    each = [LOGITS, softmax(LOGITS), (0.9, 0.8, 0.1), (0.3, 0.2, 0.1), (3.0, 2.0, 1.0)]
    alone = [read(protocol, scores) for scores in each]
    for order in itertools.permutations(range(len(each))):
        reader = bound(protocol)
        for i in order:
            assert reader.decode(response(protocol, each[i])) == [alone[i]]


def test_numbers_that_may_be_sigmoid_scores_or_logits_are_refused_by_the_name_of_the_option():
    answer = read("huggingface", (0.9, 0.8, 0.1))
    assert answer.scores == (0.9, 0.8, 0.1)
    for use in (probabilities, lambda each: log_scores([each], NAMES)):
        with pytest.raises(ConfigurationError, match=r'output = "sigmoid" or "logits".*pgn probe'):
            use(answer)


def test_a_client_names_the_option_too():
    pairs = [{"label": "a", "score": 0.9}, {"label": "b", "score": 0.8}]
    with (
        client(Server([httpx.Response(200, json=pairs)]), protocol="huggingface") as c,
        pytest.raises(ConfigurationError, match="output = "),
    ):
        c.classify(picture())


# ---- the option


@pytest.mark.parametrize("protocol", [*LABELLED, "custom", "oip"])
@pytest.mark.parametrize(
    ("meaning", "scores"),
    [
        ("probs", softmax(LOGITS)),
        ("probabilities", softmax(LOGITS)),
        ("logits", LOGITS),
        ("sigmoid", sigmoid(LOGITS)),
    ],
)
def test_a_model_gives_the_same_row_whatever_its_server_applies(protocol, meaning, scores):
    answer = read(protocol, scores, output=meaning)
    row = log_scores([answer], NAMES)[0]
    assert np.exp(row) == pytest.approx(softmax(LOGITS), rel=1e-6)
    assert probabilities(answer) == pytest.approx(softmax(LOGITS), rel=1e-6)


@pytest.mark.parametrize("protocol", LABELLED)
def test_scores_is_another_name_of_the_option(protocol):
    assert read(protocol, (0.9, 0.8, 0.1), scores="sigmoid") == read(
        protocol, (0.9, 0.8, 0.1), output="sigmoid"
    )
    with pytest.raises(ConfigurationError, match="output and scores"):
        bound(protocol, scores="sigmoid", output="sigmoid")
    with pytest.raises(ConfigurationError, match="'votes'"):
        bound(protocol, scores="votes")


def test_scores_keeps_its_older_meaning_of_a_place():
    options = {"datatype": "FP32", "shape": [1, 3, 4, 4], "mean": 0.5, "std": 0.5}
    assert bound("oip", scores="probs", **options).output == "probs"
    assert read("custom", LOGITS, scores="scores", output="logits").kind == "logits"
    # With auto, the name of a tensor is no wrong meaning.
    open_protocol(Endpoint("https://h", options={"scores": "my_tensor"}))


def test_saturated_sigmoid_scores_stay_finite_and_in_order():
    answer = read("huggingface", (1.0, 0.5, 0.0), output="sigmoid")
    assert answer.labels == NAMES
    assert all(map(math.isfinite, answer.scores))


@pytest.mark.parametrize("score", [-0.2, 1.5])
def test_what_is_no_sigmoid_score_is_refused(score):
    with pytest.raises(MalformedAnswerError, match="output = sigmoid"):
        read("huggingface", (0.5, 0.1, score), output="sigmoid")


# ---- caches


def test_recorded_answers_keep_their_key_without_the_option():
    plain = bound("huggingface").dialect
    assert plain == "huggingface top_k=100000"
    for output in (None, "probabilities", "logits", "label"):
        assert bound("huggingface", Found(output=output)).dialect == plain
    assert bound("huggingface-zero-shot", Found(output="logits")).dialect == (
        bound("huggingface-zero-shot").dialect
    )


@pytest.mark.parametrize("protocol", [*LABELLED, "custom", "oip"])
def test_another_meaning_has_another_key(protocol):
    dialects = {
        bound(protocol, **options).dialect
        for options in ({}, {"output": "sigmoid"}, {"output": "logits"})
    }
    assert len(dialects) == 3
    assert bound(protocol, Found(output="sigmoid")).dialect != bound(protocol).dialect


# ---- the probe


def test_a_probe_decides_from_all_answers_in_any_order():
    draw = np.random.default_rng(0)
    logits = draw.normal(-3, 1, (24, 3))
    answers = [read("huggingface", sorted(sigmoid(row), reverse=True)) for row in logits]
    # One answer alone looks like probabilities, another like nothing known.
    answers.append(read("huggingface", (0.9, 0.8, 0.1)))
    for order in (answers, answers[::-1]):
        assert find_output(order).value == "sigmoid"
    assert find_output(answers[:-1]).value == "probabilities"
    assert find_output([*answers, read("huggingface", LOGITS)]).value == "logits"


def test_what_a_probe_found_settles_every_answer():
    reader = bound("huggingface", Found(output="sigmoid"))
    (answer,) = reader.decode(response("huggingface", (0.3, 0.2, 0.1)))
    assert answer.kind == "logits"
    assert answer.scores[0] == pytest.approx(math.log(0.3 / 0.7))


# ---- the checkpoint


class Mapped:
    """An adapter whose mapping was fitted to scores of one meaning."""

    def __init__(self, scores):
        self.info = {"method": "raw", "scores": scores}
        self.mapping = LabelMapping("identity", NAMES, NAMES, np.eye(3), np.zeros(3))

    def prepare(self, images):
        return [Prepared(image) for image in images]


@pytest.mark.parametrize(
    ("fitted", "options", "kind", "warns"),
    [
        ("sigmoid", {}, "probabilities", True),
        ("sigmoid", {"output": "logits"}, "logits", True),
        ("probabilities", {"output": "sigmoid"}, "logits", True),
        ("sigmoid", {"output": "sigmoid"}, "logits", False),
        # A mapping reads the logits of sigmoid scores.
        ("sigmoid", {}, "logits", False),
        ("probabilities", {}, "logits", False),
        (None, {"output": "sigmoid"}, "logits", False),
    ],
)
def test_a_checkpoint_that_was_fitted_to_another_meaning_is_named(
    fitted, options, kind, warns, caplog
):
    adapter = Mapped(fitted)
    checkpoint = LoadedAdapter(adapter)
    endpoint = Endpoint("https://h", protocol="huggingface", options=options)
    with caplog.at_level(logging.WARNING, "pgn_client"):
        for _ in range(2):
            warn_of_few_labels(checkpoint, endpoint, Answer(NAMES, (0.5, 0.3, 0.2), kind))
    assert len(caplog.records) == warns
    if warns:
        assert f"the label mapping was fitted to {fitted}" in caplog.text
