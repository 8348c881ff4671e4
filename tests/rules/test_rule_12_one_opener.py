"""Rule 12: one opener for every path: regular files only, checked on the descriptor."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from pgn_client.errors import ConfigurationError, ImageError
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.dataset import load_task
from pgn_client.imaging.lists import read_list
from pgn_client.imaging.opening import open_regular, sha256_of
from pgn_client.imaging.reader import Dataset, scan
from pgn_client.segmentation.masks import load_masked
from pgn_client.wire import journal
from tests.e2e.conftest import pgn
from tests.rules.faulty_folders import CASES, fill, put

pytestmark = pytest.mark.timeout(300)


def make(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.path.relpath(path))
        server.close()


KINDS = ["pipe", "folder", "device", "socket"]


@pytest.fixture
def special(request, tmp_path, monkeypatch):
    # A socket's path must be short.
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.png"
    make(request.param, path)
    return path


each_kind = pytest.mark.parametrize("special", KINDS, indirect=True)


@each_kind
def test_what_is_no_regular_file_is_refused_at_once(special):
    with pytest.raises(OSError):  # noqa: PT011 (the kind differs)
        open_regular(special)
    with pytest.raises(ImageError, match=r"a\.png"):
        open_image(special)
    assert sha256_of(special) is None
    assert journal.sha256_of(special) is None


@each_kind
def test_no_descriptor_is_left_open(special):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(OSError):  # noqa: PT011 (the kind differs)
            open_regular(special)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("special", ["pipe", "device", "socket"], indirect=True)
def test_a_list_or_manifest_is_a_regular_file_too(special):
    with pytest.raises(ConfigurationError, match=r"a\.png"):
        read_list(special)
    listing = special.rename(special.with_name("list"))
    with pytest.raises(ConfigurationError, match="list"):
        scan([listing])
    with pytest.raises(ConfigurationError, match="list"):
        Dataset.read(listing)


def test_a_task_is_hashed_without_waiting(tmp_path):
    fill(tmp_path, "cat", "dog")
    os.mkfifo(tmp_path / "cat" / "z.png")
    with pytest.raises(ConfigurationError, match=r"cat/z\.png"):
        load_task(tmp_path).digest()


def test_a_mask_is_not_waited_for(tmp_path):
    put(tmp_path / "train" / "images" / "a.png", 1)
    (tmp_path / "train" / "masks").mkdir()
    os.mkfifo(tmp_path / "train" / "masks" / "a.png")
    (tmp_path / "classes.json").write_text('["background", "cat"]')
    with pytest.raises(ImageError, match="mask"):
        load_masked(tmp_path / "train")


def test_a_pipe_without_writer_does_not_hang_adapt(tmp_path, make_adapter):
    CASES["a pipe"].make(tmp_path / "data")
    make_adapter().save(tmp_path / "c.safetensors")
    words = ("adapt", tmp_path / "data", tmp_path / "out", "--ckpt", tmp_path / "c.safetensors")
    done = pgn(*words)
    assert done.returncode == 1
    assert "a.png (cannot be read (a special file" in done.stderr
    assert len(done.stdout.splitlines()) == 10


def test_no_thread_waits_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    thread = threading.Thread(target=sha256_of, args=(tmp_path / "a.png",), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
