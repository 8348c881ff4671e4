"""What a client serves is what an evaluation computes: one fusion, one gate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgn_client.mapping.fusion import fuse, gate
from pgn_client.types import Answer, Reply
from pgn_client.wire.prediction import ranked

from .fakes import Server, ToyAdapter, answered, client, picture

probability = st.floats(min_value=0.0, max_value=1.0)
threshold = st.none() | probability


def two(first: float) -> np.ndarray:
    """The log-probabilities of two classes, one of which may have none."""
    with np.errstate(divide="ignore"):
        return np.log([[first, 1 - first]])


@given(endpoint=probability, local=probability, alpha=probability, query_below=threshold)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_served_and_evaluated_log_probabilities_agree_and_choose_the_same_label(
    endpoint: float, local: float, alpha: float, query_below: float | None
) -> None:
    both = fuse(two(endpoint), two(local), alpha)
    expected = gate(both, two(local), query_below)[0]
    server = Server([answered(scores=(endpoint, 1 - endpoint))])
    with client(server, ToyAdapter([local, 1 - local]), fusion=alpha, query_below=query_below) as c:
        served = c.classify(picture())
    found = two(served.scores["x"])[0] if served.scores["x"] else np.array([-np.inf, 0.0])
    np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=1e-9)
    assert served.label == "xy"[int(expected.argmax())]


def test_log_probabilities_that_round_to_the_same_probability_are_still_ranked() -> None:
    served = ranked(
        ("a", "b", "c"), np.array([-800.0, -790.0, 0.0]), "both", Reply(Answer((), ())), log=True
    )
    assert list(served.scores.items()) == [("c", 1.0), ("b", 0.0), ("a", 0.0)]
