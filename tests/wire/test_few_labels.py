from __future__ import annotations

import logging

import numpy as np
import pytest

from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.types import Answer
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.loaded_adapter import LoadedAdapter
from pgn_client.wire.prediction import warn_of_few_labels

from .fakes import Server, ToyAdapter, answered, client, picture

SOURCE = ("a", "b", "c")


def mapping(open: bool = False) -> LabelMapping:
    return LabelMapping("blm+", SOURCE, ("x", "y"), np.ones((3, 2)), np.zeros(2), open)


@pytest.mark.parametrize(
    ("labels", "top_k", "open", "told"),
    [
        (SOURCE, None, False, False),
        (("a", "b"), None, False, True),
        (("a", "b"), 2, False, False),  # it was trained for the top 2
        (("a",), 2, False, True),
        (("a",), None, True, False),  # pgn map fitted it to what this endpoint says
    ],
)
def test_an_answer_of_fewer_labels_than_the_mapping_was_fitted_on_is_told(
    labels, top_k, open, told, caplog
):
    adapter = ToyAdapter(recipe={"top_k": top_k})
    adapter.mapping = mapping(open)
    with caplog.at_level(logging.WARNING, "pgn_client"):
        warn_of_few_labels(
            LoadedAdapter(adapter), Endpoint("http://h"), Answer(labels, (0.5,) * len(labels))
        )
    assert bool(caplog.records) == told


def test_it_is_told_once(caplog):
    adapter = ToyAdapter()
    adapter.mapping = mapping()
    server = Server([answered(["a"], [0.9])] * 3)
    with caplog.at_level(logging.WARNING, "pgn_client"), client(server, adapter) as c:
        for seed in range(3):
            c.classify(picture(seed))
    assert sum("fitted on 3" in record.getMessage() for record in caplog.records) == 1
