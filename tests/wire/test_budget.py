"""A budget on the wire: what a server counts, over threads, retries, crashes, restarts and
processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pgn_client import AdaptedClient, AsyncAdaptedClient, ImageFailure, Prediction
from pgn_client.cli import main
from pgn_client.cli.plan import plan
from pgn_client.errors import BudgetExceededError, ConfigurationError, ConnectionFailedError
from pgn_client.types import Usage
from pgn_client.wire.ledger import Account, Ledger

from .fakes import Server, client, file_bytes, picture

BODY = json.dumps({"output": "probs", "predictions": [{"labels": ["a"], "scores": [1.0]}]}).encode()


class Counting:
    """A server that counts images, and fails every third of them for the moment; ``gate`` holds
    its answers back.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.pictures = 0
        self.gate = threading.Event()


@contextlib.contextmanager
def counting(fails: int = 3, free: int = 10**9) -> Iterator[Counting]:
    """Serve; after so many ``free`` answers the others wait for the gate."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with lock:
                found.pictures += 1
                number = found.pictures
            failing = fails and number % fails == 0
            self.rfile.read(int(self.headers["content-length"]))
            if number > free:
                found.gate.wait(60)
            self.send_response(503 if failing else 200)
            self.send_header("retry-after-ms", "1")
            self.send_header("content-length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            with contextlib.suppress(OSError):  # the client was killed
                super().handle_one_request()
                return
            self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # nobody who knocks is turned away

    server = Server(("127.0.0.1", 0), Handler)
    found = Counting(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield found
    finally:
        found.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_budget_of_100_sends_100_images_at_concurrency_32_retries_included():
    with counting() as server:
        options = {"protocol": "pgn", "budget": 100, "max_concurrency": 32, "api_key": None}
        with AdaptedClient(server.url, None, **options) as c:
            results = list(c.classify_many(picture(i) for i in range(150)))
            assert c.usage.billable == server.pictures == 100
    answered = sum(isinstance(result, Prediction) for result in results)
    assert answered == 100 - 33  # every third was refused
    assert all(
        isinstance(r.error, BudgetExceededError) or "budget" in str(r.error) for r in results[-20:]
    )


def test_an_asyncio_budget_holds_too():
    async def ask(url: str) -> None:
        async with AsyncAdaptedClient(
            url, None, protocol="pgn", budget=40, max_concurrency=32
        ) as c:
            assert len([r async for r in c.classify_many([picture()] * 60)]) == 60

    with counting() as server:
        asyncio.run(ask(server.url))
        assert server.pictures == 40


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(150):
        (tmp_path / "in" / f"{i:03}.png").write_bytes(file_bytes(picture(i)))
    return tmp_path / "in"


def test_a_run_killed_in_the_middle_and_started_again_keeps_to_one_budget(folder, tmp_path):
    """SIGKILL among 32 requests that are on their way; the second run does not know which of them
    arrived.
    """
    words = [
        sys.executable,
        "-m",
        "pgn_client",
        "predict",
        folder,
        "--protocol",
        "pgn",
        "--budget",
        "100",
    ]
    words += ["--max-concurrency", "32", "--max-retries", "20", "--out", tmp_path / "out.jsonl"]
    with counting(free=40) as server:
        command = [str(word) for word in (*words, "--url", server.url)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **quiet) as first:
            while server.pictures < 60:  # 40 are answered, and at most 32 are on their way
                assert first.poll() is None, first.stderr.read()
                time.sleep(0.005)
            os.kill(first.pid, signal.SIGKILL)
        killed = server.pictures
        server.gate.set()
        second = subprocess.run(command, check=False, **quiet)
        assert second.returncode == 3, second.stderr
        assert 60 <= killed <= 72
        assert killed < server.pictures <= 100
        sent = server.pictures
        third = subprocess.run(command, check=False, **quiet)
        assert (third.returncode, server.pictures) == (3, sent)
        assert "budget exhausted: 100 of 100" in third.stderr
    assert (tmp_path / "out.jsonl.ledger.sqlite").exists()


SENDER = """
    import sys
    sys.path.insert(0, {root!r})
    sys.path.insert(0, {tests!r})
    from pgn_client import AdaptedClient
    from wire.fakes import picture
    options = {{"protocol": "pgn", "budget": 60, "ledger": {path!r}, "max_concurrency": 16}}
    with AdaptedClient({url!r}, None, **options) as c:
        list(c.classify_many(picture(i) for i in range(80)))
"""


def test_processes_that_share_a_ledger_keep_to_one_budget(tmp_path):
    tests = Path(__file__).parents[1]
    with counting() as server:
        names = {"root": str(tests.parent), "tests": str(tests), "path": str(tmp_path / "l.sqlite")}
        code = textwrap.dedent(SENDER.format(url=server.url, **names))
        senders = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
        assert [sender.wait() for sender in senders] == [0] * 3
        assert server.pictures == 60


def test_what_never_left_this_machine_is_given_back(tmp_path):
    path = tmp_path / "l.sqlite"
    with AdaptedClient(
        "http://127.0.0.1:1", None, protocol="pgn", budget=1, max_retries=0, ledger=path
    ) as c:
        for _ in range(3):
            with pytest.raises(ConnectionFailedError):
                c.classify(picture())
        assert (c.usage.images, c.usage.billable) == (0, 0)


def test_clients_of_one_ledger_share_a_budget_and_other_endpoints_do_not(tmp_path):
    ledger = Ledger(tmp_path / "l.sqlite")
    options = {"protocol": "pgn", "budget": 2, "ledger": ledger}
    for left in (True, True, False):
        with client(Server(), **options) as c:
            result = next(iter(c.classify_many([picture()])))
        assert isinstance(result, Prediction if left else ImageFailure)
    for other in ({"url": "http://127.0.0.1:10"}, {"model": "another"}):
        with client(Server(), **options, **other) as c:
            assert c.classify(picture()).label == "a"
    ledger.close()


def test_the_money_of_all_runs_is_in_the_ledger(tmp_path):
    for _ in range(3):
        with client(
            Server(), protocol="pgn", price_per_image=0.25, ledger=tmp_path / "l.sqlite"
        ) as c:
            c.classify(picture())
            assert c.usage.cost == 0.25
    with client(Server(), ledger=tmp_path / "l.sqlite") as c:
        assert c._session.account.ledger.spent(c._session.account._endpoint) == (3, 0.75)


def test_a_ledger_shows_no_token_of_the_url(tmp_path):
    path = tmp_path / "l.sqlite"
    with client(Server(), url="http://127.0.0.1:9/m?token=t0ken", protocol="pgn", ledger=path) as c:
        c.classify(picture())
    assert b"127.0.0.1:9/m" in path.read_bytes()
    assert b"t0ken" not in path.read_bytes()


def test_a_wrong_argument_leaves_no_file_open_and_no_client(tmp_path):
    with pytest.raises(ConfigurationError, match="budget"):
        client(Server(), budget=-1, ledger=tmp_path / "l.sqlite")


# ---- the command line


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--out", "{0}/j.jsonl"], "j.jsonl.ledger.sqlite"),
        (["--out", "-", "--cache", "{0}/a.sqlite"], "a.sqlite.ledger.sqlite"),
        (["--out", "{0}/j.jsonl", "--ledger", "{0}/l.sqlite"], "l.sqlite"),
    ],
)
def test_a_budget_is_kept_beside_the_journal_or_the_cache_and_a_higher_one_goes_on(
    words, kept, folder, tmp_path, capsys
):
    words = [word.format(tmp_path) for word in words]
    with counting(fails=0) as server:
        for budget, sent in ((5, 5), (5, 5), (8, 8)):
            command = [
                "predict",
                str(folder),
                "--url",
                server.url,
                "--protocol",
                "pgn",
                "--budget",
                str(budget),
            ]
            assert main([*command, *words]) == 3
            assert server.pictures == sent
    assert "budget" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.sqlite") if path.name != "a.sqlite"] == [kept]


def test_a_dry_run_leaves_no_file_behind(folder, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    with counting() as server:
        words = [
            "--out",
            f"{tmp_path}/j",
            "--cache",
            f"{tmp_path}/a",
            "--ledger",
            f"{tmp_path}/l",
            "--budget",
            "5",
        ]
        ended = main(
            ["predict", str(folder), "--url", server.url, "--protocol", "pgn", "--dry-run", *words]
        )
        assert (ended, server.pictures) == (0, 0)
    assert json.loads(capsys.readouterr().out)["images"] == 150
    assert sorted(tmp_path.rglob("*")) == before


def test_an_endpoint_billed_by_time_costs_its_hours(monkeypatch):
    now = iter((1000.0, 2800.0, 4600.0))
    monkeypatch.setattr("pgn_client.wire.ledger.time.monotonic", lambda: next(now))
    account = Account(Ledger(), "e", "e", price_per_hour=6.0)
    assert account.usage.cost == 0
    account.reserve()
    account.sent(1, retry=False)
    account.asked()
    assert account.usage.cost == pytest.approx(3.0)

    both = Account(Ledger(), "e", "e", price_per_image=0.5, price_per_hour=6.0)
    both.reserve()
    both.sent(1, retry=False)
    assert both.usage.cost == 0.5
    assert Account(Ledger(), "e", "e").usage.cost is None


@pytest.mark.parametrize("price", [-1, math.inf, math.nan, True, "1"])
def test_a_price_per_hour_that_is_none_is_refused(price):
    with pytest.raises(ConfigurationError, match="price_per_hour"):
        client(Server(), price_per_hour=price)


def test_a_dry_run_counts_the_hours():
    prices = argparse.Namespace(price_per_image=None, price_per_hour=6.0)
    assert plan(10, 0, 1800.0, prices)["cost"] == 3.0
    prices.price_per_image = 0.5
    assert plan(10, 0, 1800.0, prices)["cost"] == 8.0
    assert (
        plan(10, 0, 1.0, argparse.Namespace(price_per_image=None, price_per_hour=None))["cost"]
        is None
    )


def test_the_price_of_an_image_has_its_share_of_the_hours():
    assert Usage(cost=3.0, billable=10).price_of_an_image(0.1) == pytest.approx(0.3)
    assert Usage(cost=2.0, billable=10).price_of_an_image(None) == pytest.approx(0.2)
    # Without hours, the price is exactly the one that was given.
    assert Usage(cost=7 * 0.1, billable=7).price_of_an_image(0.1) == 0.1
    # Answers from a cache cost nothing, so they say nothing about the price.
    assert Usage(cost=0.0, billable=0).price_of_an_image(None) is None
