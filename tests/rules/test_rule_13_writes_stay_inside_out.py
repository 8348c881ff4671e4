"""Rule 13: a command writes inside its output folder, wherever a list or a link leads."""

import os

import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.wire.folders import adapt_files
from tests.wire.fakes import ToyAdapter, file_bytes, picture


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An image in ``lists/``, where lists will lie, and a photo of the user's in another folder."""
    for number, name in enumerate(("lists/b.png", "photos/a.png")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(file_bytes(picture(number)))
    monkeypatch.chdir(tmp_path / "lists")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("above", ["../photos/a.png", "../lists/../photos/a.png"])
def test_a_list_that_leads_above_itself_overwrites_nothing(above, place):
    (place / "lists" / "list.txt").write_text(f"b.png\n{above}\n")
    before = contents(place)
    results = list(adapt_files(ToyAdapter(), "list.txt", "out"))
    out = place / "lists" / "out"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        "lists/b.png",
        "photos/a.png",
    ]
    assert all(result.error is None for result in results)
    assert {path: data for path, data in contents(place).items() if out not in path.parents} == (
        before
    )


def test_an_output_folder_beside_the_images_of_a_list_cannot_reach_them(place):
    """One level up and down again: ``out/../photos/a.png`` is the photo itself."""
    (place / "lists" / "list.txt").write_text("b.png\n../photos/a.png\n")
    before = (place / "photos" / "a.png").read_bytes()
    list(adapt_files(ToyAdapter(), "list.txt", place / "out"))
    assert (place / "photos" / "a.png").read_bytes() == before


def test_a_link_inside_the_output_folder_that_leads_out_is_refused(place):
    (place / "lists" / "list.txt").write_text("b.png\n../photos/a.png\n")
    (place / "out").mkdir()
    (place / "out" / "photos").symlink_to(place / "precious")
    (place / "precious").mkdir()
    with pytest.raises(ConfigurationError, match="outside of"):
        list(adapt_files(ToyAdapter(), "list.txt", place / "out"))
    assert os.listdir(place / "precious") == []


def test_a_link_in_the_place_of_a_png_is_replaced_and_not_followed(place):
    (place / "out").mkdir()
    (place / "out" / "b.png").symlink_to(place / "photos" / "a.png")
    before = (place / "photos" / "a.png").read_bytes()
    list(adapt_files(ToyAdapter(), "b.png", place / "out"))
    assert (place / "photos" / "a.png").read_bytes() == before
    assert not (place / "out" / "b.png").is_symlink()


def test_an_output_folder_that_is_a_file_is_one_error(place):
    (place / "out").write_text("mine")
    with pytest.raises(ConfigurationError, match="out: cannot be written"):
        list(adapt_files(ToyAdapter(), "b.png", place / "out"))
    assert (place / "out").read_text() == "mine"
