from __future__ import annotations

import asyncio
import html
import inspect
import io
import itertools
import json
import logging
import math
import pickle
import ssl
import subprocess
import sys
import threading
import traceback
from typing import get_args

import httpx
import numpy as np
import pytest
from PIL import Image

from pgn_client import AdaptedClient, AsyncAdaptedClient, ImageFailure, Prediction
from pgn_client.errors import (
    AuthenticationError,
    BudgetExceededError,
    CheckpointError,
    ConfigurationError,
    ConnectionFailedError,
    EndpointError,
    ImageError,
    InvalidRequestError,
    MissingDependencyError,
    ProtocolMismatchError,
    RateLimitedError,
    ServerError,
    TimedOutError,
)
from pgn_client.types import ModelInfo
from pgn_client.wire.cache import AnswerCache
from pgn_client.wire.steps import BrokenKind, Progress
from pgn_client.wire.transport import FOREIGN, Sending

from .fakes import (
    CARD,
    URL,
    Server,
    ToyAdapter,
    answered,
    async_client,
    client,
    file_bytes,
    picture,
)


def untrusted() -> httpx.ConnectError:
    """What httpx raises where the server's certificate is not trusted."""
    error = httpx.ConnectError("failed")
    error.__cause__ = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] no")
    return error


def refused(status: int, message: str = "no", **headers: str) -> httpx.Response:
    return httpx.Response(
        status, json={"error": {"code": "c", "message": message}}, headers=headers
    )


# ---- what is sent


def test_classify_returns_the_endpoints_answer():
    with client(Server()) as c:
        result = c.classify(picture())
    assert result == Prediction("a", 0.75, {"a": 0.75, "b": 0.25}, "endpoint", 1, "req-7")
    assert list(result.scores) == ["a", "b"]


def test_the_sent_picture_is_the_adapted_one_pixel_for_pixel():
    server = Server()
    with client(server, ToyAdapter()) as c:
        c.classify(picture())
        assert np.array_equal(np.asarray(c.adapt(picture())), 255 - np.asarray(picture()))
    sent = Image.open(io.BytesIO(server.requests[0].content))
    assert np.array_equal(np.asarray(sent), 255 - np.asarray(picture()))


def test_requests_carry_the_documented_headers():
    server = Server()
    with client(server, api_key="k") as c:
        c.classify(picture())
    headers = server.requests[0].headers
    assert headers["content-type"] == "image/png"
    assert headers["accept"] == "application/json"
    assert headers["authorization"] == "Bearer k"
    assert headers["x-pgn-retry-count"] == "0"
    assert headers["user-agent"].startswith("pgn-client/")


def test_one_idempotency_key_per_call_across_retries():
    server = Server([refused(503), httpx.ReadError("cut"), answered(), answered()])
    with client(server) as c:
        c.classify(picture())
        c.classify(picture())
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert [request.headers["x-pgn-retry-count"] for request in server.requests] == [
        "0",
        "1",
        "2",
        "0",
    ]


def test_the_key_comes_from_the_environment_by_default(monkeypatch):
    monkeypatch.setenv("PGN_API_KEY", "from-env")
    server = Server()
    with client(server) as c:
        c.classify(picture())
    assert server.requests[0].headers["authorization"] == "Bearer from-env"


def test_the_key_is_in_no_repr_log_or_exception(caplog):
    key = "sk-very-secret"
    caplog.set_level(logging.DEBUG)
    for step in (
        refused(401),
        refused(500),
        httpx.ConnectError("down"),
        httpx.LocalProtocolError("x"),
    ):
        with client(Server([step] * 9), api_key=key) as c:
            with pytest.raises(EndpointError) as caught:
                c.classify(picture())
            error = caught.value
            assert key not in "".join(traceback.format_exception(error))
            assert key.encode() not in pickle.dumps(error)
            assert key not in f"{c!r}{vars(c)}{error.__context__!r}"
    assert key not in caplog.text


SECRET = "sk-very/secret&0123456789"


@pytest.mark.parametrize("shift", [0, 120, 150, 180, 190])
@pytest.mark.parametrize(
    "spelling", [SECRET, json.dumps(SECRET).replace("/", r"\/"), html.escape(SECRET)]
)
def test_a_server_that_echoes_the_key_leaves_no_part_of_it_in_an_error(shift, spelling):
    echo, html_page = (
        " " * 8190 + "x" * shift + f"Bearer {spelling}",
        (f"<html>{'x' * shift} {spelling}"),
    )
    steps = [
        httpx.Response(200, text=echo),
        httpx.Response(200, json={"output": "probs", "predictions": [echo.strip()]}),
        httpx.Response(
            200, json={"output": "probs", "predictions": [{"labels": [[echo]], "scores": [1]}]}
        ),
        httpx.Response(400, text=echo),
        httpx.Response(400, text=html_page),
        httpx.Response(400, json={"error": {"message": echo}}),
        httpx.RemoteProtocolError(f"illegal status line: {echo}"),
    ]
    for step in steps:
        with (
            client(Server([step]), api_key=SECRET, max_retries=0) as c,
            pytest.raises(EndpointError) as caught,
        ):
            c.classify(picture())
        error = caught.value
        everything = f"{error}{error.__context__!r}{error.__cause__!r}{vars(error)}"
        assert "sk-v" not in everything, step


def test_a_server_that_echoes_the_key_in_a_header_leaves_it_in_no_request_id():
    step = refused(400, **{"x-request-id": "y" * 190 + SECRET})
    with client(Server([step]), api_key=SECRET) as c, pytest.raises(EndpointError) as caught:
        c.classify(picture())
    assert caught.value.request_id.startswith("yyy")
    assert "sk-v" not in caught.value.request_id


def test_a_model_card_that_echoes_the_key_leaves_it_in_no_error():
    server = Server(card={**CARD, "profile": f"direct {SECRET}"})
    with (
        client(server, ToyAdapter(), api_key=SECRET) as c,
        pytest.raises(CheckpointError) as caught,
    ):
        c.classify(picture())
    assert "sk-v" not in str(caught.value)


def test_the_constructor_sends_nothing():
    server = Server(card=httpx.ConnectError("down"))
    client(server, ToyAdapter()).close()
    assert server.card_requests == 0


# ---- retries


def test_passing_failures_are_retried_with_the_documented_waits():
    server = Server(
        [
            refused(503),
            refused(429, **{"retry-after": "3"}),
            httpx.RemoteProtocolError("disconnected"),
        ]
    )
    with client(server) as c:
        assert c.classify(picture()).attempts == 4
        assert c.clock.slept == [0.5, 3.0, 2.0]
        assert (c.usage.images, c.usage.requests, c.usage.retries) == (1, 5, 3)


def test_a_retry_after_beyond_the_cap_fails_at_once_and_says_why():
    with client(Server([refused(429, **{"retry-after": "3600"})]), timeout=9999) as c:
        with pytest.raises(RateLimitedError, match="asks to wait 3600 s") as caught:
            c.classify(picture())
        assert c.clock.slept == []
    assert caught.value.status == 429


def test_retries_stop_at_the_deadline():
    with client(Server([refused(503)] * 99), timeout=3, max_retries=99) as c:
        with pytest.raises(ServerError, match="would pass the deadline") as caught:
            c.classify(picture())
        assert c.clock.slept == [0.5, 1.0]
    assert caught.value.attempts == 3


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (refused(400), InvalidRequestError),
        (refused(401), AuthenticationError),
        (refused(403), AuthenticationError),
        (refused(404), InvalidRequestError),
        (refused(422), InvalidRequestError),
        (refused(501), ServerError),
        (httpx.Response(302, headers={"location": "http://elsewhere/"}), InvalidRequestError),
        (httpx.Response(200, text="<html>"), ProtocolMismatchError),
        (httpx.Response(204), ProtocolMismatchError),
        (httpx.ReadTimeout("late"), TimedOutError),
        (httpx.UnsupportedProtocol("what"), ConnectionFailedError),
        (untrusted(), ConnectionFailedError),
        (httpx.DecodingError("gzip"), ProtocolMismatchError),
    ],
)
def test_lasting_failures_are_told_at_once(step, kind):
    server = Server([step])
    with client(server) as c, pytest.raises(kind) as caught:
        c.classify(picture())
    error = caught.value
    assert len(server.requests) == error.attempts == 1
    assert error.endpoint == "127.0.0.1:9"
    assert str(error).startswith("127.0.0.1:9: ")
    assert "\n" not in str(error)


def test_a_status_error_carries_message_request_id_and_attempts():
    server = Server([refused(422, "not an image", **{"x-request-id": "r-9"})])
    with (
        client(server) as c,
        pytest.raises(InvalidRequestError, match=r"got 422 \(not an image\)") as caught,
    ):
        c.classify(picture())
    assert (caught.value.request_id, caught.value.attempts, caught.value.status) == ("r-9", 1, 422)


def test_a_server_that_is_down_is_named_with_a_remedy():
    with client(Server(card=httpx.ConnectError("Connection refused"))) as c:
        with pytest.raises(
            ConnectionFailedError,
            match=r"127\.0\.0\.1:9: cannot connect "
            r"\(Connection refused; 5 att",
        ):
            c.classify(picture())
        assert c.usage.images == 0


def every(kind: type) -> list[type]:
    return [kind, *itertools.chain(*(every(child) for child in kind.__subclasses__()))]


@pytest.mark.parametrize(
    "name", sorted(n for n in httpx.__all__ if isinstance(getattr(httpx, n), type))
)
def test_every_exception_of_httpx_is_mapped(name):
    kind = getattr(httpx, name)
    if not issubclass(kind, Exception):
        return
    assert issubclass(kind, FOREIGN)
    assert Sending(Progress()).broken_by(kind.__new__(kind)).kind in get_args(BrokenKind)


def test_the_map_of_httpx_says_what_is_worth_a_retry():
    kinds = {
        kind.__name__: Sending(Progress()).broken_by(kind("x")).kind
        for kind in every(httpx.TransportError)
    }
    retried = {name for name, kind in kinds.items() if kind in ("unreached", "cut")}
    assert retried == {
        "ConnectError",
        "ReadError",
        "WriteError",
        "CloseError",
        "NetworkError",
        "ProxyError",
    } | {"RemoteProtocolError"}
    assert {n for n, kind in kinds.items() if kind == "late"} == {
        "TimeoutException",
        "ConnectTimeout",
        "PoolTimeout",
        "ReadTimeout",
        "WriteTimeout",
    }


# ---- protocols


HF_ANSWER = [{"label": "cat", "score": 0.6}, {"label": "dog", "score": 0.4}]


@pytest.mark.parametrize(
    "card",
    [
        httpx.Response(404),
        httpx.Response(200, json={"ok": "ok"}),
        httpx.Response(200, text="Ok"),
        refused(405),
        refused(500),
        refused(400),
    ],
)
def test_what_has_no_model_card_speaks_huggingface_at_the_url_verbatim(card):
    server = Server([httpx.Response(200, json=HF_ANSWER)], card=card)
    with client(server, url=f"{URL}/models/vit") as c:
        assert c.classify(picture()).label == "cat"
        assert c.info() is None
    assert server.requests[0].url.path == "/models/vit"


def test_the_model_card_is_asked_for_once():
    server = Server()
    with client(server) as c:
        for _ in range(3):
            c.classify(picture())
        assert c.info() == ModelInfo("toy", 8, "direct", ("a", "b"), "ab" * 32)
    assert server.card_requests == 1


def test_a_named_protocol_without_checkpoint_needs_no_model_card():
    server = Server()
    with client(server, protocol="pgn") as c:
        c.classify(picture())
        assert server.card_requests == 0
        assert c.info().name == "toy"


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_key_is_found_at_the_model_card(status):
    with (
        client(Server(card=refused(status))) as c,
        pytest.raises(AuthenticationError, match="PGN_API_KEY"),
    ):
        c.classify(picture())


def test_huggingface_remembers_that_parameters_are_refused():
    steps = [
        refused(400, "unexpected keyword argument 'top_k'"),
        *[httpx.Response(200, json=HF_ANSWER)] * 3,
    ]
    server = Server(steps)
    with client(server, protocol="huggingface") as c:
        assert [c.classify(picture()).attempts for _ in range(3)] == [2, 1, 1]
        assert c.usage.images == 3
    assert [r.headers["content-type"] for r in server.requests] == [
        "application/json",
        *["image/png"] * 3,
    ]


def test_a_refused_picture_does_not_make_huggingface_forget_its_parameters():
    server = Server([refused(400), refused(400), httpx.Response(200, json=HF_ANSWER)])
    with client(server, protocol="huggingface") as c:
        with pytest.raises(InvalidRequestError):
            c.classify(picture())
        c.classify(picture())
    assert server.requests[-1].headers["content-type"] == "application/json"


def test_a_refused_picture_after_a_success_is_that_pictures_error():
    server = Server(
        [httpx.Response(200, json=HF_ANSWER), refused(400), httpx.Response(200, json=HF_ANSWER)]
    )
    with client(server, protocol="huggingface") as c:
        c.classify(picture())
        with pytest.raises(InvalidRequestError):
            c.classify(picture())
        c.classify(picture())
    assert [r.headers["content-type"] for r in server.requests] == ["application/json"] * 3


def test_another_body_has_another_idempotency_key():
    server = Server([refused(400), httpx.Response(200, json=HF_ANSWER)])
    with client(server, protocol="huggingface") as c:
        c.classify(picture())
    json_form, raw_form = server.requests
    assert json_form.headers["idempotency-key"] != raw_form.headers["idempotency-key"]


def test_a_loading_model_is_waited_for():
    server = Server(
        [
            httpx.Response(503, json={"error": "loading", "estimated_time": 12.5}),
            httpx.Response(200, json=HF_ANSWER),
        ]
    )
    with client(server, protocol="huggingface") as c:
        c.classify(picture())
        assert c.clock.slept == [12.5]


def test_logits_become_probabilities_by_softmax():
    server = Server(
        [httpx.Response(200, json=[{"label": "a", "score": 2.0}, {"label": "b", "score": 1.0}])]
    )
    with client(server, protocol="huggingface") as c:
        assert c.classify(picture()).score == pytest.approx(1 / (1 + math.exp(-1)))


# ---- checkpoints


@pytest.mark.parametrize(
    ("card", "says"),
    [
        ({"patch_embedding_sha256": "cd" * 32}, "patch embedding"),
        ({"input_size": 16}, "got 16, expected 8"),
        ({"profile": "resize_crop:9:8"}, "train again with --profile resize_crop:9:8"),
    ],
)
def test_a_checkpoint_for_another_model_is_refused_before_a_picture_is_sent(card, says):
    server = Server(card={**CARD, **card})
    with client(server, ToyAdapter()) as c:
        with pytest.raises(CheckpointError, match="made for another model") as caught:
            c.classify(picture())
        with pytest.raises(CheckpointError):
            list(c.classify_many([picture()]))
    assert says in str(caught.value)
    assert server.requests == []


def test_the_checkpoint_is_compared_even_when_the_model_card_is_known_already():
    with client(Server(card={**CARD, "input_size": 16}), ToyAdapter()) as c:
        assert c.info().input_size == 16
        with pytest.raises(CheckpointError):
            c.classify(picture())
        with pytest.raises(CheckpointError):
            c.check()


def test_a_model_card_without_patch_embedding_is_our_protocol_and_unverified(caplog):
    card = {key: value for key, value in CARD.items() if key != "patch_embedding_sha256"}
    server = Server(card=card)
    with client(server, ToyAdapter()) as c:
        assert c.classify(picture()).label == "x"
    assert server.requests[0].url.path == "/v1/classify"
    assert "could not be verified" in caplog.text


def test_an_unverified_match_is_warned_about_once(caplog):
    server = Server(
        [httpx.Response(200, json=[{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}])] * 3
    )
    with client(server, ToyAdapter(), protocol="huggingface") as c:
        c.classify(picture())
        c.classify(picture())
    assert caplog.text.count("could not be verified") == 1


def test_labels_are_the_tasks_classes():
    with client(Server(), ToyAdapter()) as c:
        assert c.classify(picture()).scores == pytest.approx({"x": 0.75, "y": 0.25})


def test_answers_are_raw_and_in_order():
    server = Server([answered(scores=(0.75, 0.25)), answered(scores=(0.125, 0.875))])
    with client(server, ToyAdapter([0.5, 0.5], 1.0), max_concurrency=1) as c:
        assert [answer.labels for answer in c.answers([picture(0), picture(1)])] == [
            ("a", "b"),
            ("b", "a"),
        ]
        assert c.answer(picture()).scores == (0.75, 0.25)


def test_a_missing_checkpoint_file_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        client(Server(), tmp_path / "none.safetensors")


# ---- fusion


def test_fusion_is_the_normalised_weighted_geometric_mean():
    with client(Server(), ToyAdapter([0.2, 0.8]), fusion=0.25) as c:
        result = c.classify(picture())
    x, y = 0.75**0.75 * 0.2**0.25, 0.25**0.75 * 0.8**0.25
    assert result.scores == pytest.approx({"x": x / (x + y), "y": y / (x + y)})
    assert result.source == "both"


@pytest.mark.parametrize(
    ("fusion", "source"), [("auto", "both"), (None, "endpoint"), (0, "endpoint"), (0.5, "both")]
)
def test_auto_fusion_is_the_checkpoints(fusion, source):
    with client(Server(), ToyAdapter([0.2, 0.8], 0.5), fusion=fusion) as c:
        assert c.classify(picture()).source == source


def test_an_alpha_of_one_is_answered_locally_and_sends_nothing():
    server = Server()
    with client(server, ToyAdapter([0.2, 0.8], 1.0)) as c:
        assert c.classify(picture()) == Prediction(
            "y", pytest.approx(0.8), pytest.approx({"y": 0.8, "x": 0.2}), "local", 0
        )
        assert c.usage.requests == server.card_requests == 0


@pytest.mark.parametrize(
    ("threshold", "source", "images"), [(0.8, "local", 0), (0.81, "endpoint", 1)]
)
def test_confident_pictures_cost_nothing(threshold, source, images):
    with client(Server(), ToyAdapter([0.2, 0.8]), query_below=threshold) as c:
        assert c.classify(picture()).source == source
        assert c.usage.images == images


def test_fusion_without_a_local_head_is_refused():
    with pytest.raises(ConfigurationError, match="local head"):
        client(Server(), None, fusion=0.5)
    with (
        client(Server(), ToyAdapter(), fusion=0.5) as c,
        pytest.raises(ConfigurationError, match="local head"),
    ):
        c.classify(picture())


# ---- budget and cache


def test_the_budget_counts_every_time_that_a_picture_is_sent():
    server = Server([refused(503), refused(422)])
    with client(server, budget=3, price_per_image=0.5) as c:
        with pytest.raises(InvalidRequestError):
            c.classify(picture())
        c.classify(picture())
        with pytest.raises(BudgetExceededError, match="3 of 3"):
            c.classify(picture())
        assert (c.usage.images, c.usage.billable, c.usage.cost) == (2, 3, 1.5)
    assert len(server.requests) == 3


def test_no_retry_is_paid_from_a_spent_budget():
    server = Server([refused(503)] * 9)
    with client(server, budget=2) as c:
        with pytest.raises(ServerError, match="gave up: the budget is spent") as caught:
            c.classify(picture())
        assert c.clock.slept == [0.5]
    assert caught.value.attempts == len(server.requests) == 2


def test_a_plainer_form_of_the_request_counts_too():
    server = Server([refused(400), httpx.Response(200, json=HF_ANSWER)])
    with client(server, protocol="huggingface", budget=1) as c, pytest.raises(BudgetExceededError):
        c.classify(picture())
    assert len(server.requests) == 1


def test_a_spent_budget_fails_the_rest_of_many_and_keeps_the_start():
    with client(Server(), budget=3) as c:
        results = list(c.classify_many([picture(i) for i in range(6)]))
    assert sum(isinstance(r, Prediction) for r in results) == 3
    assert all(
        isinstance(r.error, BudgetExceededError) for r in results if isinstance(r, ImageFailure)
    )


@pytest.mark.parametrize("error", [httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")])
def test_what_was_never_sent_is_not_counted(error):
    with client(Server([error]), budget=1) as c:
        with pytest.raises(TimedOutError):
            c.classify(picture())
        assert c.usage.images == 0
        assert c.classify(picture()).label == "a"


def test_a_spent_budget_spares_the_preparation_of_the_rest():
    adapter = ToyAdapter()
    with client(Server(), adapter, budget=3, max_concurrency=1) as c:
        results = list(c.classify_many([picture()] * 100))
    assert len(results) == 100
    assert [isinstance(r, Prediction) for r in results[:5]] == [True, True, True, False, False]
    assert sum(adapter.batches) < 8


def test_a_spent_budget_still_answers_what_costs_nothing():
    with client(Server(), ToyAdapter([0.2, 0.8], 1.0), budget=0) as c:
        assert [r.source for r in c.classify_many([picture()] * 3)] == ["local"] * 3


def test_two_models_behind_one_url_share_no_recorded_answers(tmp_path):
    for changed in (
        {},
        {"weights_sha256": "1"},
        {"weights_sha256": "2"},
        {"profile": "x"},
        {"name": "other"},
    ):
        server = Server(card={**CARD, **changed})
        for sent in (1, 0):
            with client(server, cache=tmp_path / "a.sqlite", protocol="pgn") as c:
                c.classify(picture())
                assert c.usage.images == sent


def test_a_run_with_the_same_cache_goes_on_in_the_dialect_of_its_answers(tmp_path):
    answer = httpx.Response(200, json=HF_ANSWER)
    for script, sent in (([refused(400), answer], 1), ([], 0)):
        with client(Server(script), cache=tmp_path / "a.sqlite", protocol="huggingface") as c:
            assert c.classify(picture()).label == "cat"
            assert c.usage.images == sent


def test_a_picture_that_is_not_recorded_fails_at_once_while_the_endpoint_is_out_of_reach(tmp_path):
    with client(Server(), cache=tmp_path / "a.sqlite") as c:
        c.classify(picture(0))
    with client(Server(card=httpx.ConnectError("down")), cache=tmp_path / "a.sqlite") as c:
        results = list(c.classify_many([picture(0), *(picture(i) for i in range(1, 20))]))
        assert c.usage.requests == 5
        with pytest.raises(ConnectionFailedError):
            c.info()
    assert [isinstance(r, Prediction) for r in results] == [True] + [False] * 19
    assert all(isinstance(r.error, ConnectionFailedError) for r in results[1:])


def test_a_cache_that_cannot_be_used_ends_many_in_one_line(tmp_path):
    cache = AnswerCache(tmp_path / "a.sqlite")
    cache._db.execute("DROP TABLE answers")
    with (
        client(Server(), cache=cache) as c,
        pytest.raises(ConfigurationError, match="answer cache: cannot use"),
    ):
        list(c.classify_many([picture()] * 50))
    cache.close()


def test_a_recorded_answer_costs_nothing_and_needs_no_server(tmp_path):
    path = tmp_path / "answers.sqlite"
    with client(Server(), cache=path) as c:
        first = c.classify(picture())
    with client(Server(card=httpx.ConnectError("down")), cache=path, budget=0) as c:
        again = c.classify(picture())
        assert again == first
        assert c.usage.images == 0


def test_a_body_beyond_the_endpoints_limit_is_not_sent():
    server = Server(card={**CARD, "limits": {"body_bytes": 100}})
    with client(server, ToyAdapter()) as c:
        with pytest.raises(ImageError, match="the endpoint takes 100"):
            c.classify(picture(size=32))
        assert c.usage.images == 0
    assert server.requests == []


def test_a_picture_beyond_the_endpoints_pixels_is_not_sent():
    server = Server(card={**CARD, "limits": {"pixels": 100}})
    with client(server, ToyAdapter()) as c:
        with pytest.raises(ImageError, match="got 121 pixels, the endpoint takes 100"):
            c.classify(picture(size=11))
        assert c.classify(picture(size=10)).label == "x"
    assert len(server.requests) == 1


# ---- many


def test_many_are_in_order_and_one_bad_picture_does_not_hurt_its_neighbours():
    images = [picture(i) for i in range(40)]
    images[7] = b"no picture"
    with client(Server(), ToyAdapter()) as c:
        results = list(c.classify_many(images))
    assert [i for i, r in enumerate(results) if isinstance(r, ImageFailure)] == [7]
    assert results[7].image == "<10 bytes>"
    assert isinstance(results[7].error, ImageError)


def test_results_keep_the_order_of_the_pictures():
    def server(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=CARD)
        width = Image.open(io.BytesIO(request.content)).width
        return answered(labels=[f"w{width}"], scores=[1.0])

    with client(server) as c:
        labels = [r.label for r in c.classify_many(picture(size=4 + i) for i in range(50))]
    assert labels == [f"w{4 + i}" for i in range(50)]


def test_a_million_pictures_are_not_read_ahead():
    read = itertools.count()
    images = ((next(read) and None) or picture() for _ in range(10**6))
    with client(Server(), max_concurrency=4) as c:
        stream = c.classify_many(images)
        next(stream)
        stream.close()
    assert next(read) <= 12


def test_pictures_are_adapted_in_small_batches():
    adapter = ToyAdapter()
    with client(Server(), adapter, max_concurrency=4) as c:
        assert len(list(c.classify_many([picture()] * 10))) == 10
    assert adapter.batches == [4, 4, 2]


def test_a_server_that_is_down_ends_many_at_once():
    with client(Server(card=httpx.ConnectError("down"))) as c, pytest.raises(ConnectionFailedError):
        list(c.classify_many([picture()] * 50))


def test_a_revoked_key_ends_many_after_what_was_on_its_way():
    server = Server([answered(), *[refused(401)] * 99])
    results = []
    with client(server, api_key="k", max_concurrency=4) as c, pytest.raises(AuthenticationError):
        results.extend(c.classify_many([picture()] * 50))
    assert len(server.requests) == len(results) <= 12
    assert sum(isinstance(r, Prediction) for r in results) == 1
    assert all(
        isinstance(r.error, AuthenticationError) for r in results if isinstance(r, ImageFailure)
    )


def test_a_missing_package_ends_many_at_once():
    class NoTorch(ToyAdapter):
        def prepare(self, images):
            raise MissingDependencyError("making prompts", "train")

    with (
        client(Server(), NoTorch()) as c,
        pytest.raises(MissingDependencyError, match=r"pip install 'pgn-client"),
    ):
        list(c.classify_many([picture()]))


def test_no_pictures_are_no_requests():
    server = Server()
    with client(server) as c:
        assert list(c.classify_many([])) == []
    assert server.card_requests == 0


def test_requests_are_paced_evenly():
    with client(Server(), protocol="pgn", requests_per_second=4) as c:
        for _ in range(3):
            c.classify(picture())
        assert c.clock.slept == [0.25, 0.25]


def test_pacing_is_not_counted_against_the_timeout():
    with client(Server(), protocol="pgn", requests_per_second=0.1, timeout=1) as c:
        assert [c.classify(picture()).label for _ in range(3)] == ["a"] * 3


# ---- options


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": None},
        {"timeout": math.inf},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"max_concurrency": 0},
        {"requests_per_second": 0},
        {"fusion": 1.1},
        {"fusion": "on"},
        {"query_below": 2},
        {"protocol": "grpc"},
        {"labels": "cat,dog"},
        {"labels": [1, 2]},
        {"budget": -1},
        {"price_per_image": -1},
        {"price_per_image": "1"},
        {"timeout": math.nan},
        {"timeout": True},
    ],
)
def test_an_option_that_cannot_work_is_refused(options):
    with pytest.raises(ConfigurationError, match="expected"):
        client(Server(), ToyAdapter([0.5, 0.5]), **options)


def test_both_clients_have_the_documented_signature():
    expected = (
        "url, pgn_ckpt, protocol, model, api_key, timeout, max_retries, max_concurrency, "
        "requests_per_second, "
        "bytes_per_second, fusion, query_below, budget, price_per_image, price_per_hour, ledger, "
        "cache, transport, http, labels"
    )
    for kind in (AdaptedClient, AsyncAdaptedClient):
        assert ", ".join(inspect.signature(kind).parameters) == expected


def test_a_closed_client_says_so():
    c = client(Server())
    c.close()
    with pytest.raises(ConfigurationError, match="closed"):
        c.classify(picture())


def test_importing_the_client_loads_no_torch():
    imports = "import sys, pgn_client.wire.client, pgn_client.wire.folders"
    code = imports + "; sys.exit(bool({'torch', 'timm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- asyncio


def run(awaitable):
    return asyncio.run(awaitable)


def test_the_async_client_gives_the_same_results():
    async def ask():
        async with async_client(Server([refused(503)]), ToyAdapter([0.2, 0.8], 0.25)) as c:
            one = await c.classify(picture())
            return (
                one,
                c.clock.slept,
                await c.answer(picture()),
                await c.info(),
                await c.adapt(picture()),
            )

    one, slept, answer, info, adapted = run(ask())
    assert (one.source, one.attempts, len(slept)) == ("both", 2, 1)
    assert (answer.labels, info.name, adapted.size) == (("a", "b"), "toy", (8, 8))


@pytest.mark.parametrize("source", ["list", "async"])
def test_async_many_are_in_order(source):
    async def pictures():
        for i in range(30):
            yield b"bad" if i == 7 else picture(i)

    async def ask():
        async with async_client(Server(), ToyAdapter(), max_concurrency=4) as c:
            images = pictures() if source == "async" else [image async for image in pictures()]
            return [r async for r in c.classify_many(images)]

    results = run(ask())
    assert [i for i, r in enumerate(results) if isinstance(r, ImageFailure)] == [7]
    assert len(results) == 30


def test_one_async_client_serves_several_event_loops():
    c = async_client(Server(), protocol="pgn")

    async def ask():
        try:
            return (await c.classify(picture())).label
        finally:
            await c._loops[asyncio.get_running_loop()].sender.aclose()

    assert [run(ask()), run(ask())] == ["a", "a"]


def test_concurrent_first_calls_ask_for_the_model_card_once():
    server = Server()

    async def ask():
        async with async_client(server) as c:
            await asyncio.gather(*(c.classify(picture(i)) for i in range(20)))

    run(ask())
    assert (server.card_requests, len(server.requests)) == (1, 20)


def test_async_a_revoked_key_ends_many():
    server = Server([refused(403)] * 99)

    async def ask():
        async with async_client(server, api_key="k", max_concurrency=4) as c:
            return [r async for r in c.classify_many([picture()] * 50)]

    with pytest.raises(AuthenticationError):
        run(ask())
    assert len(server.requests) <= 12


def test_cancelling_a_call_closes_the_response():
    closed = []

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield b"{"
            started.set()
            await asyncio.Event().wait()

        async def aclose(self):
            closed.append(True)

    async def ask():
        global started
        started = asyncio.Event()
        async with async_client(
            lambda _: httpx.Response(200, stream=Endless()), protocol="pgn"
        ) as c:
            task = asyncio.create_task(c.classify(picture()))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(ask())
    assert closed == [True]


def test_after_an_error_the_requests_under_way_are_recorded_and_no_new_one_is_sent(tmp_path):
    """The third image fails while others are under way; those may be billed, so they finish."""

    async def server(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=CARD)
        sent.append(request)
        if len(sent) == 3:
            return refused(422)
        if len(sent) > 3:
            await asyncio.sleep(0.05)
        return answered()

    async def ask():
        cache = AnswerCache(tmp_path / "a.sqlite")
        async with async_client(server, max_concurrency=4, cache=cache) as c:
            with pytest.raises(InvalidRequestError):
                await c.answers(picture(i) for i in range(100))
            return len(cache)

    sent: list[httpx.Request] = []
    recorded = run(ask())
    assert recorded == len(sent) - 1
    assert 3 <= len(sent) <= 8


def test_after_an_error_no_further_image_is_sent_and_the_first_error_is_raised():
    """The fourth image is refused, and so are all after it, for another reason."""
    lock = threading.Lock()
    sent: list[int] = []

    def server(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=CARD)
        with lock:
            sent.append(len(sent))
            number = len(sent)
        return answered() if number < 4 else refused(422, "first" if number == 4 else "later")

    with client(server, max_concurrency=1) as c, pytest.raises(InvalidRequestError, match="first"):
        c.answers(picture(i) for i in range(100))
    # One more may have begun before the error was seen.
    assert len(sent) <= 5


def test_leaving_an_async_stream_cancels_what_is_on_its_way():
    async def ask():
        async with async_client(Server(), max_concurrency=4) as c:
            stream = c.classify_many(picture() for _ in range(100))
            async for _ in stream:
                break
            await stream.aclose()
            return len([task for task in asyncio.all_tasks() if not task.done()])

    assert run(ask()) == 1


def test_only_a_files_bytes_are_sent_as_they_are():
    data, server = file_bytes(picture(), compress_level=1), Server()
    with client(server) as c:
        c.answer(data, as_it_is=True)
        with pytest.raises(ConfigurationError, match="as_it_is"):
            c.answer(picture(), as_it_is=True)
    assert [request.content for request in server.requests] == [data]
