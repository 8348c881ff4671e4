"""Copies with other options, what connections are made with, limits of rate, and what is logged."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import pickle
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from pgn_client import AdaptedClient
from pgn_client.cli import build_parser, main
from pgn_client.cli.console import show_log
from pgn_client.cli.network import http_options
from pgn_client.errors import ConfigurationError, EndpointError, InvalidRequestError, ServerError
from pgn_client.types import ImageFailure
from pgn_client.wire.rate_limit import Pacer

from .fakes import CARD, Server, ToyAdapter, answered, async_client, client, file_bytes, picture
from .test_sockets import read_request, response, serving

# ---- with_options


def test_a_copy_has_other_options_and_shares_all_else(tmp_path):
    server = Server()
    with client(
        server, ToyAdapter([0.2, 0.8]), budget=3, cache=tmp_path / "a.sqlite", requests_per_second=1
    ) as c:
        c.classify(picture(0))
        copy = c.with_options(fusion=1.0, timeout=5, max_retries=0)
        assert (copy.timeout, copy._session.options.max_retries, copy.max_concurrency) == (
            5.0,
            0,
            c.max_concurrency,
        )
        assert copy.classify(picture(1)).source == "local"
        assert c.classify(picture(1)).source == "endpoint"
        plain = c.with_options(pgn_ckpt=None)
        assert list(plain.classify(picture(1)).scores) == ["a", "b"]
        assert plain.usage == c.usage == copy.usage
        assert (c.usage.images, server.card_requests) == (3, 1)
        assert len(c.clock.slept) == 3  # one pace for all
        c.with_options(timeout=9).classify(picture(0))
        assert c.usage.images == 3  # one cache


def test_what_a_copy_finds_out_is_known_to_all():
    server = Server()
    with client(server) as c:
        c.with_options(timeout=5).classify(picture())
        c.classify(picture())
        c.with_options(timeout=6).classify(picture())
    assert server.card_requests == 1


def test_a_copys_other_checkpoint_is_compared_with_the_model():
    with client(Server(card={**CARD, "input_size": 16})) as c:
        c.classify(picture())
        with pytest.raises(EndpointError.__base__, match="made for another model"):
            c.with_options(pgn_ckpt=ToyAdapter()).classify(picture())


def test_a_checkpoint_is_opened_once_for_all_copies():
    adapter = ToyAdapter()
    with client(Server(), adapter) as c:
        copy = c.with_options(timeout=3)
        copy.adapt(picture())
        assert c._session.adapter.adapter is adapter
        assert c._session.adapter is copy._session.adapter


def test_closing_a_copy_leaves_the_client_open_and_not_the_other_way_round(tmp_path):
    c = client(Server(), cache=tmp_path / "a.sqlite", ledger=tmp_path / "l.sqlite", budget=9)
    with c.with_options(timeout=3) as copy:
        copy.classify(picture(0))
    with pytest.raises(ConfigurationError, match="closed"):
        copy.classify(picture(1))
    other = c.with_options(timeout=4)
    assert c.classify(picture(2)).label == "a"
    c.close()
    with pytest.raises(ConfigurationError, match="closed"):
        other.classify(picture(3))


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"max_retries": -1}, {"fusion": 2}, {"query_below": 0.5}]
)
def test_an_option_of_a_copy_that_cannot_work_is_refused(options):
    with client(Server()) as c, pytest.raises(ConfigurationError):
        c.with_options(**options)


def test_an_asyncio_copy_shares_and_closes_nothing():
    server = Server()

    async def ask():
        async with async_client(server, budget=9) as c:
            async with c.with_options(timeout=5) as copy:
                await copy.classify(picture())
            await c.classify(picture())
            return c.usage.images

    assert asyncio.run(ask()) == 2
    assert server.card_requests == 1


# ---- rate


def test_bodies_are_paced_by_their_size():
    with client(Server(), protocol="pgn", bytes_per_second=100, timeout=1) as c:
        for i in range(3):
            c.classify(picture(i))
        size = c.usage.bytes_sent / 3
        assert sum(c.clock.slept) == pytest.approx(2 * size / 100, rel=0.05)


def test_the_slower_limit_counts():
    pacer = Pacer(per_second=10, bytes_per_second=1000)
    assert [pacer.wait(0.0, size) for size in (50, 200, 0)] == [0.0, 0.1, pytest.approx(0.3)]


def test_threads_share_one_pace():
    pacer = Pacer(bytes_per_second=1000)
    with ThreadPoolExecutor(8) as pool:
        waits = sorted(pool.map(lambda _: pacer.wait(0.0, 10), range(100)))
    assert waits == pytest.approx([i / 100 for i in range(100)])


def test_a_retry_that_waits_for_its_pace_is_not_late():
    with client(
        Server([httpx.Response(503)]), protocol="pgn", requests_per_second=0.01, timeout=5
    ) as c:
        assert c.classify(picture()).attempts == 2


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "9"])
def test_a_rate_that_is_none_is_refused(value):
    with pytest.raises(ConfigurationError, match="bytes_per_second"):
        client(Server(), bytes_per_second=value)


# ---- headers, authorisation, proxies

SECRET = "t0ken-very/secret"


def sent_headers(**options):
    server = Server()
    with client(server, **options) as c:
        c.classify(picture())
    return server.requests[0].headers


def test_headers_are_sent_with_every_request_and_the_protocols_own_win(monkeypatch):
    monkeypatch.setenv("PGN_API_KEY", "k")
    headers = sent_headers(
        http={"headers": {"X-Tenant": "blue", "Content-Type": "text/plain", "User-Agent": "me"}}
    )
    assert headers["x-tenant"] == "blue"
    assert headers["content-type"] == "image/png"
    assert headers["user-agent"] == "me"
    assert headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("http", "expected"),
    [
        ({"headers": {"Authorization": f"Key {SECRET}"}}, f"Key {SECRET}"),
        ({"auth": ("me", SECRET)}, "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()),
    ],
)
def test_an_authorisation_of_the_callers_own_replaces_the_environments_key(
    http, expected, monkeypatch
):
    monkeypatch.setenv("PGN_API_KEY", "k")
    assert sent_headers(http=http)["authorization"] == expected
    with pytest.raises(ConfigurationError, match="api_key"):
        client(Server(), http=http, api_key="k")


@pytest.mark.parametrize(
    "http",
    [{"headers": {"X-Key": SECRET}}, {"auth": ("me", SECRET)}, {"auth": (b"me", SECRET.encode())}],
)
def test_what_authorises_is_in_no_repr_log_or_exception(http, caplog):
    caplog.set_level(logging.DEBUG)
    basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
    for echo in (SECRET, basic):
        for step in (httpx.Response(400, text=f"you said {echo}"), httpx.Response(200, text=echo)):
            with client(Server([step]), http=http) as c, pytest.raises(EndpointError) as caught:
                c.classify(picture())
            everything = (
                "".join(traceback.format_exception(caught.value))
                + f"{c!r}{vars(c)}{vars(caught.value)}"
            )
            assert "t0ken" not in everything
            if "auth" in http:
                assert basic not in everything
            assert b"t0ken" not in pickle.dumps(caught.value)
    assert "t0ken" not in caplog.text


@pytest.mark.parametrize(
    "http",
    [
        {"headers": {"X-Key": SECRET}},
        {"auth": ("me", SECRET)},
        {"auth": (b"me", SECRET.encode())},
        {"auth": httpx.BasicAuth("me", SECRET)},
    ],
)
def test_secrets_never_travel_in_the_clear(http):
    with pytest.raises(ConfigurationError, match="unencrypted") as caught:
        AdaptedClient("http://api.example.org", None, http=http)
    assert SECRET not in str(caught.value)


def test_a_proxys_password_goes_to_the_proxy_alone_and_forbids_no_plain_connection():
    """A proxy passes on what it is not meant to keep: everything but its own
    Proxy-Authorization.
    """
    seen = []

    def proxy(connection, _):
        seen.append(read_request(connection))
        connection.sendall(response(b"no", b"400 No"))

    with serving(proxy) as url:
        http = {"proxy": url.replace("http://", "http://me:p4ssword@")}
        reaching = AdaptedClient("http://api.example.org", None, protocol="pgn", http=http)
        with reaching as c, pytest.raises(InvalidRequestError):
            c.classify(picture())
    lines = seen[0].split(b"\r\n\r\n")[0].split(b"\r\n")
    secret = base64.b64encode(b"me:p4ssword")
    assert lines[0].startswith(b"POST http://api.example.org/v1/classify")
    assert [line.split(b":")[0].lower() for line in lines if secret in line] == [
        b"proxy-authorization"
    ]
    assert not any(b"p4ssword" in line for line in lines)


@pytest.mark.parametrize("echo", [f"Cannot POST /?code={SECRET}%2Fx==", f"{SECRET}/x=="])
def test_a_token_in_the_urls_query_is_in_no_message(echo):
    server = Server([httpx.Response(404, text=echo)])
    url = f"http://127.0.0.1:9/?v=2&code={SECRET}%2Fx=="
    with (
        client(server, url=url, protocol="huggingface") as c,
        pytest.raises(InvalidRequestError) as caught,
    ):
        c.classify(picture())
    assert SECRET not in f"{caught.value}{vars(caught.value)}"


def test_a_short_value_of_a_header_leaves_messages_readable():
    server = Server([httpx.Response(400, text="22 of 2")])
    with (
        client(server, http={"headers": {"X-Version": "2"}}) as c,
        pytest.raises(InvalidRequestError, match="22 of 2"),
    ):
        c.classify(picture())


@pytest.mark.parametrize(
    "http",
    [
        {"timeout": 3},
        {"headers": 7},
        {"headers": {"X": "a\nb"}},
        {"headers": {"a b": "x"}},
        {"headers": {"X": ""}},
        {"proxy": "ftp://127.0.0.1"},
        {"proxy": 7},
        {"auth": 7},
        {"headers": {"X": None}},
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(http):
    with pytest.raises(ConfigurationError) as caught:
        AdaptedClient("http://127.0.0.1:9", None, http=http)
    assert "\n" not in str(caught.value)


def test_what_httpx_refuses_names_no_password():
    with pytest.raises(ConfigurationError, match="proxy") as caught:
        AdaptedClient("http://127.0.0.1:9", None, http={"proxy": "ftp://me:p4ssword@127.0.0.1"})
    assert "p4ssword" not in f"{caught.value}{caught.value.__context__!r}{caught.value.__cause__!r}"


def test_a_named_proxy_is_used_and_its_password_shown_nowhere():
    seen = []

    def proxy(connection, _):
        seen.append(read_request(connection))
        connection.sendall(response(b"who is p4ssword?", b"407 No"))

    with serving(proxy) as url:
        http = {"proxy": url.replace("http://", "http://me:p4ssword@")}
        with AdaptedClient("http://127.0.0.1:9", None, protocol="pgn", http=http) as c:
            with pytest.raises(InvalidRequestError, match="got 407") as caught:
                c.classify(picture())
            assert "p4ssword" not in f"{caught.value}{vars(c)}"
    assert seen[0].startswith(b"POST http://127.0.0.1:9/v1/classify")


# ---- the command line's way to them


def parsed(*words):
    return build_parser().parse_args(["drift", "--url", "https://h", *words])


def test_headers_and_a_proxy_on_the_command_line(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    args = parsed(
        "--header",
        "X-Tenant: blue: 1",
        "--header",
        "X-Key:env:MY_TOKEN",
        "--proxy",
        "http://127.0.0.1:9",
    )
    assert http_options(args) == {
        "headers": {"X-Tenant": "blue: 1", "X-Key": SECRET},
        "proxy": "http://127.0.0.1:9",
    }
    assert http_options(parsed()) is None


@pytest.mark.parametrize(
    "words",
    [
        ["--header", f"nocolon{SECRET}"],
        ["--header", "X: "],
        ["--header", "X: env:PGN_IS_NOT_SET"],
        ["--ca-file", "missing.pem"],
        ["--client-cert", "missing.pem:key.pem"],
        ["--proxy", "env:PGN_IS_NOT_SET"],
    ],
)
def test_wrong_words_about_the_connection_are_one_line(words):
    with pytest.raises(ConfigurationError) as caught:
        http_options(parsed(*words))
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_header_reaches_the_server(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    (tmp_path / "a.png").write_bytes(file_bytes(picture()))
    seen = []

    def handle(connection, _):
        seen.append(read_request(connection))
        connection.sendall(response(f"no {SECRET}".encode(), b"400 No"))

    with serving(handle) as url:
        words = ["--url", url, "--protocol", "pgn", "--header", "X-Key: env:MY_TOKEN"]
        assert main(["predict", str(tmp_path / "a.png"), *words]) == 1
    assert f"x-key: {SECRET}".encode() in seen[0].lower()
    told = capsys.readouterr()
    assert "got 400" in told.err
    assert SECRET not in told.err + told.out


# ---- logs


def test_each_request_is_logged_with_its_fields(caplog):
    caplog.set_level(logging.INFO, "pgn_client")
    with client(
        Server([httpx.Response(503), httpx.ConnectError("down")]),
        protocol="pgn",
        api_key="sk-secret",
    ) as c:
        c.classify(picture())
        size = c.usage.bytes_sent // 3
    records = [record for record in caplog.records if hasattr(record, "attempt")]
    assert [(r.attempt, r.status, r.outcome) for r in records] == [
        (1, 503, "503"),
        (2, None, "unreached"),
        (3, 200, "200"),
    ]
    last = records[-1]
    assert (last.endpoint, last.protocol, last.method) == ("127.0.0.1:9", "pgn", "POST")
    assert (last.bytes, last.request_id) == (size, "req-7")
    assert last.seconds >= 0
    assert "sk-secret" not in repr([vars(record) for record in records])


def test_requests_are_logged_at_info_and_warnings_alone_by_default(caplog):
    caplog.set_level(logging.WARNING, "pgn_client")
    with client(Server(), protocol="pgn") as c:
        c.classify(picture())
    assert caplog.records == []


@pytest.fixture
def logger():
    logger = logging.getLogger("pgn_client")
    handlers, level = logger.handlers, logger.level
    yield logger
    logger.handlers, logger.level = handlers, level
    logger.setLevel(level)


@pytest.mark.parametrize("wish", ["", "info", "JSON:info"])
def test_the_environment_says_what_the_command_logs(wish, monkeypatch, capsys, logger):
    monkeypatch.setenv("PGN_LOG", wish)
    show_log()
    with client(Server([answered()]), protocol="pgn") as c:
        c.classify(picture())
    logger.warning("careful")
    *lines, last = capsys.readouterr().err.splitlines()
    if not wish:
        assert (lines, last) == ([], "note: careful")
    elif wish == "info":
        assert "INFO POST 127.0.0.1:9: 200, attempt 1" in lines[0]
    else:
        (found,) = map(json.loads, lines)
        assert found.keys() >= {
            "time",
            "level",
            "message",
            "endpoint",
            "status",
            "attempt",
            "seconds",
            "bytes",
        }
        assert abs(found["time"] - time.time()) < 60
        assert json.loads(last)["message"] == "careful"


def test_a_level_that_is_none_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setenv("PGN_LOG", "loud")
    assert main(["inspect", "x"]) == 2
    assert "PGN_LOG: got 'loud', expected info" in capsys.readouterr().err


def test_a_failure_of_one_of_many_is_still_its_own(caplog):
    with client(Server([httpx.Response(501)]), max_concurrency=1) as c:
        first, second = c.classify_many([picture(0), picture(1)])
    assert isinstance(first, ImageFailure)
    assert isinstance(first.error, ServerError)
    assert second.label == "a"
