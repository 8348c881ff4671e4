from __future__ import annotations

import argparse
import json

import pytest

from pgn_client.cli.options import add_endpoint_options, connect, source_labels
from pgn_client.errors import ConfigurationError


@pytest.mark.parametrize("content", ["cat\nbig dog\n\n", json.dumps(["cat", "big dog"])])
def test_labels_come_from_a_file(tmp_path, content):
    path = tmp_path / "labels.txt"
    path.write_text(content)
    assert source_labels(str(path)) == ["cat", "big dog"]


def test_labels_come_from_the_command():
    assert source_labels("cat, big dog,") == ["cat", "big dog"]
    many = [f"class {number}" for number in range(1000)]
    assert source_labels(",".join(many)) == many  # longer than any path may be


@pytest.mark.parametrize("content", ["[1, 2]", "[", b"\xff\xfe"])
def test_a_file_that_holds_no_labels_is_refused(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match="--source-labels"):
        source_labels(str(path))


@pytest.mark.parametrize(("given", "labels"), [([], ()), (["--source-labels", "a,b"], ("a", "b"))])
def test_labels_reach_the_endpoint(given, labels):
    parser = argparse.ArgumentParser()
    add_endpoint_options(parser)
    with connect(parser.parse_args(["--url", "http://127.0.0.1:9", *given]), None) as client:
        assert client.endpoint.labels == labels
