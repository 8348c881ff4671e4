"""``benchmarks/transfer.py``, ``answer_bank.py`` and ``replay.py``: what is answered, kept,
replayed and concluded.
"""

import numpy as np
import pytest

from pgn_client.mapping.label_mapping import log_scores
from pgn_client.surrogate import backbone
from pgn_client.types import Answer
from tests.e2e.conftest import dealt_out, load_script

pytestmark = pytest.mark.slow

ARMS = [
    "iip",
    "pgn",
    "swapped_in_class",
    "random_frames",
    "frames_out_of_fold",
    "swapped",
    "gray_image",
    "blind_trunk",
    "class_prompts",
]


@pytest.fixture(scope="module")
def script():
    return load_script("transfer")


@pytest.fixture(scope="module")
def replay():
    return load_script("replay")


@pytest.fixture(scope="module")
def summary():
    return load_script("transfer_summary")


@pytest.fixture
def collected(script, digits, tmp_path, monkeypatch):
    """A bank of the digits, in which the bundled ViT plays all models."""
    bundled = backbone.load("bundled")
    monkeypatch.setattr(
        script.Models, "by_name", dict.fromkeys((script.VIT, script.LITE0, script.LITE1), bundled)
    )
    bundled.name = script.VIT
    for name, value in (("FIT", 30), ("CHOOSE", 20), ("EPOCHS", 1), ("FOLDS", 2)):
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script, "PAIRS", {(script.VIT, script.LITE0): "all"})
    monkeypatch.setattr(script.augment, "COPIES", 1)
    bank = script.Bank(tmp_path / "bank")
    cell = script.Cell(dealt_out(digits, tmp_path / "digits"), "shift", 0)

    def collect(arms=ARMS):
        script.collect(
            cell, (script.VIT, script.LITE0), arms, bank, script.Models(tmp_path, tmp_path)
        )
        return bank

    return collect


def test_every_arm_is_answered_once_and_concluded_from_the_bank_alone(
    script, summary, collected, tmp_path
):
    collected(["iip"])
    bank = collected()
    (place,) = bank.places()
    assert place == ("digits", 0)
    prompted = {f"{script.LITE0}/{script.VIT}-{arm}" for arm in ARMS}
    plain = {f"{script.LITE0}/{arm}" for arm in ("raw", "frame")}
    others = {"targets", "heads", f"{script.VIT}/local", f"{script.VIT}/features"}
    assert set(bank.names(place)) == prompted | plain | others
    targets = bank.get(place, "targets")
    raw, pgn = (bank.get(place, f"{script.LITE0}/{name}") for name in ("raw", f"{script.VIT}-pgn"))
    assert {part: len(rows) for part, rows in pgn.items()} == {
        "fit": 30,
        "choose": 20,
        "test": 150,
        "copy0": 30,
    }
    assert {"copy0", "copy1", "copy2"} < set(raw)
    assert not set(targets["fit_ids"]) & (set(targets["choose_ids"]) | set(targets["test_ids"]))
    frames, honest = (
        bank.get(place, f"{script.LITE0}/{script.VIT}-{arm}")
        for arm in ("random_frames", "frames_out_of_fold")
    )
    np.testing.assert_array_equal(frames["test"], honest["test"])
    local, heads = (bank.get(place, name) for name in (f"{script.VIT}/local", "heads"))
    same = local["fit"].argmax(axis=1) == heads["fit"].argmax(axis=1)
    assert not same.all()
    same_answers = (frames["fit"] == honest["fit"]).all(axis=1)
    np.testing.assert_array_equal(same_answers, same)
    np.testing.assert_allclose(np.exp(pgn["test"]).sum(axis=1), 1, atol=1e-5)
    before = {path: path.stat().st_mtime_ns for path in bank.root.rglob("*.npz")}
    collected()
    assert before == {path: path.stat().st_mtime_ns for path in bank.root.rglob("*.npz")}
    printed = summary.summarize(bank, summary.Runs(tmp_path / "runs.jsonl"))
    assert "decision: " in printed
    assert "pgn || local, stacked" in printed
    nothing = script.Bank(tmp_path / "nothing")
    assert summary.summarize(nothing, summary.Runs(tmp_path / "runs.jsonl")) == printed


def test_controls_take_prompts_from_where_they_say(script):
    rng = np.random.default_rng(0)
    order = script.derangement(9, rng)
    assert sorted(order) == list(range(9))
    assert not (order == np.arange(9)).any()
    one_hot = np.log(np.eye(3) + 1e-9)
    local = {"fit": one_hot[[0, 0, 1]], "test": one_hot[[0, 1, 2, 0]], "copy0": one_hot[[2, 2, 2]]}
    patches = {"fit": np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1, 1).repeat(3, axis=4)}
    prompts = script.Prompts(None, {}, patches, local)
    donors = [
        script.donors_in_class(prompts, "test", np.random.default_rng(seed)) for seed in range(20)
    ]
    first, second, third, _ = (set(row) for row in zip(*donors, strict=True))
    assert first == {("test", 3)}  # its own part before others, never itself
    assert second == {("fit", 2)}  # none in its own part
    assert third == {("test", 2)}  # none but copies: its own prompt
    frames = script.frames_by_class(prompts, "class_prompts", rng)
    assert frames[1].max() == 2
    assert (
        len(np.unique(script.frames_by_class(prompts, "random_frames", rng).reshape(3, -1), axis=0))
        == 3
    )


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_a_replayed_top_k_is_what_the_client_reads_from_such_answers(replay, k):
    rng = np.random.default_rng(k)
    p = rng.dirichlet(np.full(8, 0.3), size=40)
    names = tuple("abcdefgh")
    answers = []
    for row in p:
        best = np.argsort(-row)[:k]
        answers.append(Answer(tuple(names[i] for i in best), tuple(row[best])))
    np.testing.assert_allclose(replay.top(k)(np.log(p)), log_scores(answers, names), atol=1e-9)


def test_a_replayed_label_is_what_the_client_reads_from_such_answers(replay):
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=20)
    answers = [Answer((f"{row.argmax()}",), (1.0,), "label") for row in p]
    expected = log_scores(answers, tuple("01234"))
    np.testing.assert_allclose(replay.one_label(np.log(p)), expected, atol=1e-12)


def test_a_mapping_of_choose_needs_no_fit_image_and_reads_choose_out_of_fold(replay):
    rng = np.random.default_rng(0)
    right = np.arange(30) % 3
    rows = np.log(rng.dirichlet(np.ones(4), size=30))
    rows[:, :3] += 4 * np.eye(3)[right]
    source = {"choose": rows, "test": rows.copy()}
    targets = replay.Targets(np.array([]), right, right, ("a", "b", "c"))
    reading = replay.mapped_on_choose(source, targets, replay.all_scores, seed=0)
    assert replay.accuracy(reading.choose, right) > 0.8
    for train, held_out in replay.stratified(right, 5, 0):
        changed = right.copy()
        changed[held_out] = (changed[held_out] + 1) % 3
        fitted = replay.labels.fit(
            replay.all_scores(rows)[train],
            changed[train],
            tuple(f"source {s}" for s in range(4)),
            targets.classes,
        ).mapping
        expected = fitted.log_probs(replay.all_scores(rows)[held_out])
        np.testing.assert_allclose(reading.choose[held_out], expected, atol=1e-9)


def test_budgets_are_nested_and_even(replay):
    right = np.array([0] * 10 + [1] * 10 + [2] * 4)
    order = replay.evenly(right, seed=3)
    assert sorted(order) == list(range(24))
    assert np.bincount(right[order[:12]]).tolist() == [4, 4, 4]


def test_replay_prints_views_budgets_and_gates(replay, collected, monkeypatch, capsys):
    bank = collected(["pgn"])
    words = ["replay", str(bank.root), "--set", "digits", "--source", "tf_efficientnet_lite0/raw"]
    monkeypatch.setattr("sys.argv", [*words, "--local", "vit_tiny_patch16_224"])
    replay.main()
    printed = capsys.readouterr().out
    assert all(view in printed for view in ("all scores", "top five", "one label", "two decimals"))
    assert "% sent" in printed
    assert "15 fit images, 35 answers: 0." in printed


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-2, 0.9), "stay an option"),
        ((0.1, 0.9), "stay an option"),
        ((0.1, 3), "candidates"),
        ((-1, 2), "more seeds"),
    ],
)
def test_the_rule_decides_as_it_was_written(summary, interval, verdict):
    assert verdict in summary.decision(*interval)


def test_a_difference_averages_seeds_and_pairs_image_by_image(summary, tmp_path):
    bank = load_script("answer_bank").Bank(tmp_path)
    sure = np.log(np.array([[0.9, 0.1], [0.1, 0.9]]))
    for seed in (0, 1):
        place = load_script("answer_bank").Location("a", seed)
        targets = {"fit": np.array([0]), "choose": np.array([0]), "test": np.array([0, 1])}
        bank.put(place, "targets", targets | {"classes": np.array(["x", "y"])})

    def always(rows):
        return summary.Measure(
            f"always {rows[0, 0]:.1f}", lambda results, pair: summary.Reading(rows, rows)
        )

    def by_seed(results, pair):
        return summary.Reading(sure, sure if results.place.seed else sure[::-1])

    def missing(results, pair):
        raise FileNotFoundError

    cells = [summary.Results(bank, place) for place in bank.places()]
    table = summary.Table(cells, [("s", "h"), ("t", "h")], summary.Runs(None))
    varying = summary.Measure("by seed", by_seed)
    (found, perfect), runs = table.hits(varying, always(sure))
    assert runs == 4
    assert found["a"].tolist() == [0.5, 0.5]
    assert perfect["a"].tolist() == [1, 1]
    assert "-50.0" in table.gap("gap", varying, always(sure))
    assert "not measured" in table.line("none", summary.Measure("missing", missing))
