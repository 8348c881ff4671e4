"""Mutated answers, in the short form; the long one: ``python -m tests.campaign answers``."""

import pytest

from tests.campaign.cases import assert_no_fault


def test_an_odd_answer_is_an_answer_or_an_error_in_time_and_every_image_is_counted():
    assert_no_fault("answers", cases=78)


@pytest.mark.slow
def test_many_odd_answers_are_answers_or_errors_in_time_and_every_image_is_counted():
    assert_no_fault("answers", cases=520, start=78)
