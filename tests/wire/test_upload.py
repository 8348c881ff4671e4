"""Checkpoints that run on the server: uploaded once, asked for by name, put there again where they
are forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib

import httpx
import pytest

from pgn_client import ImageFailure
from pgn_client.errors import (
    AuthenticationError,
    CheckpointError,
    ConfigurationError,
    InvalidRequestError,
    ServerError,
)
from pgn_client.types import Hosted, Prepared
from pgn_client.wire.cache import AnswerCache

from .fakes import Server, ToyAdapter, answered, async_client, client, picture


class HostedToy(ToyAdapter):
    """What answers is on the server."""

    def __init__(self, name: str = "toy-1", data: bytes = b"the file") -> None:
        super().__init__(name=name)
        self.hosted = Hosted(name, data)

    def prepare(self, images):
        return [Prepared(image, hosted=self.hosted.reference) for image in images]


class Hosting(Server):
    """A server that keeps adapters, until it ``forgets``."""

    def __init__(self, *script, refusal=None) -> None:
        super().__init__(script)
        self.kept: dict[str, bytes] = {}
        self.refusal = refusal
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/v1/adapters/")[2]
        if name == request.url.path:
            if request.url.path == "/v1/classify":
                wanted, _, sha256 = request.url.params.get("adapter", "").partition("@")
                self.asked.append(("POST", wanted))
                kept = self.kept.get(wanted)
                if wanted and (kept is None or hashlib.sha256(kept).hexdigest() != sha256):
                    return httpx.Response(
                        404, json={"error": {"code": "not_found", "message": "no such adapter"}}
                    )
            return super().__call__(request)
        self.asked.append((request.method, name))
        if request.method == "PUT":
            if self.refusal is not None:
                return self.refusal
            self.kept[name] = request.content
        if name not in self.kept:
            return httpx.Response(
                404, json={"error": {"code": "not_found", "message": "you have no adapter"}}
            )
        return httpx.Response(
            200, json={"name": name, "sha256": hashlib.sha256(self.kept[name]).hexdigest()}
        )


def test_it_is_uploaded_once_and_every_picture_names_it():
    server = Hosting()
    with client(server, HostedToy()) as c:
        for seed in range(3):
            c.classify(picture(seed))
        list(c.classify_many([picture(4), picture(5)]))
    assert server.asked == [("GET", "toy-1"), ("PUT", "toy-1"), *[("POST", "toy-1")] * 5]
    assert server.kept == {"toy-1": b"the file"}
    assert (c.usage.images, c.usage.billable, c.usage.retries) == (5, 5, 0)


def test_what_the_server_has_already_is_not_sent_again():
    server = Hosting()
    server.kept["toy-1"] = b"the file"
    with client(server, HostedToy()) as c:
        c.classify(picture())
    assert [method for method, _ in server.asked] == ["GET", "POST"]


def test_another_file_under_the_name_is_replaced():
    server = Hosting()
    server.kept["toy-1"] = b"something else"
    with client(server, HostedToy()) as c:
        c.classify(picture())
    assert server.kept == {"toy-1": b"the file"}


def test_what_the_server_forgot_is_put_there_again():
    server = Hosting()
    with client(server, HostedToy()) as c:
        c.classify(picture(0))
        server.kept.clear()
        assert c.classify(picture(1)).label == "x"
    assert [method for method, _ in server.asked] == [
        "GET",
        "PUT",
        "POST",
        "POST",
        "GET",
        "PUT",
        "POST",
    ]


def test_what_another_has_replaced_meanwhile_is_noticed():
    server = Hosting()
    with client(server, HostedToy()) as c:
        c.classify(picture(0))
        server.kept["toy-1"] = b"of somebody else"
        c.classify(picture(1))
    assert server.kept == {"toy-1": b"the file"}
    assert (c.usage.images, c.usage.retries) == (2, 0)


def test_what_nobody_asks_is_not_uploaded(tmp_path):
    server = Hosting()
    with client(server, HostedToy(), cache=tmp_path / "answers.sqlite") as c:
        assert c.info().name == "toy"
        c.classify(picture())
    asked = len(server.asked)
    with client(server, HostedToy(), cache=tmp_path / "answers.sqlite") as c:
        c.info()
        assert c.classify(picture()).label == "x"
    assert len(server.asked) == asked


def test_many_threads_share_one_upload_and_one_failure():
    server = Hosting()
    with client(server, HostedToy(), max_concurrency=8) as c:
        list(c.classify_many([picture(i) for i in range(8)]))
        server.kept.clear()
        results = list(c.classify_many([picture(i) for i in range(8, 40)]))
    assert not [r for r in results if isinstance(r, ImageFailure)]
    assert [method for method, _ in server.asked].count("PUT") == 2
    assert c.usage.images == 40
    refused = Hosting(refusal=httpx.Response(400, json={"error": {"message": "no"}}))
    with client(refused, HostedToy(), max_concurrency=8) as c, pytest.raises(CheckpointError):
        list(c.classify_many([picture(i) for i in range(40)]))
    assert [method for method, _ in refused.asked].count("PUT") <= 8


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_of_our_protocol_without_adapters_is_a_wrong_set_up_too(status):
    server = Hosting(refusal=httpx.Response(status, json={"error": {"message": "no"}}))
    with (
        client(server, HostedToy()) as c,
        pytest.raises(ConfigurationError, match="has no /v1/adapters; expected"),
    ):
        c.classify(picture())


def test_a_local_head_is_not_there():
    with (
        client(Hosting(), HostedToy(), query_below=0.9) as c,
        pytest.raises(ConfigurationError, match="query_below"),
    ):
        c.classify(picture())


def test_drift_is_of_the_model_itself(tmp_path):
    with client(Hosting(), HostedToy(), cache=tmp_path / "a.sqlite") as c:
        c.classify(picture())
        with pytest.raises(
            ConfigurationError, match="drift: got a checkpoint that runs on the server"
        ):
            c.drift()


def test_a_server_that_never_remembers_is_not_asked_for_ever():
    class Forgetful(Hosting):
        def __call__(self, request):
            answer = super().__call__(request)
            self.kept.clear()
            return answer

    server = Forgetful()
    with (
        client(server, HostedToy()) as c,
        pytest.raises(InvalidRequestError, match="no such adapter"),
    ):
        c.classify(picture())
    assert [method for method, _ in server.asked] == ["GET", "PUT", "POST", "GET", "PUT", "POST"]


@pytest.mark.parametrize("status", [400, 413])
def test_a_refused_checkpoint_says_why_and_sends_no_picture(status):
    refusal = httpx.Response(
        status, json={"error": {"code": "c", "message": "it was trained on another backbone"}}
    )
    server = Hosting(refusal=refusal)
    with client(server, HostedToy()) as c:
        with pytest.raises(
            CheckpointError, match="refuses the checkpoint: it was trained on another backbone"
        ):
            c.classify(picture())
        assert c.usage.images == 0
    assert "POST" not in [method for method, _ in server.asked]


@pytest.mark.parametrize(("status", "error"), [(401, AuthenticationError), (500, ServerError)])
def test_other_failures_of_an_upload_are_the_endpoints(status, error):
    server = Hosting(refusal=httpx.Response(status, json={"error": {"message": "no"}}))
    with client(server, HostedToy(), max_retries=0) as c, pytest.raises(error):
        c.classify(picture())


def test_an_endpoint_without_adapters_is_a_wrong_set_up():
    def hugging_face(request):
        return httpx.Response(200, json=[{"label": "a", "score": 1.0}])

    with client(hugging_face, HostedToy(), protocol="huggingface") as c:
        with pytest.raises(
            ConfigurationError,
            match=r"runs where the model runs.* uses "
            r"huggingface",
        ):
            c.classify(picture())
        with pytest.raises(ConfigurationError, match="runs where the model runs"):
            list(c.classify_many([picture()]))


def test_copies_of_a_client_use_their_own_adapters():
    server = Hosting()
    with client(server, HostedToy("one")) as c:
        c.classify(picture())
        other = c.with_options(pgn_ckpt=HostedToy("two", b"another"))
        other.classify(picture())
        c.with_options(pgn_ckpt=None).classify(picture())
        c.classify(picture(1))
    assert server.kept == {"one": b"the file", "two": b"another"}
    assert [name for method, name in server.asked if method == "POST"] == ["one", "two", "", "one"]


def test_recorded_answers_belong_to_their_adapter(tmp_path):
    server = Hosting(answered(scores=(0.9, 0.1)), answered(scores=(0.2, 0.8)))
    with client(server, HostedToy("one"), cache=tmp_path / "answers.sqlite") as c:
        assert c.classify(picture()).label == "x"
        other = c.with_options(pgn_ckpt=HostedToy("two"))
        assert other.classify(picture()).label == "y"
        assert (c.classify(picture()).label, other.classify(picture()).label) == ("x", "y")
        assert c.recorded([picture(), picture(1)]) == 1
    assert len(server.requests) == 2
    replay = AnswerCache(tmp_path / "answers.sqlite", replay=True)
    with client(server, HostedToy("one"), cache=replay) as c:
        assert c.classify(picture()).label == "x"
    assert len(server.requests) == 2


def test_from_many_threads_it_is_uploaded_once():
    server = Hosting()
    with client(server, HostedToy(), max_concurrency=8) as c:
        results = list(c.classify_many([picture(i) for i in range(40)]))
    assert not [r for r in results if isinstance(r, ImageFailure)]
    assert [method for method, _ in server.asked].count("PUT") == 1


def test_the_asynchronous_client_does_the_same():
    server = Hosting()

    async def run():
        c = async_client(server, HostedToy())
        first = [r async for r in c.classify_many([picture(i) for i in range(12)])]
        server.kept.clear()
        return first, await c.classify(picture(20))

    first, last = asyncio.run(run())
    assert [r.label for r in [*first, last]] == ["x"] * 13
    assert [method for method, _ in server.asked].count("PUT") == 2


def test_the_query_of_an_address_stays(tmp_path):
    server = Hosting()
    with client(server, HostedToy(), url="http://127.0.0.1:9/?token=abcd") as c:
        c.classify(picture())
    assert dict(server.requests[0].url.params) == {
        "token": "abcd",
        "adapter": HostedToy().hosted.reference,
    }
