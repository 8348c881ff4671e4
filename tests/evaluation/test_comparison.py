"""The decisions of the comparison; what it asks an endpoint is tested end to end."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pgn_client.evaluation.baselines import (
    augmented_blocks,
    augmented_copies,
    probe,
    without_prompt,
)
from pgn_client.evaluation.candidate import (
    FRAME,
    LOCAL,
    NO_PROMPT,
    PGN,
    PROBE,
    RAW,
    SERVED,
    Candidate,
    fused,
    with_local,
)
from pgn_client.evaluation.comparison import compare
from pgn_client.evaluation.results import Comparison
from pgn_client.evaluation.selection import advised, cheapest, choose, gated
from pgn_client.evaluation.verdict import (
    ADVICE,
    CONTAMINATED,
    advice,
    judge,
    kind_of,
    money,
    verdict,
)
from pgn_client.mapping.probability import log_loss
from pgn_client.prompting.methods import REGISTRY
from pgn_client.training import Split, Task, load_task
from pgn_client.training.augment import COPIES

N, C = 100, 3
TARGETS = np.arange(N) % C


def log_probs(wrong):
    """Certain answers of which those in ``wrong`` (numbers of images) are not the target."""
    answer = TARGETS.copy()
    answer[list(wrong)] = (answer[list(wrong)] + 1) % C
    return np.log(np.eye(C)[answer] * 0.8 + 0.1)


def candidate(name, wrong_val=(), wrong_test=()):
    return Candidate(name, log_probs(wrong_val), log_probs(wrong_test), 7)


def task():
    split = Split((Path("a.png"),) * N, TARGETS)
    return Task(("a", "b", "c"), split, split, split)


class TestProbe:
    def test_it_learns_from_augmented_copies_where_validation_says_so(
        self, make_backbone, make_folder, tmp_path
    ):
        """Validation images with colors as changed as the copies' need the copies; plain ones are
        read without.
        """
        backbone, plain = make_backbone(), load_task(make_folder(tmp_path, train=5, val=6))
        copies = []
        for path, copy in zip(
            plain.val.paths, augmented_copies(plain.val, "paper", 50), strict=True
        ):
            copies.append(tmp_path / f"{path.parent.name}-{path.name}")
            copy.save(copies[-1])
        changed = replace(plain, val=Split(tuple(copies), plain.val.labels))
        loss = {}
        for name, task in (("plain", plain), ("changed", changed)):
            task = replace(task, test=task.val)
            for augmentation in ("none", "paper"):
                loss[name, augmentation] = log_loss(
                    probe(backbone, task, augmentation, 0).val, task.val.labels
                )
        assert loss["changed", "paper"] < loss["changed", "none"]
        assert loss["plain", "paper"] <= loss["plain", "none"]

    def test_blocks_of_copies_differ_and_there_are_none_without_augmentation(
        self, make_folder, tmp_path
    ):
        split = load_task(make_folder(tmp_path, train=3, val=2)).train
        blocks = [
            [copy.tobytes() for copy in block] for block in augmented_blocks(split, "paper", 0)
        ]
        assert [len(block) for block in blocks] == [len(split)] * COPIES
        assert len({block[0] for block in blocks}) == COPIES
        assert list(augmented_blocks(split, "none", 0)) == []

    def test_a_copy_is_drawn_by_its_own_seed(self, make_folder, tmp_path):
        split = load_task(make_folder(tmp_path, train=3, val=2)).train
        first, again, other = (augmented_copies(split, "shift", seed) for seed in (1, 1, 2))
        assert [x.tobytes() for x in first] == [x.tobytes() for x in again]
        assert first[1].tobytes() == augmented_copies(split.take([1]), "shift", 2)[0].tobytes()
        assert first[0].tobytes() != other[0].tobytes()


class TestChoose:
    def test_takes_the_least_log_loss_on_validation(self):
        rows = [
            candidate(LOCAL, range(40)),
            candidate(RAW, range(30)),
            candidate(PGN, range(5), range(90)),
        ]
        assert choose(rows, TARGETS).name == PGN

    def test_among_equals_takes_the_cheapest(self):
        assert choose([candidate(name, range(5)) for name in ADVICE], TARGETS).name == next(
            iter(ADVICE)
        )

    def test_certainty_counts_where_accuracy_is_equal(self):
        unsure = Candidate(RAW, np.log(np.eye(C)[TARGETS] * 0.4 + 0.2), candidate(RAW).test, 7)
        assert choose([unsure, candidate(PGN)], TARGETS).name == PGN

    def test_one_certain_error_does_not_decide_alone(self):
        with np.errstate(divide="ignore"):
            certain = np.log(np.eye(C)[(TARGETS + (np.arange(N) == 0)) % C])  # minus infinity once
        assert choose([candidate(RAW), Candidate(PGN, certain, certain, 7)], TARGETS).name == RAW
        rows = [candidate(RAW, range(30)), Candidate(PGN, np.maximum(certain, -1e9), certain, 7)]
        assert choose(rows, TARGETS).name == PGN


class TestCheapest:
    """Rows are given from the cheapest to the dearest."""

    @pytest.mark.parametrize(("more", "name"), [(1, RAW), (2, PGN)])
    def test_within_one_paired_standard_error_is_the_cheaper(self, more, name):
        # One more mistake of 100: gap 0.01, standard error sqrt(0.01·0.99)/10 = 0.00995, so it is
        # out by a hair; with one swap besides (RAW right where PGN is wrong) the gap stays 0.01 and
        # the error grows to 0.0173.
        best = candidate(PGN, [99])
        cheaper = candidate(RAW, [0, 1] if more == 1 else [0, 1, 2, 3, 4])
        assert cheapest([cheaper, best], best, TARGETS).name == name

    def test_one_clean_mistake_more_is_within_but_two_are_not(self):
        best = candidate(PGN)
        assert cheapest([candidate(RAW, [0]), best], best, TARGETS).name == RAW
        assert cheapest([candidate(RAW, [0, 1]), best], best, TARGETS).name == PGN

    def test_looks_at_validation_alone(self):
        best = candidate(PGN, range(5), range(90))
        assert cheapest([candidate(RAW, range(30), ()), best], best, TARGETS).name == PGN


class TestGated:
    """The local head is sure (0.8) of every image here, and right unless told otherwise."""

    def test_sure_pictures_are_answered_locally_and_not_sent(self):
        local = candidate(LOCAL, wrong_test=range(10))
        best = replace(candidate(PGN, wrong_test=range(N)), local=local)
        served, query_below = gated(SERVED, best, TARGETS)  # on validation both are always right
        assert (served.sent, served.queries, query_below) == (0.0, best.queries - N, 0.0)
        assert (served.test == local.test).all()

    def test_where_the_local_head_errs_on_validation_all_are_sent(self):
        best = replace(candidate(PGN), local=candidate(LOCAL, range(N)))
        served, query_below = gated(SERVED, best, TARGETS)
        assert (served.sent, served.queries, query_below) == (1.0, best.queries, None)
        assert (served.test == best.test).all()

    def test_without_a_local_head_all_are_sent(self):
        best = candidate(PGN)
        assert gated(SERVED, best, TARGETS) == (replace(best, name=SERVED), None)

    def test_what_sends_nothing_is_left_as_it_is(self):
        best = replace(candidate(LOCAL), sent=0.0, local=candidate(LOCAL))
        assert gated(SERVED, best, TARGETS) == (replace(best, name=SERVED), None)


class TestWithoutPrompt:
    """On validation the local head is right where the others err, and wrong where they are
    right.
    """

    def rows(self, *, probe):
        raw, local = candidate(RAW, range(50)), replace(candidate(LOCAL, range(50, N)), sent=0.0)
        probed = replace(candidate(PROBE, range(60)), sent=0.0, queries=0) if probe else None
        return {row.name: row for row in without_prompt(raw, local, probed, TARGETS)}

    def test_fusing_two_that_err_apart_is_better_on_validation_than_each_alone(self):
        rows = self.rows(probe=True)
        for name in (RAW, PROBE):
            alone = min(log_loss(rows[x].val, TARGETS) for x in (name, LOCAL))
            assert log_loss(rows[with_local(name)].val, TARGETS) < alone - 0.1

    def test_only_raw_answers_are_paid_for(self):
        paid = {
            name: (row.sent, row.queries) for name, row in self.rows(probe=True).items() if row.sent
        }
        assert paid == {RAW: (1.0, 7), with_local(RAW): (1.0, 7)}

    def test_without_a_surrogate_there_is_no_probe(self):
        assert not any(name.startswith(PROBE) for name in self.rows(probe=False))


def row_of(title):
    """A row by its title, fused with the local head where the title says so."""
    base = (
        "VP"
        if title == with_local("VP")
        else next((n for n in (RAW, PROBE, "IIP", PGN) if with_local(n) == title), "")
    )
    return replace(candidate(title), fuses=base)


class TestAdvice:
    def test_of_what_sends_nothing_says_that_no_query_is_needed_and_of_no_other(self):
        free = {LOCAL, PROBE, with_local(PROBE)}
        rows = [*free, RAW, with_local(RAW), "IIP", with_local("IIP"), PGN, with_local(PGN)]
        assert {name for name in rows if "no query is needed" in advice(row_of(name))} == free
        assert len({advice(row_of(name)) for name in rows}) == len(rows)

    def test_of_a_row_is_of_one_of_four_kinds(self):
        kinds = {
            "local": [LOCAL, PROBE, with_local(PROBE)],
            "mapping": [RAW],
            "both": [with_local(RAW), with_local(PGN)],
        }
        kinds["prompt"] = [PGN, "IIP", "VP"]
        assert {name: kind_of(row_of(name)) for names in kinds.values() for name in names} == {
            name: kind for kind, names in kinds.items() for name in names
        }

    def test_names_the_row_by_a_key_that_programs_can_rely_on(self):
        titles = (RAW, LOCAL, PROBE, SERVED, PGN, "IIP", with_local(RAW), with_local(PGN))
        keys = ["raw", "local", "probe", "served", "pgn", "iip", "raw+local", "pgn+local"]
        assert [row_of(title).key for title in titles] == keys

    def test_titles_of_prompts_are_those_of_their_methods(self):
        methods = {
            "pgn": PGN,
            "input_independent": "IIP",
            "no_prompt": NO_PROMPT,
            "grey_frame": FRAME,
        }
        assert {name: REGISTRY[name].title for name in methods} == methods

    def test_of_a_prompt_recommends_the_prompt_and_of_raw_answers_none(self):
        assert advice(row_of(PGN)) == "use the prompt"
        assert advice(row_of(with_local(PGN))) == "use the prompt, fused with the local head"
        assert "send images as they are" in advice(row_of(RAW))
        assert "without a prompt" in advice(row_of(with_local(RAW)))

    def test_of_another_prompt_is_that_of_a_prompt(self):
        assert advice(row_of("VP")) == ADVICE[PGN]
        assert advice(row_of(with_local("VP"))) == ADVICE[with_local(PGN)]


class TestCompare:
    def test_difference_is_that_of_the_test_accuracies_in_order(self):
        rows = [candidate(PGN, wrong_test=range(10)), candidate(RAW, wrong_test=range(30))]
        (found,) = compare(rows, TARGETS, seed=0)
        assert (found.a, found.b) == (PGN, RAW)
        assert found.difference == pytest.approx(0.2)
        assert 0 < found.ci95[0] < 0.2 < found.ci95[1]

    def test_rows_that_are_missing_are_left_out(self):
        rows = [candidate(PGN), candidate(RAW), candidate(LOCAL)]
        assert [(c.a, c.b) for c in compare(rows, TARGETS, seed=0)] == [(PGN, RAW), (PGN, LOCAL)]

    def test_the_same_answers_differ_by_nothing(self):
        (found,) = compare([candidate(PGN, (), [3]), candidate(RAW, (), [3])], TARGETS, seed=0)
        assert (found.difference, found.ci95) == (0, (0, 0))
        assert (found.only_a, found.only_b, found.mcnemar_p) == (0, 0, 1)

    def test_the_exact_test_stands_beside_the_interval(self):
        rows = [candidate(PGN, wrong_test=range(5)), candidate(RAW, wrong_test=range(4, 10))]
        (found,) = compare(rows, TARGETS, seed=0)
        assert (found.only_a, found.only_b) == (5, 4)
        rows = [candidate(PGN), candidate(RAW, wrong_test=range(5))]
        (found,) = compare(rows, TARGETS, seed=0)
        assert (found.only_a, found.only_b, found.mcnemar_p) == (5, 0, pytest.approx(2 / 32))


class TestAdvised:
    """Here, too, the local head is sure of every image; where it errs on validation, its gate
    sends all.
    """

    head = candidate(LOCAL, range(40))

    def prompt(self, name, wrong_val=()):
        return replace(candidate(name, wrong_val), local=self.head)

    def test_is_the_cheapest_that_validation_cannot_tell_from_what_is_served(self):
        best, raw, free = (
            self.prompt(with_local(PGN)),
            self.prompt(RAW, [0]),
            replace(candidate(LOCAL, [1]), sent=0.0),
        )
        assert advised([free, raw, best], best, TARGETS).name == LOCAL
        assert advised([raw, best], best, TARGETS).name == RAW

    def test_is_what_is_served_where_nothing_else_is_as_good(self):
        best = self.prompt(with_local(PGN))
        found = advised([self.prompt(RAW, range(9)), best], best, TARGETS)
        assert (found.name, found.sent) == (best.name, 1.0)

    def test_a_prompt_without_its_local_head_saves_nothing(self):
        best = replace(self.prompt(with_local(PGN)), fuses=PGN)
        assert advised([self.prompt(PGN), best], best, TARGETS).name == best.name
        best = self.prompt(with_local(RAW))
        # which needs no checkpoint at all
        assert advised([self.prompt(RAW), best], best, TARGETS).name == RAW

    def test_what_sends_more_than_the_gated_best_saves_nothing(self):
        good = candidate(LOCAL)
        best = replace(candidate(PGN), local=good)  # gated, it sends nothing
        assert advised([candidate(RAW), best], best, TARGETS).name == PGN

    def test_is_held_against_what_is_served_as_it_would_serve_itself(self):
        raw = replace(candidate(RAW, range(60), range(60)), local=candidate(LOCAL, wrong_test=[0]))
        best = self.prompt(PGN)
        # raw answers err, but behind their gate none is needed
        found = advised([raw, best], best, TARGETS)
        assert (found.name, found.sent) == (RAW, 0.0)
        assert (found.test == raw.local.test).all()


class TestFused:
    def test_where_the_row_has_no_say_its_test_pictures_are_not_sent(self):
        alone = replace(candidate(PGN), queries=3 * N)
        some, none = (fused(alone, candidate(LOCAL), alpha) for alpha in (0.5, 1.0))
        assert (some.queries, some.queries_fit, some.queries_test) == (3 * N, 2 * N, N)
        assert (none.queries, none.queries_fit, none.queries_test) == (2 * N, 2 * N, 0)


class TestCost:
    def test_is_of_the_share_that_is_sent(self):
        assert replace(candidate(PGN), sent=0.25).cost(1000, 0.01) == pytest.approx(2.5)

    def test_without_a_price_only_what_sends_nothing_has_one(self):
        assert candidate(PGN).cost(1000, None) is None
        assert replace(candidate(LOCAL), sent=0.0).cost(1000, None) == 0

    @pytest.mark.parametrize(
        ("amount", "text"),
        [(0, "0.00"), (0.004321, "0.0043"), (0.01, "0.01"), (2.5, "2.50"), (12345.6, "12,345.60")],
    )
    def test_is_told_with_two_decimals_or_two_digits(self, amount, text):
        assert money(amount) == text


class TestVerdict:
    def say(self, best, cheaper=None, paired=(), price=None):
        found = verdict(
            best.name,
            replace(best, name=SERVED),
            cheaper or best,
            TARGETS,
            paired,
            price_per_image=price,
        )
        return str(found)

    def test_begins_with_the_advice_and_its_accuracy(self):
        text = self.say(candidate(RAW, (), range(20)))
        assert text.startswith(f"{ADVICE[RAW]}: raw + mapping has accuracy 0.800 (95 % interval [")
        assert "on 100 test images and sends 1,000 of 1,000 images." in text

    @pytest.mark.parametrize(
        ("interval", "established"),
        [
            ((0.01, 0.05), True),
            ((-0.05, -0.01), True),
            ((-0.01, 0.05), False),
            ((0.0, 0.05), False),
            ((-0.05, 0.0), False),
        ],
    )
    def test_says_whether_the_prompts_gain_is_established(self, interval, established):
        text = self.say(candidate(PGN), paired=[Comparison(PGN, RAW, 0.03, interval, 5, 2, 0.45)])
        low, high = (100 * end for end in interval)
        assert f"The gain of PGN over {RAW} is +3.0 [{low:+.1f}, {high:+.1f}] points" in text
        assert ("not established" in text) != established

    def test_without_that_comparison_says_nothing_of_it(self):
        paired = [Comparison(PGN, LOCAL, 0.1, (-0.1, 0.3), 12, 2, 0.01)]
        assert "established" not in self.say(candidate(LOCAL), paired=paired)

    def test_names_what_is_cheaper_and_was_as_good_on_validation_first_and_then_what_is_served(
        self,
    ):
        free = replace(candidate(LOCAL, (), range(7)), sent=0.0)
        text = self.say(candidate(PGN, (), range(5)), free)
        assert text.startswith(f"{ADVICE[LOCAL]}: local head has accuracy 0.930 (95 % interval [")
        assert "sends nothing. On validation it is within one standard error" in text
        assert "of the served row, PGN, which has accuracy 0.950 [" in text
        assert text.index("nothing") < text.index("1,000 of 1,000 images")

    def test_says_how_far_test_pictures_put_the_cheaper_behind_and_whether_that_is_established(
        self,
    ):
        free = replace(candidate(LOCAL, (), range(20)), sent=0.0)
        assert re.search(
            r"On the test images, the gain of PGN over local head is "
            r"\+20\.0 \[\+1\d\.0, \+2\d\.0\] points\.$",
            self.say(candidate(PGN), free),
        )
        free = replace(candidate(LOCAL, (), [5]), sent=0.0)
        assert "+0.0 [" in (text := self.say(candidate(PGN, (), [7]), free))
        assert text.endswith("points, not established.")

    def test_is_quiet_about_others_where_nothing_is_cheaper(self):
        assert "within one" not in self.say(candidate(PGN))

    def test_tells_the_share_that_is_sent(self):
        assert "sends 640 of 1,000 images, those on which the local head" in self.say(
            replace(candidate(PGN), sent=0.64)
        )
        assert "those on which" not in self.say(candidate(PGN))

    def test_tells_what_1000_pictures_cost_where_a_price_is_known(self):
        text = self.say(replace(candidate(PGN), sent=0.64), price=0.002)
        assert "sends 640 of 1,000 images (cost 1.28)" in text
        assert "cost" not in self.say(candidate(PGN))


class TestJudge:
    def judged(self, **options):
        local = replace(candidate(LOCAL, range(30)), sent=0.0, queries=0)
        rows = [candidate(RAW, range(30), range(20)), local, replace(candidate(PGN), local=local)]
        return judge(rows, task(), seed=0, **options)

    def test_served_is_the_best_on_validation_and_everything_is_counted_on_test(self):
        found = self.judged()
        assert (found.best, found.advised) == (PGN, PGN)
        assert [row.title for row in found.rows] == [RAW, LOCAL, PGN, SERVED]
        assert found.row(RAW).accuracy == 0.8
        assert found.row(PGN).log_loss == pytest.approx(-np.log(0.9))

    def test_calibration_is_that_of_the_test_answers(self):
        # 0.9 sure: of raw answers 80 of 100 are right, of the others all.
        found = self.judged()
        assert found.row(RAW).ece == pytest.approx(0.1)
        assert found.row(SERVED).ece == pytest.approx(0.1)
        assert [b.accuracy for b in found.reliability[RAW]] == [0.8]

    def test_other_pictures_than_the_checkpoints_are_named_first(self):
        ours, others = self.judged().verdict, self.judged(same_data=False).verdict
        assert (ours.warnings, others.warnings) == ((), (CONTAMINATED,))
        assert str(others) == f"{CONTAMINATED}; {ours}"

    def test_confusions_are_told_by_name_without_zeros(self):
        counts = self.judged().confusion[RAW]
        assert counts == {"a": {"a": 27, "b": 7}, "b": {"b": 26, "c": 7}, "c": {"a": 6, "c": 27}}

    def test_examples_tell_what_is_and_what_is_served(self):
        (first, *_) = found = self.judged().examples
        assert len(found) == 4
        assert first == {"picture": "a.png", "label": "a", "served": "a"}
