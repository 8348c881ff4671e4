from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from pgn_client.cache import AnswerCache, cache_key
from pgn_client.errors import BudgetExceededError, ConfigurationError
from pgn_client.ledger import Ledger
from pgn_client.types import Answer, Usage

ANSWER = Answer(("ä", "b"), (0.1 + 0.2, -1e-300), "logits")


def test_the_budget_is_a_hard_cap_under_threads():
    ledger = Ledger(budget=100)

    def spend(_: int) -> None:
        with contextlib.suppress(BudgetExceededError):
            ledger.reserve()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(spend, range(1000)))
    assert ledger.usage.images == 100


def test_the_error_carries_spent_and_limit():
    ledger = Ledger(budget=1)
    ledger.reserve()
    with pytest.raises(BudgetExceededError) as caught:
        ledger.reserve()
    assert (caught.value.spent, caught.value.limit) == (1, 1)


def test_the_refusal_is_known_before_the_next_image():
    ledger = Ledger(budget=1)
    assert ledger.refusal is None
    ledger.reserve()
    assert (ledger.refusal.spent, ledger.refusal.limit) == (1, 1)
    assert Ledger().refusal is None


def test_cost_is_images_times_price_and_retries_are_free():
    ledger = Ledger(price_per_image=0.25)
    ledger.reserve()
    ledger.sent(10, retry=False)
    ledger.sent(10, retry=True)
    assert ledger.usage == Usage(images=1, requests=2, retries=1, bytes_sent=20, cost=0.25)


def test_without_a_price_the_cost_is_unknown():
    assert Ledger().usage.cost is None


@pytest.mark.parametrize("budget", [-1, 1.5, True, "7"])
def test_a_budget_that_is_no_number_of_images_is_refused(budget):
    with pytest.raises(ConfigurationError):
        Ledger(budget=budget)


def test_an_answer_survives_on_disk_exactly(tmp_path):
    path = tmp_path / "answers.sqlite"
    cache = AnswerCache(path)
    cache.put("k", ANSWER)
    cache.close()
    again = AnswerCache(path)
    assert again.get("k") == ANSWER
    assert again.get("other") is None
    assert len(again) == 1
    again.close()


def test_without_a_path_answers_stay_in_memory():
    cache = AnswerCache()
    cache.put("k", ANSWER)
    assert cache.get("k") == ANSWER
    cache.close()


def test_the_cache_may_be_used_from_many_threads(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.put(str(i % 10), ANSWER), range(200)))
    assert len(cache) == 10
    cache.close()


def test_endpoint_model_and_bytes_all_matter_for_the_key():
    base = ("u", "m", "i", b"x")
    others = [("v", "m", "i", b"x"), ("u", None, "i", b"x"), ("u", "m", "j", b"x"), ("u", "m", "i", b"y")]
    assert len({cache_key(*parts) for parts in [base, *others]}) == 5
    assert cache_key(*base) == cache_key(*base)


def test_a_cache_remembers_the_model_of_each_url_but_not_the_url(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    cache.remember("http://h/?token=t0ken", None, "[1]")
    assert cache.recall("http://h/?token=t0ken", None) == "[1]"
    assert cache.recall("http://h/?token=t0ken", "other") is None
    cache.close()
    assert b"t0ken" not in (tmp_path / "a.sqlite").read_bytes()


def test_a_cache_that_stops_working_is_told_in_one_line(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    cache.close()
    for call in (lambda: cache.get("k"), lambda: cache.put("k", ANSWER)):
        with pytest.raises(ConfigurationError, match="answer cache: cannot use"):
            call()


def test_a_file_that_is_no_cache_is_refused_in_one_line(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes " * 1000)
    with pytest.raises(ConfigurationError, match="answer cache: cannot use"):
        AnswerCache(path)
    with pytest.raises(ConfigurationError):
        AnswerCache(tmp_path / "nowhere" / "a.sqlite")
