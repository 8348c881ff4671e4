"""Recorded runs: replayed without a request, and sent again to find out whether the model has
changed.
"""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from pgn_client import Prediction
from pgn_client.cli import main
from pgn_client.errors import BudgetExceededError, ConfigurationError, NotRecordedError
from pgn_client.types import Answer
from pgn_client.wire.cache import CANARIES, AnswerCache
from pgn_client.wire.drift import Drift, difference, differing, judge

from .fakes import CARD, Server, ToyAdapter, answered, async_client, client, file_bytes, picture
from .test_budget import counting

# ---- replay


class Nobody(Server):
    """An endpoint that must not be asked anything."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.method} {request.url}")


def record(path, pictures, server=None, ckpt=None, **options):
    with client(server or Server(), ckpt, cache=path, **options) as c:
        return list(c.classify_many(pictures))


def replay(path, pictures, ckpt=None, **options):
    with client(Nobody(), ckpt, cache=AnswerCache(path, replay=True), **options) as c:
        results = list(c.classify_many(pictures))
        assert c.usage.requests == 0
        return results


@pytest.mark.parametrize("protocol", ["auto", "pgn", "huggingface"])
@pytest.mark.parametrize("prompted", [False, True])
def test_a_replay_gives_the_same_predictions_and_sends_nothing_at_all(protocol, prompted, tmp_path):
    answer = httpx.Response(200, json=[{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}])
    script = [httpx.Response(503), *[answer if protocol == "huggingface" else answered()] * 20]
    pictures = [picture(i) for i in range(20)]
    ckpt = ToyAdapter([0.2, 0.8], 0.25) if prompted else None
    first = record(tmp_path / "a.sqlite", pictures, Server(script), ckpt, protocol=protocol)
    again = replay(tmp_path / "a.sqlite", pictures, ckpt, protocol=protocol)
    assert again == first
    assert sorted(result.attempts for result in again) == [1] * 19 + [2]


def test_a_replay_needs_no_key_no_budget_and_no_pace(tmp_path):
    record(tmp_path / "a.sqlite", [picture()], api_key="k")
    (result,) = replay(tmp_path / "a.sqlite", [picture()], budget=0, requests_per_second=1e-9)
    assert result.label == "a"


def test_a_picture_that_is_not_recorded_is_an_error_and_not_a_request(tmp_path):
    record(tmp_path / "a.sqlite", [picture(0)])
    known, unknown = replay(tmp_path / "a.sqlite", [picture(0), picture(1)])
    assert isinstance(known, Prediction)
    assert isinstance(unknown.error, NotRecordedError)
    assert "a.sqlite" in str(unknown.error)
    assert unknown.error.attempts == 0


def test_a_replay_knows_nothing_of_the_model_but_its_answers(tmp_path):
    record(tmp_path / "a.sqlite", [picture()])
    with client(Nobody(), cache=AnswerCache(tmp_path / "a.sqlite", replay=True)) as c:
        with pytest.raises(NotRecordedError, match="model description is not recorded"):
            c.info()
        with pytest.raises(ConfigurationError, match="drift"):
            c.drift()


@pytest.mark.parametrize("other", [{"url": "http://127.0.0.1:10"}, {"model": "another"}])
def test_a_replay_of_another_endpoint_is_refused_when_the_client_is_made(other, tmp_path):
    record(tmp_path / "a.sqlite", [picture()])
    with pytest.raises(ConfigurationError, match="no answer of 127"):
        replay(tmp_path / "a.sqlite", [], **other)


def zero_shot(labels, cache, server):
    return client(server, cache=cache, protocol="huggingface-zero-shot", labels=labels)


@pytest.mark.parametrize(
    "other", [{"labels": ["c", "d"]}, {"protocol": "huggingface", "labels": ["a", "b"]}]
)
def test_answers_to_other_labels_or_in_another_protocol_are_not_replayed(other, tmp_path):
    said = httpx.Response(200, json=[{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}])
    with zero_shot(["a", "b"], tmp_path / "a.sqlite", Server([said])) as c:
        c.classify(picture())
    with zero_shot(["a", "b"], AnswerCache(tmp_path / "a.sqlite", replay=True), Nobody()) as c:
        assert c.classify(picture()).label == "a"
    with pytest.raises(ConfigurationError, match="protocol, labels and options"):
        replay(tmp_path / "a.sqlite", [], **({"protocol": "huggingface-zero-shot"} | other))


def test_pictures_that_were_sent_with_other_labels_show_no_drift(tmp_path):
    said = httpx.Response(200, json=[{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}])
    with zero_shot(["a", "b"], tmp_path / "a.sqlite", Server([said])) as c:
        c.classify(picture())
    with zero_shot(["c", "d"], tmp_path / "a.sqlite", Nobody()) as c:
        assert c.drift().pictures == 0


def test_an_asyncio_replay_sends_nothing_either(tmp_path):
    first = record(tmp_path / "a.sqlite", [picture(i) for i in range(3)])

    async def ask():
        async with async_client(
            Nobody(), cache=AnswerCache(tmp_path / "a.sqlite", replay=True)
        ) as c:
            return [r async for r in c.classify_many([picture(i) for i in range(3)])]

    assert asyncio.run(ask()) == first


def test_a_recorded_command_is_replayed_byte_for_byte_with_the_server_gone(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(14):  # the last two are the first once more
        (folder / f"{i:02}.png").write_bytes(file_bytes(picture(i % 12)))
    words = ["predict", str(folder), "--protocol", "pgn", "--max-concurrency", "4"]
    cache, first, again = (str(tmp_path / name) for name in ("a.sqlite", "1.jsonl", "2.jsonl"))
    with counting(fails=5) as server:
        assert main([*words, "--url", server.url, "--cache", cache, "--out", first]) == 0
        sent = server.pictures
    assert main([*words, "--url", server.url, "--replay", cache, "--out", again]) == 0
    assert sent == server.pictures > 12
    assert "0 images sent in 0 requests" in capsys.readouterr().err
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_a_command_that_replays_records_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["predict", "x", "--url", "http://h", "--replay", "a", "--cache", "b"])
    assert (
        main(["predict", str(tmp_path), "--url", "http://127.0.0.1:9", "--replay", "missing"]) == 2
    )
    assert "not allowed with" in capsys.readouterr().err


# ---- drift


def scored(*scores):
    return answered(["a", "b"], scores)


def drift(script, path, card=CARD, pictures=3, **options):
    """Record some answers of (0.75, 0.25), then ask a server that follows a script."""
    record(path, [picture(i) for i in range(pictures)])
    server = Server(script, card={**CARD, **card})
    with client(server, cache=path, **options) as c:
        found = c.drift()
        return found, c.usage.billable, len(server.requests)


def test_a_model_that_answers_as_before_has_not_drifted(tmp_path):
    found, billable, sent = drift([], tmp_path / "a.sqlite", pictures=20)
    assert found == Drift(CANARIES, 0.0, 0.0, 0.0)
    assert not found.drifted
    assert billable == sent == CANARIES


def test_a_model_that_answers_otherwise_has_drifted_although_it_keeps_its_labels(tmp_path):
    found, billable, _ = drift([scored(0.7, 0.3)] * 9, tmp_path / "a.sqlite")
    assert (found.changed, found.noise) == (0.0, 0.0)
    assert found.difference == pytest.approx(0.05)
    assert found.drifted
    assert billable == 6  # each of the three was sent once more, to see whether it is noise


def test_other_labels_are_told(tmp_path):
    found, *_ = drift(
        [scored(0.75, 0.25), *[scored(0.25, 0.75)] * 9], tmp_path / "a.sqlite", pictures=4
    )
    assert (found.changed, found.difference, found.drifted) == (0.75, 0.5, True)


def test_a_noisy_model_is_not_taken_for_a_changed_one(tmp_path):
    found, *_ = drift([scored(0.7, 0.3)] * 3 + [scored(0.76, 0.24)] * 3, tmp_path / "a.sqlite")
    assert found.noise == pytest.approx(0.06)
    assert not found.drifted


def test_batching_noise_is_no_drift_and_costs_no_second_picture(tmp_path):
    found, billable, _ = drift([scored(0.7502, 0.2498)] * 3, tmp_path / "a.sqlite")
    assert (found.drifted, billable) == (False, 3)


def test_a_model_that_says_it_is_another_is_compared_with_the_old_answers(tmp_path):
    found, *_ = drift([scored(0.2, 0.8)] * 9, tmp_path / "a.sqlite", card={"weights_sha256": "new"})
    assert (found.pictures, found.changed, found.drifted) == (3, 1.0, True)


@pytest.mark.parametrize("card", [{}, {"weights_sha256": "new"}])
def test_looking_for_drift_records_nothing(card, tmp_path):
    path = tmp_path / "a.sqlite"
    drift([scored(0.2, 0.8)] * 9, path, card=card)
    assert [r.score for r in replay(path, [picture(i) for i in range(3)])] == [0.75] * 3


def test_drift_keeps_to_the_budget(tmp_path):
    with pytest.raises(BudgetExceededError):
        drift([], tmp_path / "a.sqlite", budget=2)


def test_prompted_pictures_are_sent_again_as_they_were(tmp_path):
    path, server = tmp_path / "a.sqlite", Server()
    record(path, [picture(i) for i in range(2)], server, ToyAdapter())
    again = Server()
    with client(again, cache=path) as c:
        c.drift()
    assert sorted(r.content for r in again.requests) == sorted(r.content for r in server.requests)


def test_an_asyncio_client_finds_drift_too(tmp_path):
    record(tmp_path / "a.sqlite", [picture(i) for i in range(3)])

    async def ask():
        async with async_client(Server([scored(0.7, 0.3)] * 6), cache=tmp_path / "a.sqlite") as c:
            return await c.drift()

    assert asyncio.run(ask()).drifted


@pytest.mark.parametrize("k", [0, 1.5, True])
def test_a_number_of_pictures_that_is_none_is_refused(k, tmp_path):
    with (
        client(Server(), cache=tmp_path / "a.sqlite") as c,
        pytest.raises(ConfigurationError, match="k: got"),
    ):
        c.drift(k)


def test_without_a_cache_there_is_nothing_to_compare():
    with client(Server()) as c, pytest.raises(ConfigurationError, match="cache="):
        c.drift()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Answer(("a", "b"), (0.6, 0.4)), Answer(("b", "a"), (0.5, 0.5)), 0.1),
        # b has at most what c has
        (Answer(("a", "b"), (0.5, 0.2)), Answer(("a", "c"), (0.5, 0.19)), 0.01),
        # and at most what a and c leave
        (Answer(("a", "b"), (0.6, 0.3)), Answer(("a", "c"), (0.6, 0.28)), 0.18),
        (Answer(("a",), (1.0,)), Answer(("b",), (1.0,)), 1.0),
        (
            Answer(("a", "b"), (0.0, 0.0), "logits"),
            Answer(("a", "b"), (900.0, 900.0), "logits"),
            0.0,
        ),
        (Answer(("a", "b"), (2.0, 1.0), "logits"), Answer(("a", "c"), (2.0, 1.0), "logits"), 0.0),
        (Answer(("a",), (1.0,), "label"), Answer(("b",), (1.0,), "label"), 1.0),
        (Answer(("a",), (1.0,), "label"), Answer(("a",), (1.0,), "label"), 0.0),
        (Answer(("a",), (1.0,), "label"), Answer(("a",), (1.0,)), 1.0),
        (
            Answer(("d", "e"), (4.0, -2.0), "embedding"),
            Answer(("d", "e"), (4.0, -1.0), "embedding"),
            0.25,
        ),
        (Answer(("d",), (0.0,), "embedding"), Answer(("d",), (0.0,), "embedding"), 0.0),
        (Answer(("d",), (1.0,), "embedding"), Answer(("d", "e"), (1.0, 1.0), "embedding"), 1.0),
    ],
)
def test_the_difference_of_two_answers(a, b, expected):
    assert difference(a, b) == pytest.approx(expected)
    assert difference(b, a) == pytest.approx(expected)


def test_nothing_to_compare_is_no_drift():
    assert differing([], []) == []
    assert not judge([], [], {}).drifted


# ---- the command


def test_the_command_says_drift_by_its_status(tmp_path, capsys):
    cache = str(tmp_path / "a.sqlite")
    (tmp_path / "a.png").write_bytes(file_bytes(picture()))
    with counting(fails=0) as server:
        words = ["--url", server.url, "--protocol", "pgn", "--cache", cache]
        assert main(["predict", str(tmp_path / "a.png"), *words]) == 0
        capsys.readouterr()
        assert main(["drift", *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {
            "pictures": 1,
            "changed": 0.0,
            "difference": 0.0,
            "noise": 0.0,
            "drifted": False,
        }
        assert server.pictures == 2
        _change_the_record(cache)
        assert main(["drift", *words]) == 1
    told = capsys.readouterr()
    assert "1 images sent again: 100% have another label" in told.out
    assert "warning: the model has changed" in told.err


def _change_the_record(path):
    cache = AnswerCache(path)
    cache._db.execute(
        "UPDATE answers SET answer = ?", (json.dumps([["b"], [1.0], "probabilities"]),)
    )
    cache._db.commit()
    cache.close()


@pytest.mark.parametrize("kind", ["none", "missing", "empty"])
def test_a_command_without_recorded_pictures_is_one_line_and_status_2(kind, tmp_path, capsys):
    if kind == "empty":
        AnswerCache(tmp_path / "a.sqlite").close()
    cache = [] if kind == "none" else ["--cache", str(tmp_path / "a.sqlite")]
    assert main(["drift", "--url", "http://127.0.0.1:9", *cache]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "a.sqlite").exists() == (kind == "empty")
