from __future__ import annotations

import copy
import json
import pickle
import traceback
from pathlib import Path

import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Credential, Endpoint, Found, Limits

KEY = "sk-secret-123"


def with_key(url: str) -> Endpoint:
    return Endpoint(url, credential=Credential(KEY))


def test_the_key_is_in_no_repr_and_no_pickle():
    endpoint = with_key("https://h/m")
    assert KEY not in f"{endpoint!r}{endpoint}{endpoint.credential!r}{vars(Credential)}"
    assert KEY.encode() not in pickle.dumps(endpoint)
    assert pickle.loads(pickle.dumps(endpoint)).credential.headers() == {}


def test_a_copy_keeps_the_key():
    assert copy.deepcopy(with_key("https://h")).credential.headers() == {
        "authorization": f"Bearer {KEY}"
    }


@pytest.mark.parametrize(
    "url", ["http://api.example.org/m", "http://10.0.0.7:8000", "http://localhost.example.org"]
)
def test_a_key_is_never_sent_in_the_clear(url):
    with pytest.raises(ConfigurationError, match="use https://") as caught:
        with_key(url)
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    ["https://api.example.org", "http://localhost:8000", "http://127.0.0.1", "http://[::1]:9"],
)
def test_a_key_may_travel_encrypted_or_within_this_machine(url):
    assert with_key(url).credential


def test_without_a_key_http_is_fine_anywhere():
    assert Endpoint("http://api.example.org").name == "api.example.org"


NO_URLS = [
    "",
    "localhost:8000",
    "ftp://h",
    "http://",
    "http:///m",
    "http://h:99999",
    "http://h:x",
    "http://[::1",
]


@pytest.mark.parametrize("url", [*NO_URLS, "http://h/a b", "http://h/\n", None, 3])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigurationError, match="expected http"):
        Endpoint(url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(ConfigurationError) as caught:
        Endpoint("https://me:hunter2@h/m")
    assert "hunter2" not in str(caught.value)
    assert "api_key=" in str(caught.value)


def test_a_broken_url_with_credentials_is_not_repeated():
    with pytest.raises(ConfigurationError) as caught:
        Endpoint("htp://me:hunter2@h/m?token=t0ken")
    assert "hunter2" not in str(caught.value)
    assert "t0ken" not in str(caught.value)


def test_the_name_shows_host_and_path_only():
    assert Endpoint("https://h:8443/models/vit/?token=t0ken").name == "h:8443/models/vit"
    assert "t0ken" not in repr(Endpoint("https://h/m?token=t0ken"))


def test_the_key_is_taken_out_of_a_text_in_every_usual_spelling():
    key = "a/b&c+'d"
    for text in (key, "a\\/b&c+'d", "a/b&amp;c+&#x27;d", "a%2fb%26c%2B%27d", repr(key)):
        assert Credential(key).redact(f"x{text.strip(chr(34))}y") in ("x<api key>y",)
    assert Credential().redact(key) == key


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel", "tab\t"])
def test_a_key_that_cannot_be_a_header_is_refused_without_being_shown(key):
    with pytest.raises(ConfigurationError) as caught:
        Credential(key)
    assert not key or key not in str(caught.value)


def written(folder: Path, name: str = "endpoint.json", **content: object) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_an_endpoint_file_is_read_as_it_was_written(tmp_path):
    found = Found(profile="resize_crop:72:64", codec="jpeg:75:420", top_k=5, decimals=-1)
    endpoint = Endpoint(
        "http://h/m",
        "huggingface",
        "vit",
        Limits(body_bytes=9),
        labels=("a", "b"),
        options={"x": 1},
        found=found,
    )
    endpoint.write(tmp_path / "endpoint.json", {"profile": "certain: seen"})
    assert Endpoint.read(tmp_path / "endpoint.json") == endpoint


def test_an_endpoint_file_holds_no_key(tmp_path):
    with_key("https://h").write(tmp_path / "endpoint.json")
    assert KEY not in (tmp_path / "endpoint.json").read_text()


def test_an_endpoint_file_may_be_written_by_hand_as_toml(tmp_path):
    path = tmp_path / "service.toml"
    path.write_text('url = "https://h/score"\nprotocol = "huggingface"\n[options]\nx = 1\n')
    assert Endpoint.read(path) == Endpoint("https://h/score", "huggingface", options={"x": 1})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"protocol": "pgn"}, "url"),
        ({"url": "http://h", "api_key": "x"}, "api_key"),
        ({"url": "http://h", "top_k": "5"}, "top_k"),
        ({"url": "http://h", "top_k": True}, "top_k"),
        ({"url": "http://h", "labels": [1]}, "labels"),
        ({"url": "http://h", "limits": {"bytes": 1}}, "limits"),
        ({"url": "http://h", "limits": {"pixels": "9"}}, "whole numbers above 0"),
        ({"url": "http://h", "limits": {"pixels": True}}, "whole numbers above 0"),
        ({"url": "http://h", "limits": {"body_bytes": 0}}, "whole numbers above 0"),
        ({"url": "http://h", "options": {"scale": float("nan")}}, "values that JSON supports"),
        ({"url": "ftp://h"}, "http"),
        ({"url": "http://h", "profile": "bogus"}, "profile"),
        (
            {"url": "http://h", "codec": "jpeg:75"},
            "codec: expected lossless, lossy or jpeg:QUALITY:SUBSAMPLING",
        ),
    ],
)
def test_an_endpoint_file_with_a_mistake_is_refused(tmp_path, content, words):
    with pytest.raises(ConfigurationError, match=words):
        Endpoint.read(written(tmp_path, **content))


@pytest.mark.parametrize("text", ["", "[]", "{", '"text"', "[" * 10**5])
def test_an_endpoint_file_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "endpoint.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"endpoint\.json"):
        Endpoint.read(path)


def test_a_missing_endpoint_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Endpoint.read(tmp_path / "none.json")
