"""``--dry-run`` of every command that sends: what it says is what is then sent."""

import json

import httpx
import pytest

from pgn_client import AdaptedClient, PromptAdapter
from pgn_client.evaluation.study import evaluate, queries
from pgn_client.training import load_task
from tests.e2e.conftest import pgn
from tests.e2e.test_predict import images_seen


def planned(*words):
    done = pgn(*words, "--dry-run", "--price-per-image", "0.5")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["images"] == sum(part["images"] for part in plan["parts"].values())
    assert plan["cost"] == plan["images"] / 2
    assert plan["seconds_at_least"] > 0 or not plan["images"]
    return plan


@pytest.fixture(scope="module")
def few(digits):
    """A few images of each class."""
    return load_task(digits, shots=2).limited(val=10, test=12)


def test_what_evaluate_sends_is_what_it_plans(few, checkpoint, server, tmp_path):
    """The prompt stands in for a rival that is trained alike: it is sent in the same way."""
    adapter = PromptAdapter.load(checkpoint)
    plan = list(queries(few, adapter, rival=adapter))
    with AdaptedClient(server, None) as client:
        found = evaluate(few, lambda a: client.with_options(pgn_ckpt=a), adapter, rival=adapter)
        assert client.usage.images == found.images_sent == sum(len(query.images) for query in plan)
    with AdaptedClient(server, None, cache=tmp_path / "a.sqlite") as client:
        evaluate(few, lambda a: client.with_options(pgn_ckpt=a), adapter)
        for query in queries(few, adapter):
            assert client.with_options(pgn_ckpt=query.adapter).recorded(query.images) == len(
                query.images
            )
        controls = next(query for query in queries(few, adapter) if query.part == "controls")
        assert client.with_options(pgn_ckpt=adapter).recorded(controls.images) == 0


def test_evaluate_plans_its_parts_and_sends_and_writes_nothing(
    digits, checkpoint, server, tmp_path
):
    seen = images_seen(server)
    plan = planned(
        "evaluate", digits, "--url", server, "--ckpt", checkpoint, "--out", tmp_path / "out"
    )
    sizes = {name: part["images"] for name, part in plan["parts"].items()}
    train, val, test = sizes["training"], sizes["validation"] // 3, sizes["test"] // 3
    # each split once as it is, once prompted, once through the rival
    assert (train, val, test) == (120, 120, 120)
    assert sizes["training, augmented"] == 4 * train
    assert sizes["controls"] % test == 0
    assert plan["already_answered"] == 0
    assert images_seen(server) == seen
    assert not (tmp_path / "out").exists()


def test_map_plans_what_is_left_to_send(digits, checkpoint, server, tmp_path):
    cache, out = tmp_path / "a.sqlite", tmp_path / "mapped.safetensors"
    words = (
        "map",
        digits,
        "--url",
        server,
        "--ckpt",
        checkpoint,
        "--shots",
        "3",
        "--out",
        out,
        "--cache",
        cache,
    )
    plan = planned(*words)
    assert {name: part["images"] for name, part in plan["parts"].items()} == {
        "training": 30,
        "validation": 120,
    }
    assert not list(tmp_path.iterdir())
    assert pgn(*words, "--budget", "1000").returncode == 0
    first = out.read_bytes()
    plan = planned(*words)
    assert (plan["images"], plan["already_answered"], plan["cost"]) == (0, 150, 0)
    seen = images_seen(server)
    replayed = pgn(*words[:-2], "--replay", cache)
    assert replayed.returncode == 0, replayed.stderr
    assert "0 images sent" in replayed.stderr
    assert images_seen(server) == seen
    assert out.read_bytes() == first
    with_no_server = pgn(
        "map", digits, "--url", server, "--replay", cache, *words[4:-2], "--dry-run"
    )
    assert json.loads(with_no_server.stdout)["images"] == 0


def test_one_budget_holds_over_all_that_a_command_asks(digits, checkpoint, server, tmp_path):
    words = (
        "map",
        digits,
        "--url",
        server,
        "--ckpt",
        checkpoint,
        "--shots",
        "3",
        "--out",
        tmp_path / "m.safetensors",
    )
    seen = images_seen(server)
    done = pgn(*words, "--budget", "60")  # 30 training images, and then 120 of the validation
    assert done.returncode == 3
    assert "budget exhausted: 60 of 60" in done.stderr
    assert images_seen(server) - seen == 60
    assert httpx.get(f"{server}/healthz").status_code == 200
