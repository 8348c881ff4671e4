"""Rule 3, the endpoint's part: one refused image ends no run that is paid for, and is named."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
from wire.fakes import answered, client, picture

from pgn_client.errors import BudgetExceededError, InvalidRequestError
from pgn_client.evaluation.queries import Asker, neutral
from pgn_client.types import Answer

FILES = 12


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{i:02}.png" for i in range(FILES)]
    for i, path in enumerate(paths):
        picture(i).save(path)
    return paths


def refusing(numbers):
    """Return an endpoint that refuses the images with these numbers, in the order of arrival."""
    seen = []

    def server(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        seen.append(request)
        number = len(seen) - 1
        return httpx.Response(422, json={"error": "no face"}) if number in numbers else answered()

    server.seen = seen
    return server


def asking(c, allowed):
    return Asker(lambda adapter: c.with_options(pgn_ckpt=adapter), allowed)


def test_an_allowed_failure_counts_as_an_answer_that_says_nothing(files):
    with client(refusing({5}), protocol="pgn", max_concurrency=1) as c:
        ask = asking(c, 1)
        answers = ask(files)
    assert len(answers) == FILES
    assert answers[5] == Answer(("a", "b"), (0.5, 0.5))
    assert answers[6].scores == (0.75, 0.25)
    assert "05.png" in ask.remark()


def test_one_more_than_allowed_ends_the_run_by_its_name(files):
    server = refusing({3, 7})
    with (
        client(server, protocol="pgn", max_concurrency=1) as c,
        pytest.raises(InvalidRequestError, match=r"07\.png: .*no face"),
    ):
        asking(c, 1)(files)


def test_the_same_image_in_several_rows_counts_once(files):
    with client(refusing({5, 5 + FILES}), protocol="pgn", max_concurrency=1) as c:
        ask = asking(c, 1)
        ask(files)
        ask(files)
        assert len(ask.failures) == 1


def test_a_spent_budget_is_no_failure_of_an_image(files):
    with (
        client(refusing(()), protocol="pgn", budget=5, max_concurrency=1) as c,
        pytest.raises(BudgetExceededError),
    ):
        asking(c, 100)(files)


def test_an_endpoint_that_answers_nothing_is_an_error(files):
    with (
        client(refusing(range(99)), protocol="pgn") as c,
        pytest.raises(InvalidRequestError),
    ):
        asking(c, 100)(files)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("probabilities", (1 / 3,) * 3), ("logits", (0.0,) * 3), ("embedding", (1.0, 2.0, 3.0))],
)
def test_a_neutral_answer_has_the_form_of_the_others(kind, expected):
    answers = [
        Answer(("a", "b", "c"), (0.0, 1.0, 2.0), kind),
        Answer(("a", "b", "c"), (2.0, 3.0, 4.0), kind),
    ]
    found = neutral(answers)
    assert found.kind == kind
    assert np.allclose(found.scores, expected)


def test_a_neutral_label_is_the_one_returned_most_often():
    answers = [Answer((label,), (1.0,), "label") for label in ("a", "b", "b")]
    assert neutral(answers).labels == ("b",)


def test_answer_many_yields_failures_in_order(files):
    with client(refusing({2}), protocol="pgn", max_concurrency=1) as c:
        results = list(c.answer_many(files))
    assert [type(result).__name__ for result in results] == [
        "ImageFailure" if i == 2 else "Answer" for i in range(FILES)
    ]
    assert json.dumps([result.image for result in results if hasattr(result, "image")])
