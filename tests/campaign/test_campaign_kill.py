"""Killed commands, in the short form; the long one: ``python -m tests.campaign kill``."""

import pytest

from tests.campaign.cases import assert_no_fault


def test_a_killed_run_goes_on_and_its_ledger_counts_what_was_sent():
    assert_no_fault("kill", cases=3)


@pytest.mark.slow
def test_every_command_goes_on_after_it_was_killed():
    assert_no_fault("kill", cases=12, start=3)
