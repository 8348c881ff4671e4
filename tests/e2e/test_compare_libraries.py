"""The plumbing of ``benchmarks/compare_libraries.py``: what it keeps, and what it prints."""

import json

import pytest

from tests.e2e.conftest import dealt_out, load_script, run_script

pytestmark = pytest.mark.slow

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
    assert list(raw["hits"]) == ["http_png", "jpeg95_444", "jpeg75_420"]
    assert pixel["agreement"]["clipped"] == 1
    assert (lossy["inversion"], inverted["inversion"]) == ("exact", "pseudo_inverse")
    assert inverted["reach"]["pseudo_inverse"] >= inverted["reach"]["bounded"]
    rows = {
        line[:30].strip(): line[30:].split() for line in printed.splitlines() if line[:1].islower()
    }
    shares = {stage: hits.count("1") / 40 for stage, hits in pixel["hits"].items()}
    assert [float(x) for x in rows["pixel"]] == pytest.approx(
        [*shares.values(), pixel["trained"]], abs=1e-3
    )
    _, differences = printed.split("\n\n")
    paired = {line[:66].strip(): float(line[66:].split()[0]) for line in differences.splitlines()}
    costs = shares["http_png"] - shares["jpeg75_420"]
    assert paired["pixel: what JPEG 75 4:2:0 costs"] == pytest.approx(100 * costs, abs=0.05)
    of_raw = (raw["hits"]["http_png"].count("1") - raw["hits"]["jpeg75_420"].count("1")) / 40
    assert paired["pixel - raw: what JPEG 75 4:2:0 costs"] == pytest.approx(
        100 * (costs - of_raw), abs=0.05
    )


def test_seeds_are_averaged_picture_by_picture():
    script = load_script("compare_libraries")
    stages = ("http_png", "jpeg75_420", "http_off")

    def line(variant, seed, hits):
        return {"variant": variant, "seed": seed, "hits": dict.fromkeys(stages, hits)}

    rows = script.averaged(
        [line("pixel", 0, "1100"), line("pixel", 1, "1000"), line("grey frame", 0, "0000")]
    )
    assert rows["pixel"]["http_png"].tolist() == [1, 0.5, 0, 0]
    told = "\n".join(script.differences(rows))
    assert "grey frame - pixel, over HTTP" in told
    assert "pixel - grey frame, http_off" in told
    assert "-37.5" in told
