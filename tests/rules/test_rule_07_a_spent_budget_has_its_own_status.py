# ruff: noqa: F811 (fixtures that are imported)
"""Rule 7: a spent budget is told apart from an outage, in the words of the command line."""

import json

import pytest

from pgn_client.cli import BUDGET, build_parser, main
from pgn_client.cli.console import error_text, use_options
from pgn_client.errors import BudgetExceededError
from pgn_client.wire.cache import AnswerCache
from pgn_client.wire.ledger import Ledger

from .hosted import place, server, url  # noqa: F401 (two are fixtures)


def pgn(*words):
    return main([str(word) for word in words])


def options_of(command):
    """Let messages name the options of a command; return nothing."""
    choices = next(a.choices for a in build_parser()._actions if isinstance(a.choices, dict))
    use_options(choices[command])


def test_predict_keeps_what_it_has_and_ends_with_status_3(server, place, tmp_path, capsys):
    out = tmp_path / "p.jsonl"
    words = ("predict", place / "in", "--url", url(server), "--out", out)
    assert pgn(*words, "--budget", 5) == BUDGET == 3
    said = capsys.readouterr().err
    assert "raise --budget to send more" in said
    assert "budget=" not in said
    labels = [json.loads(line)["label"] for line in out.read_text().splitlines()]
    assert sum(label is not None for label in labels) == 5

    before = server.seen
    assert pgn(*words) == 0
    assert server.seen - before == 19


def test_a_broken_image_and_an_outage_are_not_a_spent_budget(server, place, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    words = ("predict", tmp_path, "--url", url(server), "--out", tmp_path / "p.jsonl")
    assert pgn(*words, "--budget", 5) == 1
    down = ("predict", place / "in", "--url", "http://127.0.0.1:9", "--max-retries", 0)
    assert pgn(*down, "--out", tmp_path / "d.jsonl", "--budget", 5) == 1


def test_map_keeps_the_answers_that_it_has_paid_for(server, place, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    words = ("map", place / "in", "--url", url(server), "--out", out)
    before = server.seen
    assert pgn(*words, "--budget", 7) == 3
    assert "raise --budget" in capsys.readouterr().err
    assert server.seen - before == 7
    cache = AnswerCache(f"{out}.answers.sqlite")
    assert len(cache) == 7
    cache.close()

    assert pgn(*words, "--budget", 1000) == 0
    paid_once = server.seen - before
    assert out.exists()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]

    assert pgn(*words) == 0
    assert server.seen - before == 2 * paid_once  # a mapping that is fitted again asks again


@pytest.mark.parametrize("command", ["probe", "drift"])
def test_other_commands_end_with_status_3(command, server, place, tmp_path, capsys):
    ledger = Ledger(tmp_path / "l.sqlite")
    ledger.close()
    words = {
        "probe": ("probe", url(server), "--out", tmp_path / "e.json"),
        "drift": ("drift", "--url", url(server), "--cache", place / "a.sqlite"),
    }[command]
    assert pgn(*words, "--budget", 0, "--ledger", tmp_path / "l.sqlite") == 3
    assert capsys.readouterr().err.endswith("raise --budget to send more\n")


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("predict", str(BudgetExceededError(3, 3)), "raise --budget to send more"),
        ("predict", "budget: got -1, expected", "--budget: got -1, expected"),
        ("predict", "max_retries: got -1", "--max-retries: got -1"),
        ("predict", "labels: got 3; give labels= (--source-labels)", "give --source-labels"),
        ("predict", "got model=None, expected one; give model= (--model)", "got no --model"),
        ("predict", "got pgn_ckpt=None, expected a", "got no --ckpt, expected a"),
        ("predict", "give api_key= or PGN_API_KEY, and", "give PGN_API_KEY, and"),
        ("predict", "another authorization in http=; give", "authorization in --header; give"),
        ("predict", "gate: got query_below=1.5, expected", "gate: got --query-below 1.5, expected"),
        ("predict", "fusion and query_below need", "fusion and --query-below need"),
        (
            "predict",
            "in a.sqlite; record it with cache= (--cache a.sqlite)",
            "with --cache a.sqlite",
        ),
        ("train", "labels: got 3, expected 4", "--labels: got 3, expected 4"),
        ("train", "top_k: got 0", "--top-k: got 0"),
        ("map", "shots: got 0, expected", "--shots: got 0, expected"),
    ],
)
def test_a_message_names_the_options_of_the_command(command, message, expected):
    options_of(command)
    assert expected in error_text(message)


@pytest.mark.parametrize(
    "text",
    [
        "https://host/v1?model=a&budget=3: 404",
        "/data/max_retries/a.png: no such file",
        "checkpoint a: mapping.source[0]: got 3, expected text",
        "resamples=0 is no option",
    ],
)
def test_what_only_looks_like_an_argument_stays(text):
    options_of("predict")
    assert error_text(text) == text


def test_help_lists_the_statuses(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "3 the budget is spent" in said
    assert "130 interrupted" in said
