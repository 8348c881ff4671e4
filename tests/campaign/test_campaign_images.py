"""Damaged images, in the short form; the long one: ``python -m tests.campaign images``."""

import pytest

from tests.campaign.cases import assert_no_fault


def test_a_damaged_image_is_a_prediction_or_an_image_error():
    assert_no_fault("images", cases=300)


def test_a_folder_of_damaged_images_loses_none_of_them():
    assert_no_fault("folders", cases=2)


@pytest.mark.slow
def test_a_folder_of_large_images_takes_bounded_memory():
    assert_no_fault("folders", cases=1, start=19)
