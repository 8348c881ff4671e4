"""The plumbing of ``benchmarks/ablate_recipe.py``: what it opens, what it keeps, what it prints."""

import json

import pytest

from tests.e2e.conftest import dealt_out, load_script, run_script

pytestmark = pytest.mark.slow

SMALL = ["--backbone", "bundled", "--train", "40", "--val", "30", "--dev", "50", "--epochs", "1"]


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory):
    """Digits with splits; the test images cannot be read, so that opening one would be seen."""
    folder = dealt_out(digits, tmp_path_factory.mktemp("ablation") / "digits")
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"not to be opened")
    return folder


@pytest.fixture(scope="module")
def script():
    return load_script("ablate_recipe")


@pytest.fixture
def ablate(script, data, monkeypatch, capsys, tmp_path):
    def run(*only):
        words = [data, *SMALL, "--out", tmp_path / "ablation.jsonl", "--only", *only]
        return run_script(script, words, monkeypatch, capsys), (
            tmp_path / "ablation.jsonl"
        ).read_text()

    return run


def test_variants_are_measured_on_the_same_pictures_and_run_once(ablate):
    _, kept = ablate("default", "forward ring")
    printed, lines = ablate("default", "no_prompt", "forward ring")
    assert lines.startswith(kept)
    first, neutral, control = map(json.loads, lines.splitlines())
    assert {len(hits) for line in (first, control) for hits in line["hits"].values()} == {50}
    assert first["hits"]["raw"] == control["hits"]["raw"]
    assert neutral["variant"] == "forward ring"
    rows = {line.split("  ")[0]: line.split() for line in printed.splitlines()}
    for line in (first, control):
        accuracy = sum(map(int, line["hits"]["prompt"])) / 50
        assert float(rows[line["variant"]][1]) == pytest.approx(accuracy, abs=1e-3)
    difference = 2 * sum(
        int(a) - int(b)
        for a, b in zip(control["hits"]["prompt"], first["hits"]["prompt"], strict=True)
    )
    assert float(rows["no_prompt"][2]) == pytest.approx(difference, abs=0.1)


def test_nothing_is_both_trained_on_and_measured(script, data):
    task = script.splits(data, 40, 30, 50, 0)
    parts = [set(split.paths) for split in (task.train, task.val, task.test)]
    assert [len(part) for part in parts] == [40, 30, 50]
    assert len(set.union(*parts)) == 120
    assert {path.parts[-3] for path in task.train.paths + task.test.paths} == {"train"}
