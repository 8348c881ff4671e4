"""Rule 15: lists in usual encodings, manifests with labels, and several IN arguments work."""

from __future__ import annotations

import codecs
import io
import json
import sys
from pathlib import Path

import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.dataset import load_task
from pgn_client.imaging.files import find_images
from pgn_client.imaging.lists import read_list
from pgn_client.imaging.reader import Dataset, scan
from tests.e2e.conftest import pgn
from tests.rules.faulty_folders import fill, put

ENCODINGS = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 of Windows": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big-endian": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_in_any_usual_encoding(name, end, tmp_path, monkeypatch):
    content = ENCODINGS[name](end.join(["b.png", "", " ä ö.png ", "b.png", ""]))
    put(tmp_path / "list.txt", content)
    assert find_images(tmp_path / "list.txt") == [Path("b.png"), Path("ä ö.png")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert find_images("-") == [Path("b.png"), Path("ä ö.png")]


def test_a_path_listed_twice_is_counted(tmp_path):
    put(tmp_path / "list.txt", b"a.png\nb.png\na.png\n")
    assert [str(item) for item in scan([tmp_path / "list.txt"]).skipped] == ["a.png (listed twice)"]


@pytest.mark.parametrize("content", [b"a.png\nb\0.png\n", "a.png\nb.png\n".encode("utf-16-le")])
def test_a_nul_byte_is_refused_with_its_line(content, tmp_path):
    put(tmp_path / "list.txt", content)
    with pytest.raises(ConfigurationError, match=r"NUL character in line [12],.*save the list as"):
        read_list(tmp_path / "list.txt")


def rows(folder):
    """Five images of each of two classes, as paths relative to the folder and their labels."""
    fill(folder / "img", "cat", "dog")
    return [(f"img/{label}/{i}.png", label) for label in ("cat", "dog") for i in range(5)]


def csv_of(lines, delimiter=",", head="path,label"):
    text = [head.replace(",", delimiter), *(delimiter.join(line) for line in lines)]
    return "\n".join(text).encode()


WRITERS = {
    "CSV": csv_of,
    "CSV of Excel": lambda lines: codecs.BOM_UTF8 + csv_of(lines, ";").replace(b"\n", b"\r\n"),
    "tabs": lambda lines: csv_of(lines, "\t", "Path,Label"),
    "columns in another order": lambda lines: csv_of(
        [(label, "x", path) for path, label in lines], head="label,note,path"
    ),
    "JSON Lines": lambda lines: "\n".join(
        json.dumps({"path": path, "label": label, "note": 1}) for path, label in lines
    ).encode("utf-16"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_manifest_is_the_same_as_a_folder(name, tmp_path):
    put(tmp_path / "data.manifest", WRITERS[name](rows(tmp_path)))
    listed = load_task(tmp_path / "data.manifest", seed=3)
    folder = load_task(tmp_path / "img", seed=3)
    assert listed.classes == folder.classes
    assert listed.digest() == folder.digest()
    assert listed.test.paths == folder.test.paths
    assert set(find_images(tmp_path / "data.manifest")) == set(find_images(tmp_path / "img"))


def test_a_manifest_with_splits_is_divided_as_it_says(tmp_path):
    names = {0: "train", 1: "training", 2: "validation", 3: "test", 4: "Test"}
    lines = [(path, label, names[int(path[-5])]) for path, label in rows(tmp_path)]
    put(tmp_path / "m.csv", csv_of(lines, head="path,label,split"))
    with pytest.raises(ConfigurationError, match="line 3 has the split 'training'"):
        load_task(tmp_path / "m.csv")
    lines = [(path, label, split.replace("training", "train")) for path, label, split in lines]
    put(tmp_path / "m.csv", csv_of(lines, head="path,label,split"))
    task = load_task(tmp_path / "m.csv")
    assert [len(part) for part in (task.train, task.val, task.test)] == [4, 2, 4]


def test_a_row_without_a_label_is_skipped_and_said(tmp_path):
    put(tmp_path / "m.csv", csv_of([*rows(tmp_path), ("img/cat/9.png", "")]))
    dataset = Dataset.read(tmp_path / "m.csv")
    assert [str(item) for item in dataset.skipped] == [
        f"{tmp_path / 'img/cat/9.png'} (no label in the manifest)"
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"path": "a.png", "label": 1}\n[1]\n', "line 2 is no JSON object"),
        (b'{"path": "a.png"}\n' + b"[" * 100_000, "line 2 is no JSON object"),
        (b'{"path": ["a.png"]}\n', "line 1 has the path"),
        (b'{"path": "a\\u0000.png"}\n', "line 1 has no path"),
        (b"path,label\n,cat\n", "line 2 has no path"),
        (b"path,label\na.png,cat\n", "got 1 labels"),
        (b"a.png\nb.png\n", "without labels"),
        (b"", "empty list"),
        (b"\xff\xfe\x00", "neither an image nor a text"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_line(content, says, tmp_path):
    put(tmp_path / "m", content)
    with pytest.raises(ConfigurationError, match=says) as caught:
        Dataset.read(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_several_images_and_folders_in_the_order_given(tmp_path):
    fill(tmp_path, "cat", "dog", images=2)
    put(tmp_path / "notes.txt", b"no list")
    sources = [
        tmp_path / "dog" / "1.png",
        tmp_path / "cat",
        tmp_path / "dog",
        tmp_path / "notes.txt",
    ]
    found = scan(sources)
    assert [path.relative_to(tmp_path).as_posix() for path in found.files] == [
        "dog/1.png",
        "cat/0.png",
        "cat/1.png",
        "dog/0.png",
    ]
    twice, notes = (item.reason for item in found.skipped)
    assert twice == "listed twice"
    # A list is read only if it stands alone, and the reason says so.
    assert "must be the only input" in notes


def test_adapt_takes_what_a_pattern_of_the_shell_gives(tmp_path, make_adapter):
    fill(tmp_path / "in", "cat", "dog", images=2)
    make_adapter().save(tmp_path / "c.safetensors")
    images = sorted((tmp_path / "in").glob("*/*.png"))
    done = pgn("adapt", *images, tmp_path / "out", "--ckpt", tmp_path / "c.safetensors")
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")}
    assert written == {path.relative_to(tmp_path / "in") for path in images}


def test_adapt_writes_into_none_of_several_sources(tmp_path, make_adapter):
    fill(tmp_path, "cat", "dog", images=2)
    make_adapter().save(tmp_path / "c.safetensors")
    words = (tmp_path / "cat", tmp_path / "dog", tmp_path / "dog" / "out")
    done = pgn("adapt", *words, "--ckpt", tmp_path / "c.safetensors")
    assert done.returncode == 2
    assert "does not overlap" in done.stderr
