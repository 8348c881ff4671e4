"""Crafted files, in the short form; the long one: ``python -m tests.campaign documents``."""

import pytest

from tests.campaign.cases import assert_no_fault


def test_a_crafted_file_is_a_configuration_error_or_works():
    assert_no_fault("documents", cases=210)


@pytest.mark.slow
def test_many_crafted_files_are_configuration_errors_or_work():
    assert_no_fault("documents", cases=1050, start=210)
