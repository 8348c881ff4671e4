"""``benchmarks/compare_expres.py`` and ``benchmarks/serve_tenants.py``: resumable runs, tables that are true."""

import json

import numpy as np
import pytest

from tests.e2e.conftest import dealt_out, load_script, run_script

compare, serve = load_script("compare_expres"), load_script("serve_tenants")


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    return dealt_out(digits, tmp_path_factory.mktemp("dealt"))


def test_runs_are_kept_and_the_table_is_of_them(folder, tmp_path, monkeypatch, capsys):
    out, plot = tmp_path / "runs.jsonl", tmp_path / "plot.png"
    variants = ("linear_probe", "expres", "vpt_deep", "expres, 1 prompts", "pgn")
    words = [f"{folder}:none", "--backbone", "bundled", "--variants", *variants, "--seeds", "0", "--epochs", "1"]
    words += ["--train", "20", "--val", "10", "--test", "30", "--out", out, "--plot", plot]
    printed = run_script(compare, words, monkeypatch, capsys)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["variant"] for row in rows] == list(variants)
    by_name = {row["variant"]: np.mean(row["hits"]) for row in rows}
    for name in variants:
        line = next(line for line in printed.splitlines() if line.startswith(f"{name}  "))
        gap = 100 * (by_name[name] - by_name["expres"])
        assert f"{by_name[name]:.3f}" in line
        assert f"{gap:+.1f} [" in line
    assert rows[1]["learnable"] - rows[3]["learnable"] == 9 * 192 * (1 + 5 * 6)
    assert plot.stat().st_size > 5000
    assert "468,480" in printed
    assert f"expres, 1 prompts: {by_name['expres, 1 prompts']:.3f}; vpt_deep reaches that with" in printed
    before = out.read_bytes()
    assert run_script(compare, words, monkeypatch, capsys) == printed
    assert out.read_bytes() == before, "what is there is not run again"


def test_tenants_are_measured(monkeypatch, capsys):
    printed = run_script(serve, ["--turns", "2"], monkeypatch, capsys)
    assert printed.count("same labels: 32 of 32") == 2
    assert printed.count("times the throughput") == 2
    assert "200 tenants:   49.17 MB of numbers" in printed
    assert "another's name" in printed
