"""Rule 21: the environment's faults are named as such: the variable, its value, the remedy."""

from __future__ import annotations

import pytest

from pgn_client import AdaptedClient
from pgn_client.errors import ConfigurationError

URL = "https://api.example.com"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SSL_CERT_FILE", "/no/such/file.pem"),
        ("HTTPS_PROXY", "ftp://proxy.example.com"),
        ("ALL_PROXY", "nonsense://proxy"),
        ("NO_PROXY", "[::1]"),
        ("no_proxy", "[::1]"),
    ],
)
def test_a_variable_that_httpx_cannot_use_is_named_with_its_value(variable, value, monkeypatch):
    if variable.lower() == "no_proxy":
        # Without a proxy, httpx does not read the list of exceptions.
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        AdaptedClient(URL, None)
    assert f"environment variable {variable}: got '{value}'" in str(caught.value)
    assert "unset it" in str(caught.value)


def test_the_password_of_a_proxy_is_not_shown(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "ftp://user:hunter22@proxy.example.com")
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY") as caught:
        AdaptedClient(URL, None)
    assert "hunter22" not in str(caught.value)


def test_an_argument_of_the_caller_is_not_blamed_on_the_environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")
    with pytest.raises(ConfigurationError, match="http: got proxy"):
        AdaptedClient(URL, None, http={"proxy": "ftp://proxy"})


def test_a_local_endpoint_ignores_the_environment(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    AdaptedClient("http://127.0.0.1:9", None).close()
