"""Rule 6: the surrogate is checked against the endpoint before money is spent."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import httpx
import pytest
import torch

from pgn_client import AdaptedClient, PromptAdapter
from pgn_client.cli import main
from pgn_client.errors import SurrogateMismatchError
from pgn_client.evaluation.study import evaluate
from pgn_client.evaluation.surrogate_check import MOST, check
from pgn_client.surrogate import backbone
from pgn_client.training import load_task
from pgn_client.types import Answer


@pytest.fixture(scope="module")
def few(digits):
    return load_task(digits, shots=2).limited(val=40, test=12)


@pytest.fixture(scope="module")
def surrogate():
    torch.set_num_threads(1)
    return backbone.load("bundled")


def claiming(checkpoint, claim):
    """The checkpoint as if the user had made this claim at training."""
    adapter = PromptAdapter.load(checkpoint)
    adapter.card = replace(adapter.card, surrogate=claim)
    return adapter


class OtherModel:
    """An endpoint with the surrogate's labels, in another order for every image."""

    def __init__(self, labels):
        self.labels = labels
        self.images = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        self.images += 1
        return httpx.Response(
            200,
            json=[
                {"label": name, "score": 1 / len(self.labels)}
                for name in self.labels[self.images % 7 :]
            ],
        )


def run(few, pgn, surrogate, server, **options):
    with AdaptedClient(
        "http://127.0.0.1:9/models/x",
        None,
        protocol="huggingface",
        transport=httpx.MockTransport(server),
    ) as client:
        return evaluate(
            few,
            lambda adapter: client.with_options(pgn_ckpt=adapter),
            pgn,
            surrogate=surrogate,
            **options,
        )


def test_another_model_than_the_claimed_one_is_refused_after_few_images(few, checkpoint, surrogate):
    server = OtherModel(surrogate.labels)
    pgn = claiming(checkpoint, "same")
    with pytest.raises(SurrogateMismatchError, match=r"another model.*--anyway"):
        run(few, pgn, surrogate, server)
    assert server.images <= MOST


def test_the_command_exits_with_1_and_goes_on_with_anyway(
    few, checkpoint, surrogate, digits, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "same.safetensors"
    claiming(checkpoint, "same").save(path)
    server = OtherModel(surrogate.labels)
    monkeypatch.setattr(
        "pgn_client.cli.evaluate.connect",
        lambda args, adapter: AdaptedClient(
            args.url, adapter, protocol="huggingface", transport=httpx.MockTransport(server)
        ),
    )
    words = ["evaluate", str(digits), "--url", "http://127.0.0.1:9/x", "--ckpt", str(path)]
    assert main(words) == 1
    assert "another model" in capsys.readouterr().err
    assert server.images <= MOST


@pytest.mark.parametrize("claim", ["stand_in", None])
def test_a_stand_in_is_reported_and_not_refused(claim, few, checkpoint, surrogate):
    server = OtherModel(surrogate.labels)
    report = run(few, claiming(checkpoint, claim), surrogate, server)
    assert report.surrogate_check["result"] == "other"
    assert "hosts another model" in str(report.verdict)
    assert json.dumps(report.to_json()["surrogate_check"])


def test_the_same_model_is_confirmed_and_its_images_are_not_paid_twice(
    few, checkpoint, surrogate, server
):
    with AdaptedClient(server, None) as client:
        report = evaluate(
            few,
            lambda adapter: client.with_options(pgn_ckpt=adapter),
            claiming(checkpoint, "same"),
            surrogate=surrogate,
        )
        without = client.usage.images
    assert report.surrogate_check["result"] == "same"
    assert report.images_sent == without
    assert "another model" not in str(report.verdict)


def test_labels_under_other_names_are_not_held_against_the_endpoint(few, checkpoint, surrogate):
    def ask(paths):
        return [Answer(("something else",), (1.0,)) for _ in paths]

    found = check(ask, few.val.paths, claiming(checkpoint, "same"), surrogate)
    assert (found.result, found.images) == ("unknown", 0)


def test_training_through_the_bundled_model_warns_that_it_is_a_stand_in(
    digits, tmp_path, caplog, capsys
):
    out = tmp_path / "a.safetensors"
    words = ["train", str(digits), "--out", str(out), "--epochs", "1", "--shots", "2"]
    with caplog.at_level(logging.WARNING):
        assert main([*words, "--method", "no_prompt"]) == 0
    assert "bundled stand-in" in capsys.readouterr().err
    assert PromptAdapter.load(out).card.surrogate is None
    assert main([*words, "--method", "no_prompt", "--stand-in"]) == 0
    assert "bundled stand-in" not in capsys.readouterr().err
    assert PromptAdapter.load(out).card.surrogate == "stand_in"
