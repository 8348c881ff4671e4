from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pgn_client.errors import BudgetExceededError, ConfigurationError
from pgn_client.types import Answer, Reply, Usage
from pgn_client.wire.cache import CANARIES, AnswerCache, cache_key, endpoint_key
from pgn_client.wire.ledger import Account, Ledger

ROOT = Path(__file__).parents[2]
ANSWER = Answer(("ä", "b"), (0.1 + 0.2, -1e-300), "logits")


def account(budget=None, price_per_image=None, *, ledger=None, endpoint="e"):
    return Account(ledger or Ledger(), endpoint, "h/m", budget, price_per_image)


def test_the_budget_is_a_hard_cap_under_threads():
    spending = account(100)

    def spend(_: int) -> None:
        with contextlib.suppress(BudgetExceededError):
            spending.reserve()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(spend, range(1000)))
    assert spending.usage.billable == 100


def test_the_error_carries_spent_and_limit():
    spending = account(1)
    spending.reserve()
    with pytest.raises(BudgetExceededError) as caught:
        spending.reserve()
    assert (caught.value.spent, caught.value.limit) == (1, 1)


def test_the_refusal_is_known_before_the_next_image():
    spending = account(1)
    assert spending.refusal is None
    spending.reserve()
    assert (spending.refusal.spent, spending.refusal.limit) == (1, 1)
    assert account().refusal is None


def test_what_is_given_back_can_be_spent_again():
    spending = account(1, 0.5)
    spending.reserve()
    spending.release()
    assert (spending.usage.billable, spending.usage.cost, spending.ledger.spent("e")) == (
        0,
        0.0,
        (0, 0.0),
    )
    spending.reserve()
    assert spending.refusal is not None


def test_an_image_counts_once_and_costs_each_time_that_it_is_sent():
    spending = account(price_per_image=0.25)
    spending.asked()
    for retry in (False, True):
        spending.reserve()
        spending.sent(10, retry=retry)
    assert spending.usage == Usage(
        images=1, requests=2, retries=1, bytes_sent=20, cost=0.5, billable=2
    )


def test_without_a_price_the_cost_is_unknown():
    assert account().usage.cost is None


@pytest.mark.parametrize(
    "options", [{"budget": b} for b in (-1, 1.5, True, "7")] + [{"price_per_image": -1}]
)
def test_a_budget_or_price_that_is_none_is_refused(options):
    with pytest.raises(ConfigurationError):
        account(**options)


def test_a_ledger_file_outlives_its_process(tmp_path):
    for spent in (0, 2, 4):
        ledger = Ledger(tmp_path / "l.sqlite")
        spending = account(5, 0.25, ledger=ledger)
        assert ledger.spent("e") == (spent, spent / 4)
        spending.reserve()
        spending.reserve() if spent < 4 else None
        assert spending.usage.billable == (2 if spent < 4 else 1)
        ledger.close()
    ledger = Ledger(tmp_path / "l.sqlite")
    assert account(5, ledger=ledger).refusal.spent == 5
    ledger.close()


def test_each_endpoint_has_a_budget_of_its_own():
    ledger = Ledger()
    for endpoint in ("a", "b"):
        account(1, ledger=ledger, endpoint=endpoint).reserve()
    assert account(1, ledger=ledger, endpoint="a").refusal is not None
    assert account(1, ledger=ledger, endpoint="c").refusal is None


SPENDER = """
    import sys
    sys.path.insert(0, {root!r})
    from pgn_client.errors import BudgetExceededError
    from pgn_client.wire.ledger import Account, Ledger
    spending = Account(Ledger({path!r}), "e", "h/m", 60)
    print(flush=True)
    sys.stdin.readline()
    try:
        while True:
            spending.reserve()
    except BudgetExceededError:
        print(spending.usage.billable)
"""


def test_processes_that_share_a_ledger_never_overshoot_together(tmp_path):
    code = textwrap.dedent(SPENDER.format(root=str(ROOT), path=str(tmp_path / "l.sqlite")))
    command = [sys.executable, "-c", code]
    with contextlib.ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        spenders = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(4)]
        for spender in spenders:
            spender.stdout.readline()
        for spender in spenders:
            spender.stdin.write("go\n")
            spender.stdin.flush()
        found = [int(spender.communicate()[0]) for spender in spenders]
    assert sum(found) == 60


@pytest.mark.parametrize("kind", ["text", "nowhere", "closed"])
def test_a_ledger_that_cannot_be_used_is_told_in_one_line(kind, tmp_path):
    path = tmp_path / "nowhere" / "l.sqlite" if kind == "nowhere" else tmp_path / "l.sqlite"
    if kind == "text":
        path.write_text("my notes " * 1000)
    with pytest.raises(ConfigurationError, match="ledger: cannot use") as caught:  # noqa: PT012
        ledger = Ledger(path)
        ledger.close()
        ledger.spent("e")
    assert "\n" not in str(caught.value)


def test_an_answer_survives_on_disk_exactly(tmp_path):
    path = tmp_path / "answers.sqlite"
    cache = AnswerCache(path)
    cache.put("k", ANSWER, 3, "r-1")
    cache.close()
    again = AnswerCache(path)
    assert again.get("k") == Reply(ANSWER, 3, "r-1")
    assert again.get("other") is None
    assert len(again) == 1
    again.close()


def test_without_a_path_answers_stay_in_memory():
    cache = AnswerCache()
    cache.put("k", ANSWER)
    assert cache.get("k") == Reply(ANSWER)
    cache.close()


def test_the_cache_may_be_used_from_many_threads(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: cache.put(str(i % 10), ANSWER), range(200)))
    assert len(cache) == 10
    cache.close()


def test_endpoint_model_and_bytes_all_matter_for_the_key():
    base = ("u", "m", "i", b"x")
    others = [
        ("v", "m", "i", b"x"),
        ("u", None, "i", b"x"),
        ("u", "m", "j", b"x"),
        ("u", "m", "i", b"y"),
    ]
    assert len({cache_key(*parts) for parts in [base, *others]}) == 5
    assert cache_key(*base) == cache_key(*base)


def test_a_cache_remembers_the_model_of_each_url_but_not_the_url(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    key = endpoint_key("http://h/?token=t0ken", None)
    cache.remember(key, "[1]")
    assert cache.recall(key) == "[1]"
    assert cache.recall(endpoint_key("http://h/?token=t0ken", "other")) is None
    assert cache.recall(endpoint_key("http://h/?token=t0ken", None, '["a"]')) is None
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


def test_a_file_of_an_earlier_version_is_read_and_goes_on(tmp_path):
    path = tmp_path / "a.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        old.execute("CREATE TABLE models (key TEXT PRIMARY KEY, identity TEXT NOT NULL)")
        old.execute("INSERT INTO answers VALUES ('k', '[[\"a\"], [1.0], \"label\"]')")
    cache = AnswerCache(path)
    assert cache.get("k") == Reply(Answer(("a",), (1.0,), "label"))
    cache.keep("u", "k", b"png")
    assert cache.canaries("u") == [(Answer(("a",), (1.0,), "label"), b"png")]
    cache.close()


def test_the_first_pictures_of_each_endpoint_are_kept(tmp_path):
    for first in (0, 5):  # a second run goes on where the first has ended
        cache = AnswerCache(tmp_path / "a.sqlite")
        for i in range(first, first + 7):
            for url in ("u", "v"):
                cache.put(f"{url}{i}", Answer((str(i),), (1.0,)))
                cache.keep(url, f"{url}{i}", b"picture %d" % i)
        kept = cache.canaries("u")
        assert cache.canaries("w") == []
        cache.close()
    assert [(a.labels[0], p) for a, p in kept] == [
        (str(i), b"picture %d" % i) for i in range(CANARIES)
    ]


# ---- replay


def record(path):
    cache = AnswerCache(path)
    cache.put("k", ANSWER, 2, "r")
    cache.remember("u", "[1]")
    return cache


def test_a_replay_reads_and_never_writes(tmp_path):
    path = tmp_path / "a.sqlite"
    record(path).close()
    before = path.read_bytes()
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        cache = AnswerCache(path, replay=True)
        assert (cache.get("k"), cache.recall("u")) == (Reply(ANSWER, 2, "r"), "[1]")
        with pytest.raises(ConfigurationError, match="readonly"):
            cache.put("other", ANSWER)
        cache.close()
    finally:
        tmp_path.chmod(0o700)
    assert [file.name for file in tmp_path.iterdir()] == ["a.sqlite"]
    assert path.read_bytes() == before


def test_a_replay_sees_what_a_run_is_recording(tmp_path):
    recording = record(tmp_path / "a?b#c.sqlite")
    cache = AnswerCache(tmp_path / "a?b#c.sqlite", replay=True)
    assert cache.get("k") == Reply(ANSWER, 2, "r")
    cache.close()
    recording.close()


@pytest.mark.parametrize("kind", ["missing", "text", "another database", "memory"])
def test_what_holds_no_recording_cannot_be_replayed(kind, tmp_path):
    path = tmp_path / "a.sqlite"
    if kind == "text":
        path.write_text("my notes " * 1000)
    elif kind == "another database":
        Ledger(path).close()
    with pytest.raises(ConfigurationError):
        AnswerCache(None if kind == "memory" else path, replay=True)
    assert path.exists() == (kind in ("text", "another database"))


@pytest.mark.parametrize("kind", [Ledger, AnswerCache])
def test_closing_waits_for_the_thread_that_is_writing(kind, tmp_path):
    """SQLite ends the whole process where one thread closes a connection that another one uses."""
    store = kind(tmp_path / "store.sqlite")
    with store._lock:
        closing = threading.Thread(target=store.close)
        closing.start()
        closing.join(0.2)  # long enough to have closed it, were it not for the lock
        assert store._db.execute("SELECT 1").fetchone() == (1,)
    closing.join()
    with pytest.raises(sqlite3.ProgrammingError):
        store._db.execute("SELECT 1")
