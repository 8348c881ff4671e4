"""Damaged checkpoints, in the short form; the long one: ``python -m tests.campaign
checkpoints``.
"""

import pytest

from tests.campaign.cases import assert_no_fault


def test_a_damaged_checkpoint_is_a_checkpoint_error_or_works():
    assert_no_fault("checkpoints", cases=160)


@pytest.mark.slow
def test_many_damaged_checkpoints_are_checkpoint_errors_or_work():
    assert_no_fault("checkpoints", cases=1000, start=160)
