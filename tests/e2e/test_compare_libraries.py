"""The plumbing of ``benchmarks/compare_libraries.py``: what it keeps, and what it prints."""

import json

import pytest

from tests.e2e.conftest import dealt_out, load_script, run_script

SMALL = ["--backbone", "bundled", "--train", "40", "--val", "30", "--test", "40", "--epochs", "1"]


@pytest.fixture
def compare(digits, monkeypatch, capsys, tmp_path):
    script = load_script("compare_libraries")
    data = dealt_out(digits, tmp_path / "digits")

    def run(*only):
        words = [data, *SMALL, "--out", tmp_path / "kept.jsonl", "--only", *only]
        return run_script(script, words, monkeypatch, capsys), (tmp_path / "kept.jsonl").read_text()

    return run


def test_every_stage_is_told_and_what_is_there_is_not_run_again(compare):
    _, kept = compare("raw", "pixel")
    printed, lines = compare("raw", "pixel", "smooth, JPEG in the loop", "latent, pseudo-inverse")
    assert lines.startswith(kept)
    raw, pixel, lossy, inverted = map(json.loads, lines.splitlines())
    assert raw["variant"] == "raw"
    assert {"http_png", "jpeg95_444", "jpeg75_420"} <= set(raw)
    assert pixel["agreement"]["clipped"] == 1
    assert pixel["http_png"] == pixel["hits"].count("1") / 40
    assert (lossy["inversion"], inverted["inversion"]) == ("exact", "pseudo_inverse")
    assert inverted["reach"]["pseudo_inverse"] >= inverted["reach"]["bounded"]
    rows = {line[:30].strip(): line[30:].split() for line in printed.splitlines()}
    assert float(rows["raw"][0]) == pytest.approx(raw["http_png"], abs=1e-3)
    assert float(rows["pixel"][4]) == pytest.approx(pixel["http_png"], abs=1e-3)
    assert float(rows["pixel"][7]) == pytest.approx(100 * (pixel["http_png"] - pixel["jpeg75_420"]), abs=0.1)
