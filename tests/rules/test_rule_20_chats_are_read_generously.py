"""Chat replies are read as models write them, and a refused part of a request is given up alone."""

import json
import logging

import httpx
import pytest

from pgn_client.errors import AuthenticationError, InvalidRequestError, ProtocolMismatchError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols import MalformedAnswerError, Payload, WireResponse
from pgn_client.wire.protocols.openai import Chat
from tests.wire.fakes import client, picture

LABELS = ("cat", "dog", "lynx")


def chat(**endpoint) -> Chat:
    return Chat.of(Endpoint("http://h", "openai", "m", labels=LABELS, **endpoint))


def reply(content, finish_reason="stop", **message) -> dict:
    choice = {"message": {"content": content, **message}, "finish_reason": finish_reason}
    return {"choices": [choice]}


def read(content, finish_reason="stop", **message):
    body = json.dumps(reply(content, finish_reason, **message)).encode()
    (answer,) = chat().decode(WireResponse(200, {}, body))
    return answer.labels


# ---- replies


@pytest.mark.parametrize(
    "content",
    [
        '```json\n{"label": "dog"}\n```',
        '```\n{"label": "dog"}\n```',
        'Here it is:\n```json\n{"label": "dog"}\n```\nIt barks.',
        "```\ndog\n```",
        '<think>A cat? No. {"label": "cat"}</think>{"label": "dog"}',
        "<think>\ncat\n</think>\n\ndog",
        "It is no cat.</think>dog",
        '<think>hm</think>```json\n{"label": "dog"}\n```',
        [{"type": "text", "text": '{"label": '}, {"type": "text", "text": '"dog"}'}],
        [{"type": "reasoning", "reasoning": "cat"}, {"type": "text", "text": "dog"}],
    ],
)
def test_a_label_is_found_in_what_models_put_around_it(content):
    assert read(content) == ("dog",)


@pytest.mark.parametrize("content", ["", None, "<think>It may be a", '{"label": "d'])
def test_a_reply_that_was_cut_off_says_so_and_what_to_raise(content):
    with pytest.raises(MalformedAnswerError, match=r"cut off by max_tokens.*raise max_tokens"):
        read(content, "length")


def test_a_withheld_reply_says_so():
    with pytest.raises(MalformedAnswerError, match="content filter"):
        read("", "content_filter")


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "refusal": "I cannot help"},
        {"content": [{"type": "refusal", "refusal": "I cannot help"}]},
    ],
)
def test_a_refusal_is_quoted(message):
    with pytest.raises(MalformedAnswerError, match="refusal: I cannot help"):
        read(**message)


@pytest.mark.parametrize(
    "content", [[], [None], [{"text": 3}], {}, 3, [["dog"]], "```", "<think>", "</think>"]
)
def test_no_content_raises_another_error(content):
    with pytest.raises(MalformedAnswerError):
        read(content)


# ---- requests


class Picky:
    """A server that refuses some properties, each with its own words."""

    def __init__(self, *refusals, then=None):
        self.refusals = refusals
        self.then = then or httpx.Response(200, json=reply('{"label": "dog"}'))
        self.seen = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        document = json.loads(request.content)
        self.seen.append(document)
        for is_refused, status, message in self.refusals:
            if is_refused(document):
                return httpx.Response(status, json={"error": {"message": message}})
        return self.then


def has(key):
    return lambda document: key in document


MANY = (lambda d: d.get("top_logprobs", 0) > 5, 400, "'top_logprobs' must be at most 5")
NO_LOGPROBS = (has("logprobs"), 403, "You are not allowed to request logprobs from this model")
NEWER = (has("max_tokens"), 400, "Unsupported parameter: use 'max_completion_tokens' instead")
HOT = (has("temperature"), 400, "'temperature' does not support 0 with this model")
NO_SCHEMA = (has("response_format"), 422, "response_format: Extra inputs are not permitted")
CURT_LOGPROBS = (has("logprobs"), 400, "bad request")
CURT_SCHEMA = (has("response_format"), 422, "bad request")
FULL = {"temperature", "max_tokens", "logprobs", "top_logprobs", "response_format"}


def settings(document):
    return document.keys() - {"model", "messages"}


def ask(server, **options):
    return client(server, protocol="openai", model="m", labels=LABELS, **options)


@pytest.mark.parametrize(
    ("refusals", "kept"),
    [
        ([MANY], FULL),
        ([NO_LOGPROBS], FULL - {"logprobs", "top_logprobs"}),
        ([NEWER], FULL - {"max_tokens"} | {"max_completion_tokens"}),
        ([HOT], FULL - {"temperature"}),
        ([NO_SCHEMA], FULL - {"response_format"}),
        ([CURT_LOGPROBS], FULL - {"logprobs", "top_logprobs"}),
        ([CURT_SCHEMA], FULL - {"response_format", "logprobs", "top_logprobs"}),
        (
            [NEWER, HOT, MANY, NO_LOGPROBS, NO_SCHEMA],
            {"max_completion_tokens"},
        ),
    ],
)
def test_only_what_a_server_refuses_is_given_up_and_named_once(refusals, kept, caplog):
    server = Picky(*refusals)
    with ask(server) as c, caplog.at_level(logging.WARNING, "pgn_client"):
        assert c.classify(picture()).label == "dog"
        assert settings(server.seen[-1]) == kept
        tries = len(server.seen)
        # The form is kept: the next image costs one request.
        c.classify(picture(1))
        assert len(server.seen) == tries + 1
        assert settings(server.seen[-1]) == kept
    (record,) = caplog.records
    for _, status, message in refusals:
        assert f"{status}: {message}" in record.getMessage()


def test_five_alternatives_are_requested_where_twenty_are_refused():
    server = Picky(MANY)
    with ask(server) as c:
        c.classify(picture())
    assert [d["top_logprobs"] for d in server.seen] == [20, 5]


def test_the_largest_number_of_tokens_keeps_its_value_under_its_newer_name():
    server = Picky(NEWER)
    with ask(server) as c:
        c.classify(picture())
    first, second = server.seen
    assert first["max_tokens"] == second["max_completion_tokens"]


def test_a_refusal_of_the_image_keeps_the_servers_words():
    server = Picky((lambda _: True, 400, "the image has no pixels"))
    with ask(server) as c, pytest.raises(InvalidRequestError, match="the image has no pixels"):
        c.classify(picture())


def test_the_words_of_the_first_refusal_are_told_too():
    server = Picky(NO_LOGPROBS, (lambda _: True, 404, "no such model"))
    with (
        ask(server) as c,
        pytest.raises(InvalidRequestError, match=r"no such model.*not allowed to request logprobs"),
    ):
        c.classify(picture())


def test_a_wrong_key_is_no_reason_to_give_anything_up():
    server = Picky((lambda _: True, 403, "wrong key"))
    with ask(server) as c, pytest.raises(AuthenticationError, match="wrong key"):
        c.classify(picture())
    assert len(server.seen) == 1


def test_a_request_that_has_worked_is_not_simplified():
    server = Picky()
    with ask(server) as c:
        c.classify(picture())
        server.refusals = ((lambda _: True, 400, "logprobs?"),)
        with pytest.raises(InvalidRequestError):
            c.classify(picture(1))
    assert len(server.seen) == 2


def test_a_cut_off_reply_reaches_the_caller():
    server = Picky(then=httpx.Response(200, json=reply("", "length")))
    with ask(server) as c, pytest.raises(ProtocolMismatchError, match="cut off by max_tokens"):
        c.classify(picture())


@pytest.mark.parametrize("refusals", [[MANY], [NEWER, HOT, NO_LOGPROBS]])
def test_a_later_run_starts_in_the_form_that_worked(refusals, tmp_path):
    cache = tmp_path / "cache.sqlite"
    models = httpx.Response(200, json={"object": "list", "data": [{"id": "m"}]})

    def routed(server):
        return lambda request: models if request.method == "GET" else server(request)

    for seed, requests in ((0, len(refusals) + 1), (0, 0), (1, 1)):
        server = Picky(*refusals)
        with ask(routed(server), cache=cache) as c:
            c.info()
            c.classify(picture(seed))
        assert len(server.seen) == requests


def test_earlier_caches_keep_their_key():
    closed = chat()
    assert closed.dialect.split()[:2] == ["openai", "closed"]
    plain = closed
    for _ in range(2):
        plain = plain.fallback(WireResponse(400, {}, b"no"))
    assert plain.dialect.split()[:2] == ["openai", "open"]
    assert plain.fallback(WireResponse(400, {}, b"no")) is None


def test_every_form_is_another_dialect():
    dialects = []
    form = chat()
    while form is not None:
        dialects.append(form.dialect)
        form = form.plainer()
    assert len(set(dialects)) == len(dialects) == 24


def test_what_the_options_took_away_is_not_given_up_again():
    parameters = {"logprobs": None, "top_logprobs": None, "response_format": None}
    bound = chat(options={"parameters": parameters})
    assert bound.fallback(WireResponse(400, {}, b"no logprobs, no response_format")) is None
    assert json.loads(bound.encode([Payload(b"x", "image/png")]).body).keys() == {
        "model",
        "messages",
        "temperature",
        "max_tokens",
    }
