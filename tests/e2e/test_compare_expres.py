"""``benchmarks/compare_expres.py`` and ``benchmarks/serve_tenants.py``: resumable runs, tables that
are true.
"""

import json

import numpy as np
import pytest

from tests.e2e.conftest import dealt_out, load_script, run_script

pytestmark = pytest.mark.slow

compare, serve = load_script("compare_expres"), load_script("serve_tenants")


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    return dealt_out(digits, tmp_path_factory.mktemp("dealt"))


def test_runs_are_kept_and_the_table_is_of_them(folder, tmp_path, monkeypatch, capsys):
    out, plot = tmp_path / "runs.jsonl", tmp_path / "plot.png"
    variants = ("linear_probe", "expres", "vpt_deep", "expres, 1 prompts", "pgn")
    words = [
        f"{folder}:none",
        "--backbone",
        "bundled",
        "--variants",
        *variants,
        "--seeds",
        "0",
        "--epochs",
        "1",
    ]
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
    assert (
        f"expres, 1 prompts: {by_name['expres, 1 prompts']:.3f}; vpt_deep reaches that with "
    ) in printed
    before = out.read_bytes()
    assert run_script(compare, words, monkeypatch, capsys) == printed
    assert out.read_bytes() == before, "what is there is not run again"
    other = [*words, "--epochs", "2", "--variants", "linear_probe"]
    assert "no set and seed has all points yet" in run_script(compare, other, monkeypatch, capsys)
    assert len(out.read_text().splitlines()) == len(variants) + 1, "other epochs are other runs"
    assert run_script(compare, words, monkeypatch, capsys) == printed, (
        "and are not told beside these"
    )


def runs(**accuracies):
    """Rows of 10 test images: VARIANT=hits of set a and seed 0, or a list of hits of several
    sets.
    """
    return [
        {
            "variant": name.replace("_with_", ", ").replace("_prompts", " prompts"),
            "set": "abc"[i],
            "seed": 0,
        }
        | {"hits": [1] * right + [0] * (10 - right)}
        for name, found in accuracies.items()
        for i, right in enumerate(found)
    ]


def test_how_many_prompts_a_rival_needs():
    found = runs(
        expres=[7, 7],
        expres_with_1_prompts=[5, 4],
        vpt_deep=[5, 5],
        vpt_deep_with_30_prompts=[7, 6],
    )
    means, count = compare.curves(found)
    assert means["expres"] == pytest.approx({1: 0.45, 10: 0.7})
    assert means["vpt_deep"] == pytest.approx({10: 0.5, 30: 0.65})
    assert count == 2
    told = compare.reached(found)
    assert "expres, 1 prompts: 0.450; vpt_deep reaches that with 10 prompts" in told
    assert "expres, 10 prompts: 0.700; vpt_deep reaches that with none of 10, 30 prompts" in told


@pytest.mark.parametrize(
    "found",
    [
        runs(),
        runs(expres=[7]),
        runs(vpt_deep=[7]),
        runs(linear_probe=[3]),
        [{**row, "set": row["variant"]} for row in runs(expres=[7], vpt_deep=[7])],
    ],
)
def test_nothing_is_said_of_what_is_not_there(found):
    assert compare.reached(found) == "accuracy against prompts: no set and seed has all points yet"


def test_only_runs_with_all_points_are_averaged():
    means, count = compare.curves(runs(expres=[7, 1], vpt_deep=[5]))
    assert means == {"expres": {10: 0.7}, "vpt_deep": {10: 0.5}}
    assert count == 1


def test_tenants_are_measured(monkeypatch, capsys):
    printed = run_script(serve, ["--turns", "2"], monkeypatch, capsys)
    assert printed.count("same labels: 32 of 32") == 2
    assert printed.count("times the throughput") == 2
    assert "200 tenants:   49.17 MB of numbers" in printed
    assert "another's name" in printed
