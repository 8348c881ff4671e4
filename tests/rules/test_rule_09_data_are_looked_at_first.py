"""Rule 9: the report looks at the data before it vouches for numbers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from pgn_client.errors import ConfigurationError
from pgn_client.evaluation.benchmark.runs import Cell, Plan
from pgn_client.evaluation.report import page, table
from pgn_client.imaging.dataset import load_task
from pgn_client.imaging.duplicates import Look, look_alikes
from pgn_client.imaging.findings import look_into
from pgn_client.imaging.reader import Dataset
from tests.evaluation.test_report import pictures, report_of
from tests.rules.faulty_folders import CASES, encoded, fill, noise, put


def found_in(folder, **options):
    dataset = Dataset.read(folder).checked()
    return look_into(dataset, load_task(dataset), **options)


def text_of(found, key):
    return next(remark.text for remark in found.remarks if remark.key == key)


@pytest.fixture
def copied(tmp_path):
    """Splits whose test has 20 images of its own and 20 byte copies of training images."""
    for number, split in enumerate(("train", "val", "test")):
        fill(tmp_path / split, "cat", "dog", images=10, start=1000 * number)
    for name in ("cat", "dog"):
        for i in range(10):
            source = tmp_path / "train" / name / f"{i}.png"
            shutil.copy(source, tmp_path / "test" / name / f"copy{i}.png")
    return tmp_path


def test_copies_of_training_images_are_counted_and_three_are_named(copied):
    text = text_of(found_in(copied), "test_copies")
    assert "training or validation images: 20 (" in text
    assert text.count(" = ") == 3
    assert f"{copied / 'train' / 'cat' / '0.png'} = {copied / 'test' / 'cat' / 'copy0.png'}" in text


def test_copies_are_left_out_of_the_test_and_of_its_count(copied):
    task = load_task(copied).without_copies()
    assert len(task.test) == 20
    assert not any(path.name.startswith("copy") for path in task.test.paths)
    found = found_in(copied, without_copies=True)
    assert found.splits == {"train": 20, "val": 20, "test": 20}
    assert "left out of the test" in text_of(found, "test_copies")
    assert "skipped 20" in found.summary()
    assert "a copy of" in found.summary()


def test_a_benchmark_leaves_copies_out(copied):
    plan = Plan({"set": copied}, ("pgn",))
    assert len(Cell("set", None, 0).task(plan).test) == 20


def test_a_test_of_copies_alone_is_refused(copied):
    for path in (copied / "test").glob("*/[0-9]*.png"):
        path.unlink()
    with pytest.raises(ConfigurationError, match="20 test images that are all byte copies"):
        load_task(copied).without_copies()


def test_training_and_validation_of_a_task_stay_as_they_are(copied):
    task = load_task(copied)
    assert task.without_copies().digest() == task.digest()


@pytest.mark.parametrize(("images", "points"), [(56, 15), (120, 10), (500, 5)])
def test_too_few_test_images_say_what_they_cannot_tell(images, points, tmp_path):
    for split in ("train", "val"):
        fill(tmp_path / split, "cat", "dog", images=1, start=10_000)
    for i in range(images):
        path = tmp_path / "test" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[[i % 256, i // 256, 7]]], dtype=np.uint8)).save(path)
    assert text_of(found_in(tmp_path), "few_test") == (
        f"{images} test images: differences below about {points} points cannot be told; "
        "for ±5 you need about 510"
    )


def look(image, quality=None):
    image = image.convert("RGB")
    data = encoded(image) if quality is None else encoded(image, "JPEG", quality=quality)
    return data


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encoded(image, "JPEG", quality=60),
        lambda image: encoded(image.resize((200, 200), Image.Resampling.LANCZOS)),
        lambda image: encoded(image.resize((100, 60)).convert("L")),
        lambda image: encoded(image.point(lambda v: 10 + v * 0.9)),
    ],
    ids=["compressed", "enlarged", "squashed and gray", "brighter"],
)
def test_changed_copies_look_alike(change, tmp_path):
    image = noise(3, (96, 96))
    put(tmp_path / "a.png", encoded(image))
    put(tmp_path / "b.png", change(image))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    looks = {path: Look.at(path) for path in paths}
    assert list(look_alikes(looks, [paths[:1], paths[1:]])) == [tuple(paths)]


def test_different_images_do_not_look_alike(tmp_path):
    flat = [Image.new("RGB", (40, 40), (v, v, v)) for v in (3, 4, 5, 200)]
    images = [*flat, *(noise(seed) for seed in range(60))]
    for i, image in enumerate(images):
        put(tmp_path / f"{i}.png", encoded(image))
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    looks = {path: Look.at(path) for path in paths}
    assert list(look_alikes(looks, [paths[::2], paths[1::2]])) == []


def test_the_report_says_it_in_the_terminal_the_page_and_the_json(tmp_path):
    CASES["a test image copied from training"].make(tmp_path)
    report = report_of()
    report.data = found_in(tmp_path, without_copies=True).to_json()
    copies = text_of(found_in(tmp_path, without_copies=True), "test_copies")
    assert f"data, look at this: {copies}" in table(report)
    text = page(report, pictures(report))
    head = text[: text.index("</header>")]
    assert "left out of the test" in head
    assert "used 12 files, skipped 1" in text
    data = report.to_json()["data"]
    assert data["splits"]["test"] == 4
    assert data["remarks"][0]["key"] == "test_copies"
    assert len(data["skipped"]) == 1


def test_a_report_without_data_has_no_remarks():
    assert "data" not in table(report_of()).split("verdict")[0].lower()
