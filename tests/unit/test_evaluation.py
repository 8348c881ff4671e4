"""The decisions of the comparison; what it asks an endpoint is tested end to end."""

from pathlib import Path

import numpy as np
import pytest

from pgn_client.evaluation import (
    ADVICE,
    IIP,
    LOCAL,
    PGN,
    PGN_LOCAL,
    PROBE,
    RAW,
    RAW_LOCAL,
    SERVED,
    Candidate,
    Comparison,
    choose,
    compare,
    verdict,
)
from pgn_client.training import Split, Task

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


class TestChoose:
    def test_takes_what_is_clearly_best(self):
        rows = [candidate(PGN, range(5)), candidate(RAW, range(30)), candidate(LOCAL, range(40))]
        assert choose(rows, TARGETS).name == PGN

    def test_among_equals_takes_the_cheapest_in_the_order_of_the_advice(self):
        rows = [candidate(name, range(5)) for name in reversed(list(ADVICE))]
        assert choose(rows, TARGETS).name == next(iter(ADVICE)) == LOCAL

    @pytest.mark.parametrize(("more", "name"), [(1, RAW), (2, PGN)])
    def test_within_one_paired_standard_error_takes_the_cheaper(self, more, name):
        # One more mistake of 100: gap 0.01, standard error sqrt(0.01·0.99)/10 = 0.00995, so it is out by a hair; with
        # one swap besides (RAW right where PGN is wrong) the gap stays 0.01 and the error grows to 0.0173.
        swapped = candidate(PGN, [99])
        cheaper = candidate(RAW, [0, 1] if more == 1 else [0, 1, 2, 3, 4])
        assert choose([swapped, cheaper], TARGETS).name == name

    def test_one_clean_mistake_more_is_no_reason_to_pay_but_two_are(self):
        assert choose([candidate(PGN), candidate(RAW, [0])], TARGETS).name == RAW
        assert choose([candidate(PGN), candidate(RAW, [0, 1])], TARGETS).name == PGN

    def test_the_served_row_stands_not_for_choice(self):
        rows = [candidate(SERVED), candidate(RAW, range(20)), candidate(PGN, range(10))]
        assert choose(rows, TARGETS).name == PGN

    def test_looks_at_validation_alone(self):
        rows = [candidate(PGN, range(5), range(90)), candidate(RAW, range(30), ())]
        assert choose(rows, TARGETS).name == PGN

    def test_a_prompt_is_dearer_than_the_mapping_and_the_local_model_is_the_cheapest(self):
        assert list(ADVICE) == [LOCAL, PROBE, RAW, RAW_LOCAL, IIP, PGN, PGN_LOCAL]


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


class TestVerdict:
    def say(self, best, *others, paired=()):
        return verdict(best, [best, *others], task(), paired)

    def test_begins_with_the_advice_and_its_accuracy(self):
        text = self.say(candidate(RAW, (), range(20)))
        assert text.startswith(f"{ADVICE[RAW]}: raw + mapping reaches 0.800 [")
        assert "on 100 test pictures" in text

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
        text = self.say(candidate(PGN), candidate(RAW), paired=[Comparison(PGN, RAW, 0.03, interval)])
        assert f"PGN − {RAW} is +3.0 [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}] points" in text
        assert ("not established" in text) != established

    def test_without_that_comparison_says_nothing_of_it(self):
        assert "established" not in self.say(candidate(LOCAL), paired=[Comparison(PGN, LOCAL, 0.1, (-0.1, 0.3))])

    def test_names_what_was_best_on_validation_if_it_was_not_chosen(self):
        text = self.say(candidate(RAW, [0, 1]), candidate(PGN, [0]))
        assert "PGN was ahead on validation, but within one standard error, or by one picture" in text

    def test_is_quiet_where_the_chosen_one_was_best(self):
        assert "ahead on validation" not in self.say(candidate(PGN, [0]), candidate(RAW, [0, 1]))

    def test_is_quiet_about_what_was_no_better(self):
        assert "IIP" not in self.say(candidate(RAW, [0, 1]), candidate(IIP, [2, 3]))
