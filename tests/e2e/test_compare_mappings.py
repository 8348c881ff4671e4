"""The plumbing of ``benchmarks/compare_mappings.py``."""

import numpy as np
import pytest

from tests.e2e.conftest import dealt_out, load_script, run_script

pytestmark = pytest.mark.slow


def test_every_kind_is_told_for_every_set(digits, tmp_path, monkeypatch, capsys):
    data = dealt_out(digits, tmp_path / "digits")
    words = [data, "--model", "bundled", "--train", "60", "--test", "40"]
    head, *rows = run_script(
        load_script("compare_mappings"), words, monkeypatch, capsys
    ).splitlines()
    assert head.split()[:2] == ["digits", "mean"]
    found = {row.split()[0]: [float(x) for x in row.split()[1:3]] for row in rows}
    assert list(found) == ["ilm", "blm", "blm+", "linear"]
    assert all(one == mean for one, mean in found.values())
    assert found["linear"][0] > 0.3  # chance is 0.1


def test_differences_are_to_blm_plus_picture_by_picture():
    row = np.array([1.0, 1.0, 0.0, 0.0])
    printed = load_script("compare_mappings").table(
        {"a": {"ilm": row, "blm+": 1 - row}, "b": {"ilm": row, "blm+": row * 0}}
    )
    ilm, blm_plus = printed.splitlines()[1:]
    assert ilm.split()[1:5] == ["0.500", "0.500", "0.500", "+25.0"]
    assert blm_plus.split()[4] == "+0.0"
