"""What a benchmark's table says, computed from runs that are written here by hand; real runs are in
e2e.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.evaluation.benchmark import Plan, markdown, summarise
from pgn_client.evaluation.benchmark.runs import Cell, missing_rows

N, C = 40, 4
TARGETS = np.arange(N) % C


def log_probs(wrong, sure=0.9):
    """Answers of which the first ``wrong`` are not the target."""
    answer = np.where(np.arange(N) < wrong, (TARGETS + 1) % C, TARGETS)
    p = np.full((N, C), (1 - sure) / (C - 1))
    p[np.arange(N), answer] = sure
    return np.log(p)


def write(out, name, row, wrong, *, local=None, seed=0, learnable=None, **record):
    """One run: how many test (and validation) images it has wrong."""
    folder = out / name / f"all-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.array([f"{TARGETS[i]}/{i:03}.png" for i in range(N)])
    np.savez(folder / "targets.npz", val=TARGETS, test=TARGETS, ids=ids)
    arrays = {"val": log_probs(wrong), "test": log_probs(wrong)}
    if local is not None:
        arrays |= {"local_val": log_probs(local, 0.5), "local_test": log_probs(local, 0.5)}
    np.savez(folder / f"{row}.npz", **arrays)
    split = {"train": 9, "val": N, "test": N}
    counts = {"prompt": 5, "mapping": 7, "local": 3, "classifier": 11} | (learnable or {})
    text = json.dumps({"row": row, "split": split, "queries": N, "learnable": counts} | record)
    (folder / f"{row}.json").write_text(text)


@pytest.fixture
def out(tmp_path):
    """Two sets, two seeds, PGN and VP: PGN has 4 (easy) or 8 (hard) of 40 wrong in seed 0, 2 more
    in seed 1.
    """
    for name, wrong in (("easy", 4), ("hard", 8)):
        for seed in (0, 1):
            write(tmp_path, name, "raw", wrong + 12, seed=seed)
            write(tmp_path, name, "linear_probe", wrong + 10, seed=seed)
            more = wrong + 2 * seed
            write(
                tmp_path,
                name,
                "pgn",
                more,
                local=30,
                seed=seed,
                seconds=10 + seed,
                agreement=1 - 0.01 * seed,
            )
            prompt = {"prompt": 2}
            write(
                tmp_path,
                name,
                "padding",
                wrong + 8,
                local=30,
                seed=seed,
                seconds=5,
                agreement=1.0,
                learnable=prompt,
            )
    return tmp_path


def table(out, specs=("pgn", "padding"), seeds=(0, 1), sets=("easy", "hard")):
    return summarise(out, list(sets), list(specs), list(seeds), None)


def rows(summary, name=""):
    return {row.name: row for row in summary.rows[name]}


class TestSummary:
    def test_accuracy_is_the_mean_over_seeds_and_then_over_sets(self, out):
        found = table(out)
        assert rows(found, "easy")["PGN"].accuracy == pytest.approx(1 - 5 / N)
        assert rows(found)["PGN"].accuracy == pytest.approx(1 - 7 / N)

    def test_seeds_count_as_one_set_of_pictures(self, out):
        both, one = (rows(table(out, seeds=s), "easy")["VP"] for s in ((0, 1), (0,)))
        assert both.ci95 == one.ci95  # the seeds agree on all images: as sure as one, not surer

    def test_an_interval_never_has_no_width(self, out):
        for seed in (0, 1):
            write(out, "easy", "pgn", 0, local=30, seed=seed)
        row = rows(table(out), "easy")["PGN"]
        assert row.accuracy == row.ci95[1] == 1
        assert row.ci95[0] < 0.95

    def test_difference_is_paired_and_averaged(self, out):
        found = {(d.a, d.b, d.set): d for d in table(out).paired}
        assert found["PGN", "VP", "easy"].difference == pytest.approx(7 / N)
        mean = found["PGN", "VP", ""]
        assert mean.difference == pytest.approx(7 / N)
        assert mean.ci95[0] <= mean.difference <= mean.ci95[1]

    def test_agreement_is_the_least(self, out):
        assert rows(table(out))["PGN"].agreement == pytest.approx(0.99)

    def test_fusion_is_chosen_on_validation(self, out):
        """The local head is wrong on 30 of 40: it gets no say, and the fused row is the prompt
        alone.
        """
        found = rows(table(out))
        assert found["PGN ⊕ local"].accuracy == found["PGN"].accuracy

    def test_served_is_the_best_by_far(self, out):
        assert rows(table(out))["served"].accuracy == rows(table(out))["PGN"].accuracy

    def test_the_order_of_methods_changes_nothing_that_is_said(self, out):
        for name in ("easy", "hard"):
            for seed in (0, 1):  # VP and PGN alike: the cheaper is served
                write(out, name, "padding", 4, local=30, seed=seed, learnable={"prompt": 2})
                write(out, name, "pgn", 4, local=30, seed=seed)
        first, second = table(out, ("pgn", "padding")), table(out, ("padding", "pgn"))
        assert first == second

    def test_learnable_counts_what_has_a_say(self, out):
        found = rows(table(out))
        assert found["PGN"].learnable == 5 + 7
        assert found["PGN ⊕ local"].learnable == 5 + 7 + 3
        assert found["local head"].learnable == 11
        assert found["raw ⊕ local"].learnable == 7 + 11
        assert found["linear probe ⊕ local"].learnable == 7 + 11
        assert found["served"].learnable is None

    def test_white_box_is_compared_with_but_never_served(self, out):
        for name in ("easy", "hard"):
            for seed in (0, 1):
                write(out, name, "vpt_deep", 0, seed=seed, white_box=True, learnable={"local": 0})
        found = table(out, ("pgn", "padding", "vpt_deep"))
        assert not rows(found)["VPT-deep"].deployable
        assert rows(found)["served"].accuracy < rows(found)["VPT-deep"].accuracy
        assert ("PGN", "VPT-deep") in {(d.a, d.b) for d in found.paired}

    def test_the_curve_ends_at_the_local_head_and_at_the_fused_row(self, out):
        found = table(out)
        for name in ("easy", "hard"):
            (none, local), *_, (all_sent, fused) = found.curves[name]
            assert (none, all_sent) == (0, 1)
            assert local == pytest.approx(rows(found, name)["local head"].accuracy)
            assert fused == pytest.approx(rows(found, name)["PGN ⊕ local"].accuracy)

    def test_without_a_plain_pgn_another_ones_head_is_told(self, out):
        assert table(out, ["padding"]).head == "VP"
        assert "local head of VP" in markdown([table(out, ["padding"])])

    def test_a_run_that_is_not_there_or_damaged_is_refused(self, out):
        with pytest.raises(
            ConfigurationError, match="is missing or damaged; run the benchmark first"
        ):
            table(out, ["pgn", "low_rank"])
        (out / "easy" / "all-0" / "pgn.json").write_text("{")
        with pytest.raises(
            ConfigurationError, match="is missing or damaged; run the benchmark first"
        ):
            table(out)


class TestMarkdown:
    def test_only_means_that_exclude_zero_are_bold(self, out):
        line = next(x for x in markdown([table(out)]).splitlines() if x.startswith("| PGN − VP"))
        assert line.count("**") == 2
        assert line.rstrip(" |").endswith("**")

    def test_says_how_many_times_fewer(self, out):
        assert f"{88_224_232 / 12:.0f} ×" in markdown([table(out)])


PLAN = Plan({"easy": Path("easy")}, ("pgn",))


class TestPlan:
    def test_methods_are_named_once(self):
        assert replace(
            PLAN, methods=("pgn", "pgn@default", "pgn@small", "pgn")
        ).checked().methods == (
            "pgn",
            "pgn@small",
        )

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"methods": ("magic",)}, "'magic'"),
            ({"methods": ("pgn@huge",)}, "'huge'"),
            ({"methods": ("padding@small",)}, "padding has no presets"),
            ({"methods": ("vpt_deep",)}, "at least one that an endpoint can serve"),
            ({"augment": {"easy": "filp"}}, "'filp'"),
            ({"epochs": 0}, "epochs 0"),
        ],
    )
    def test_nonsense_is_refused_before_anything_is_done(self, change, words):
        with pytest.raises(ConfigurationError, match=words):
            replace(PLAN, **change).checked()

    def test_seeds_come_outermost(self):
        plan = replace(PLAN, sets={"a": Path("a"), "b": Path("b")}, seeds=(0, 1))
        assert [(c.set, c.seed) for c in plan.cells()] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]

    def test_what_is_missing_is_what_has_no_mark(self, out):
        assert missing_rows(
            out, Cell("easy", None, 0), replace(PLAN, methods=("pgn", "low_rank"))
        ) == ["low_rank"]

    def test_all_seeds_are_tested_on_the_same_pictures_and_on_no_training_picture(
        self, make_folder, tmp_path
    ):
        """Also where the folder has no test split of its own."""
        plan = Plan(
            {"plain": make_folder(tmp_path / "plain", 15)}, ("pgn",), test=6, train=12, val=6
        )
        first, second = (Cell("plain", None, seed).task(plan) for seed in (0, 1))
        assert first.test.paths == second.test.paths
        assert first.train.paths != second.train.paths
        for task in (first, second):
            assert not {*task.train.paths, *task.val.paths} & {*first.test.paths}
