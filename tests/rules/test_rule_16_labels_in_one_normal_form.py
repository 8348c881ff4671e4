"""Labels of answers, class names and label options are compared after Unicode normalization."""

import json
import unicodedata

import numpy as np
import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.mapping.label_mapping import LabelMapping, fit, log_scores, vocabulary
from pgn_client.types import Answer
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import WireResponse, open_protocol

COMPOSED = ("café", "über", "niño")
DECOMPOSED = tuple(unicodedata.normalize("NFD", name) for name in COMPOSED)
FORMS = pytest.mark.parametrize(
    ("one", "other"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)], ids=["NFC-NFD", "NFD-NFC"]
)


def bound(protocol, labels):
    return open_protocol(Endpoint("https://h", protocol=protocol, model="m", labels=labels))


def ok(document):
    return WireResponse(200, {}, json.dumps(document).encode())


@FORMS
def test_a_mapping_reads_labels_of_the_other_form(one, other):
    row = log_scores([Answer(one, (0.7, 0.2, 0.1))], other)[0]
    assert np.exp(row) == pytest.approx((0.7, 0.2, 0.1))
    mapping = LabelMapping("identity", other, other, np.eye(3), np.zeros(3))
    assert np.exp(mapping([Answer(one, (0.7, 0.2, 0.1))])[0]) == pytest.approx((0.7, 0.2, 0.1))


@FORMS
def test_the_identity_is_tried_where_classes_and_labels_have_other_forms(one, other):
    features = np.log(np.full((6, 3), 0.1) + 0.7 * np.eye(3)[[0, 1, 2, 0, 1, 2]])
    fitted = fit(features, np.array([0, 1, 2, 0, 1, 2]), one, other, kinds=("identity",))
    assert np.array_equal(fitted.mapping.weight, np.eye(3))


def test_twins_are_one_source_label():
    answers = [Answer(COMPOSED, (0.5, 0.3, 0.2)), Answer(DECOMPOSED, (0.5, 0.3, 0.2))]
    assert vocabulary(answers) == tuple(sorted(COMPOSED))


@FORMS
def test_a_chat_names_a_label_in_the_other_form(one, other):
    document = {"choices": [{"message": {"content": json.dumps({"label": one[0]})}}]}
    (answer,) = bound("openai", other).decode(ok(document))
    assert answer.labels == (other[0],)


@FORMS
def test_zero_shot_labels_may_come_back_in_the_other_form(one, other):
    document = [{"label": name, "score": 0.3} for name in one]
    (answer,) = bound("huggingface-zero-shot", other).decode(ok(document))
    assert answer.labels == one


def test_twins_are_no_different_labels_to_choose_from():
    with pytest.raises(ConfigurationError, match="got 2 of which 1 differ"):
        bound("huggingface-zero-shot", (COMPOSED[0], DECOMPOSED[0]))
