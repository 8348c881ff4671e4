"""Rule 22: no cookie jar, accept-encoding under our control, no secret in any log or message."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from wire.fakes import Server, answered, async_client, client, picture

from pgn_client.cli import main
from pgn_client.errors import ConfigurationError

SECRET = "s3cr3t-t0ken-value"


def test_a_cookie_is_neither_kept_nor_sent():
    response = answered()
    response.headers["set-cookie"] = "session=1; Path=/"
    server = Server([response])
    with client(server, protocol="pgn") as c:
        c.classify(picture(0))
        c.classify(picture(1))
    assert all("cookie" not in request.headers for request in server.requests)


def test_the_only_offered_encoding_is_the_one_that_is_read_under_a_limit():
    server = Server()
    with client(server, protocol="pgn") as c:
        c.classify(picture())
    assert server.requests[0].headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_key_in_the_query_reaches_no_log(kind, caplog):
    """httpx logs every URL at the level INFO."""
    url = f"http://127.0.0.1:9/v1/classify?key={SECRET}"
    with caplog.at_level(logging.DEBUG):
        if kind == "sync":
            with client(Server(), url=url, protocol="pgn") as c:
                c.classify(picture())
        else:

            async def ask() -> None:
                async with async_client(Server(), url=url, protocol="pgn") as c:
                    await c.classify(picture())

            asyncio.run(ask())
    assert "HTTP Request" in caplog.text
    assert SECRET not in caplog.text


def test_the_log_lines_of_other_users_of_httpx_stay_as_they_are(caplog):
    with (
        httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200))) as http,
        caplog.at_level(logging.INFO),
    ):
        http.get("http://elsewhere/?page=2")
    assert "http://elsewhere/?page=2" in caplog.text


def test_a_swapped_name_and_value_do_not_show_the_secret():
    with pytest.raises(ConfigurationError, match="headers") as caught:
        client(Server(), http={"headers": {f"Bearer {SECRET}": "Authorization"}})
    assert SECRET not in str(caught.value)


def test_a_swapped_header_of_the_command_line_does_not_show_the_secret(capsys, tmp_path):
    header = f"Bearer {SECRET}: env:NOT_SET_ANYWHERE"
    picture().save(tmp_path / "a.png")
    status = main(["predict", str(tmp_path), "--url", "http://127.0.0.1:9", "--header", header])
    assert status == 2
    printed = capsys.readouterr()
    assert SECRET not in printed.err + printed.out
