"""TLS as a company has it: an authority of its own, and a server that asks for the client's
certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import trustme

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.cli import main
from pgn_client.errors import ConnectionFailedError

from .fakes import file_bytes, picture
from .test_sockets import read_request, response, serving


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Files of an authority, of a client's certificate from it, and what a server needs."""
    folder, authority = tmp_path_factory.mktemp("keys"), trustme.CA()
    ours = authority.issue_cert("somebody@example.org")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    ours.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    ours.private_key_pem.write_to_path(folder / "key.pem")
    ours.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return SimpleNamespace(
        folder=folder, authority=authority, server=authority.issue_cert("127.0.0.1")
    )


@contextlib.contextmanager
def tls(keys, *, demands: bool = False) -> Iterator[str]:
    """Serve over TLS; ``demands`` a client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keys.server.configure_cert(context)
    if demands:
        keys.authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    def handle(connection: socket.socket, _: int) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            while read_request(encrypted):
                encrypted.sendall(response())

    with serving(handle) as url:
        yield url.replace("http://", "https://")


def trusting(keys, *certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=keys.folder / "ca.pem")
    if certificate:
        context.load_cert_chain(*(keys.folder / name for name in certificate))
    return context


def ask_sync(url, http):
    with AdaptedClient(url, None, protocol="pgn", budget=1, http=http) as c:
        try:
            return c.classify(picture()).label
        finally:
            ask_sync.spent = c.usage.billable


def ask_async(url, http):
    async def ask():
        async with AsyncAdaptedClient(url, None, protocol="pgn", budget=1, http=http) as c:
            try:
                return (await c.classify(picture())).label
            finally:
                ask_async.spent = c.usage.billable

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_sync, ask_async])


@both
def test_an_unknown_authority_is_refused_at_once_and_costs_nothing(ask, keys):
    with tls(keys) as url, pytest.raises(ConnectionFailedError, match="--ca-file") as caught:
        ask(url, None)
    assert (caught.value.attempts, ask.spent) == (1, 0)


@both
def test_an_authority_that_is_named_is_trusted(ask, keys):
    with tls(keys) as url:
        assert ask(url, {"verify": trusting(keys)}) == "a"


@both
def test_verification_can_be_switched_off(ask, keys):
    with tls(keys) as url:
        assert ask(url, {"verify": False}) == "a"


def test_a_certificate_that_is_demanded_and_missing_is_told_at_once(keys):
    with (
        tls(keys, demands=True) as url,
        pytest.raises(ConnectionFailedError, match="--client-cert") as caught,
    ):
        ask_sync(url, {"verify": trusting(keys)})
    # In TLS 1.3 the refusal may arrive after the body was written. It is charged then, because what
    # the server writes is no proof that it did not read the body.
    assert caught.value.attempts == 1
    assert ask_sync.spent in (0, 1)


def test_a_certificate_that_is_demanded_and_missing_fails_in_asyncio_too(keys):
    """Only now and then does asyncio hand on what the server said; otherwise the connection has
    just ended.
    """
    with tls(keys, demands=True) as url, pytest.raises(ConnectionFailedError):
        ask_async(url, {"verify": trusting(keys)})


@both
def test_a_certificate_that_is_demanded_is_given(ask, keys):
    with tls(keys, demands=True) as url:
        assert ask(url, {"verify": trusting(keys, "both.pem")}) == "a"


@pytest.mark.parametrize("certificate", ["both.pem", "cert.pem:key.pem"])
def test_the_command_trusts_and_shows_what_it_is_told_to(certificate, keys, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(file_bytes(picture()))
    shown = ":".join(str(keys.folder / name) for name in certificate.split(":"))
    with tls(keys, demands=True) as url:
        words = ["predict", str(tmp_path / "a.png"), "--url", url, "--protocol", "pgn"]
        assert main([*words, "--ca-file", str(keys.folder / "ca.pem"), "--client-cert", shown]) == 0
        assert main(words) == 1
    assert "--ca-file" in capsys.readouterr().err
