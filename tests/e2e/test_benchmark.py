"""``pgn benchmark`` and several tasks in one checkpoint: real server, real digits, trainings of a
moment.
"""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pgn_client import PromptAdapter
from pgn_client.cli import main
from pgn_client.errors import ConfigurationError
from pgn_client.evaluation.benchmark import summarise
from tests.e2e.conftest import dealt_out, pgn

pytestmark = pytest.mark.slow

LIMITS = ["--train", "40", "--val", "30", "--test", "40", "--epochs", "1"]
METHODS = ["pgn@small", "padding", "vpt_shallow"]


@pytest.fixture(scope="module")
def data(digits, tmp_path_factory):
    """Digits with a test split of their own."""
    return dealt_out(digits, tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="module")
def bench(data, tmp_path_factory):
    """A finished benchmark: three methods on one set; and what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    done = pgn(
        "benchmark", data, "--methods", *METHODS, *LIMITS, "--seeds", "0", "1", "--out", folder
    )
    assert done.returncode == 0, done.stderr
    return folder, "digits", done


def table(folder):
    return json.loads((folder / "table.json").read_text())[0]


def rows(folder, name=""):
    return {row["name"]: row for row in table(folder)["rows"][name]}


class TestTable:
    def test_has_the_rivals_the_methods_and_what_is_served(self, bench):
        assert list(rows(bench[0])) == [
            "raw + mapping", "local head", "linear probe", "raw ⊕ local", "linear probe ⊕ local",
            "VP", "VP ⊕ local", "PGN (small)", "PGN (small) ⊕ local", "served", "VPT-shallow",
        ]  # fmt: skip

    def test_white_box_is_marked(self, bench):
        found = rows(bench[0])
        assert [name for name, row in found.items() if not row["deployable"]] == ["VPT-shallow"]
        assert "VPT-shallow †" in (bench[0] / "table.md").read_text()

    def test_accuracy_is_the_mean_over_seeds_of_what_the_files_hold(self, bench):
        folder, name, _ = bench
        hits = []
        for seed in (0, 1):
            run = folder / name / f"all-{seed}"
            answers, targets = (
                np.load(run / "padding.npz")["test"],
                np.load(run / "targets.npz")["test"],
            )
            hits.append((answers.argmax(1) == targets).mean())
        row = rows(folder, name)["VP"]
        assert row["accuracy"] == pytest.approx(np.mean(hits))
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]

    def test_seeds_share_their_test_pictures_but_not_their_training(self, bench):
        folder, name, _ = bench
        first, second = (
            np.load(folder / name / f"all-{seed}" / "targets.npz")["ids"] for seed in (0, 1)
        )
        cards = [
            PromptAdapter.load(folder / name / f"all-{seed}" / "padding.safetensors").info
            for seed in (0, 1)
        ]
        assert (first == second).all()
        assert cards[0]["data"]["digest"] != cards[1]["data"]["digest"]

    def test_http_agrees_with_the_latent_space(self, bench):
        assert rows(bench[0])["PGN (small)"]["agreement"] >= 0.97
        assert rows(bench[0])["VP"]["agreement"] >= 0.97

    def test_a_small_pgn_learns_a_hundred_times_less_than_fine_tuning(self, bench):
        row = rows(bench[0])["PGN (small) ⊕ local"]
        assert 100 * row["learnable"] < 88_224_232

    def test_prints_the_table_and_draws_it(self, bench):
        folder, _, done = bench
        assert "| served |" in done.stdout
        with Image.open(folder / "table-all.png") as image:
            assert min(image.size) > 200


class TestResume:
    def test_what_is_there_is_not_done_again(self, bench, data):
        folder, name, _ = bench
        stamps = {p: p.stat().st_mtime_ns for p in (folder / name).rglob("*.json")}
        done = pgn(
            "benchmark", data, "--methods", *METHODS, *LIMITS, "--seeds", "0", "1", "--out", folder
        )
        assert done.returncode == 0
        assert {p: p.stat().st_mtime_ns for p in (folder / name).rglob("*.json")} == stamps

    def test_a_run_that_is_missing_is_done(self, bench, data):
        folder, name, _ = bench
        run = folder / name / "all-0" / "padding.json"
        before = json.loads(run.read_text())
        run.unlink()
        done = pgn(
            "benchmark", data, "--methods", *METHODS, *LIMITS, "--seeds", "0", "1", "--out", folder
        )
        assert done.returncode == 0
        again = json.loads(run.read_text())
        assert {k: v for k, v in again.items() if k != "seconds"} == {
            k: v for k, v in before.items() if k != "seconds"
        }

    def test_other_settings_are_not_mixed_in(self, bench, data):
        done = pgn("benchmark", data, "--methods", "padding", *LIMITS[:-1], "2", "--out", bench[0])
        assert done.returncode == 2
        assert "differ in epochs" in done.stderr

    def test_another_endpoint_is_refused_also_when_nothing_is_missing(self, bench, data):
        everything = [
            "benchmark",
            data,
            "--methods",
            *METHODS,
            *LIMITS,
            "--seeds",
            "0",
            "1",
            "--out",
            bench[0],
        ]
        done = pgn(*everything, "--profile", "direct")
        assert done.returncode == 2
        assert "differ in profile" in done.stderr

    def test_a_table_of_runs_that_are_not_there_is_refused(self, bench):
        with pytest.raises(
            ConfigurationError, match="is missing or damaged; run the benchmark first"
        ):
            summarise(bench[0], [bench[1]], ["low_rank"], [0], None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "magic"], "'magic'"),
        (["--methods", "pgn@huge"], "'huge'"),
        (["--shots", "0"], "--shots: got '0'"),
        (["--layout", "full"], "layout: got full"),
    ],
)
def test_nonsense_is_refused_in_one_line(digits, tmp_path, capsys, arguments, words):
    assert main(["benchmark", str(digits), "--out", str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def several(digits, tmp_path_factory):
    """One prompt for two tasks: even and odd digits."""
    folder = tmp_path_factory.mktemp("several")
    for name, wanted in (("even", "02468"), ("odd", "13579")):
        for digit in wanted:
            shutil.copytree(digits / digit, folder / name / digit)
    out = folder / "both.safetensors"
    done = pgn(
        "train", folder / "even", folder / "odd", "--out", out, "--epochs", "1", "--shots", "8"
    )
    assert done.returncode == 0, done.stderr
    return folder


class TestSeveralTasks:
    def test_each_has_a_checkpoint_of_its_own_with_the_same_prompts(self, several):
        picture = Image.open(next((several / "odd" / "7").iterdir())).convert("RGB")
        both, even, odd = (
            PromptAdapter.load(several / f"both{x}.safetensors") for x in ("", ".even", ".odd")
        )
        sent = [np.asarray(a([picture])[0]) for a in (both, even, odd)]
        assert (sent[0] == sent[1]).all()
        assert (sent[0] == sent[2]).all()
        assert odd.info["classes"] == ["1", "3", "5", "7", "9"]
        assert both.info["classes"] == [f"even/{d}" for d in "02468"] + [
            f"odd/{d}" for d in "13579"
        ]

    def test_its_answers_are_those_of_the_whole_among_its_own_classes(self, several):
        whole, odd = (PromptAdapter.load(several / f"both{x}.safetensors") for x in ("", ".odd"))
        x = np.log(np.random.default_rng(0).dirichlet(np.ones(len(whole.mapping.source)), size=4))
        expected = whole.mapping.log_probs(x)[:, 5:]
        expected -= np.log(np.exp(expected).sum(1, keepdims=True))
        np.testing.assert_allclose(odd.mapping.log_probs(x), expected, atol=1e-6)

    def test_it_serves_like_any_other(self, several, server):
        picture = next((several / "odd" / "7").iterdir())
        done = pgn(
            "predict",
            picture,
            "--url",
            server,
            "--ckpt",
            several / "both.odd.safetensors",
            "--json",
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["label"] in "13579"

    def test_the_card_tells_the_data_of_each(self, several):
        both, odd = (
            PromptAdapter.load(several / f"both{x}.safetensors").info for x in ("", ".odd")
        )
        assert odd["data"] == both["data"]["parts"]["odd"]
        assert odd["fusion"] == both["parts"]["odd"]["fusion"]

    def test_an_unknown_task_is_told_the_known_ones(self, several):
        with pytest.raises(ConfigurationError, match=r"'prime'.*even, odd"):
            PromptAdapter.load(several / "both.safetensors").for_task("prime")
