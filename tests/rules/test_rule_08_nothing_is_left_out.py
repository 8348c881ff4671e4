"""Rule 8: nothing under DATA or IN is left out silently, and all commands agree on a folder."""

from __future__ import annotations

import json

import pytest

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.dataset import load_task
from pgn_client.imaging.files import find_images
from pgn_client.imaging.findings import look_into
from pgn_client.imaging.reader import Dataset, scan
from tests.e2e.conftest import pgn
from tests.rules.faulty_folders import CASES, fill, put
from tests.rules.hosted import server as server
from tests.rules.hosted import url

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def root(case, tmp_path):
    folder = tmp_path / "data"
    case.make(folder)
    return folder


@pytest.fixture
def labeled(root):
    """As train, map, evaluate, benchmark and check read it."""
    return Dataset.read(root).checked()


@pytest.fixture
def unlabeled(root):
    """As predict, adapt and retain read it."""
    return Dataset.unlabeled(str(root), scan([root])).checked()


def usable(dataset):
    return {file.path for file in dataset.files if dataset.is_usable(file.path)}


@each_case
def test_all_readers_use_the_same_images(case, root, labeled, unlabeled):
    assert len(usable(labeled)) == case.images
    alone = {path for path in usable(unlabeled) if path.name in case.unlabeled}
    assert usable(unlabeled) - alone == usable(labeled)
    assert len(alone) == len(case.unlabeled)
    assert set(find_images(root)) == {file.path for file in unlabeled.files}


@each_case
def test_a_task_holds_exactly_the_used_images(case, labeled):
    task = load_task(labeled)
    paths = [*task.train.paths, *task.val.paths, *task.test.paths]
    assert task.classes == case.classes
    assert len(paths) == len(set(paths))
    assert set(paths) == usable(labeled)


@each_case
def test_all_readers_name_the_same_broken_files(case, labeled, unlabeled):
    for dataset in (labeled, unlabeled):
        assert [item.path.name for item in dataset.unreadable] == list(case.broken)
        assert all(item.reason for item in dataset.unreadable)


@each_case
def test_all_readers_give_the_same_reasons_for_what_is_skipped(case, labeled, unlabeled):
    expected = dict.fromkeys(case.unlabeled, "in no class folder") | case.skipped
    reasons = {item.path.name: item.reason for item in labeled.skipped}
    assert set(reasons) == set(expected)
    assert all(expected[name] in reason for name, reason in reasons.items())
    common = {item for item in labeled.skipped if item.path.name not in case.unlabeled}
    assert set(unlabeled.skipped) == common


@each_case
def test_what_should_be_looked_at_is_flagged(case, labeled):
    found = look_into(labeled, load_task(labeled))
    assert {remark.key for remark in found.remarks if remark.serious} == case.remarks
    assert found.serious == bool(case.remarks)


@each_case
def test_every_image_is_used_or_skipped(case, labeled):
    found = look_into(labeled, load_task(labeled))
    on_disk = case.images + len(case.broken) + len(case.skipped) + len(case.unlabeled)
    assert found.used + len(found.skipped) == on_disk
    assert found.summary().startswith(f"used {found.used} files, skipped {len(found.skipped)}")


@each_case
def test_the_command_check_says_what_the_readers_say(case, root):
    done = pgn("check", root, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == bool(case.remarks)
    assert found["used"] == case.images
    assert {remark["key"] for remark in found["remarks"] if remark["serious"]} == case.remarks
    assert pgn("check", root).stdout.splitlines()[-1] == found["summary"]


def summary_of(done):
    """The last line of a command, without the reasons."""
    return done.stderr.splitlines()[-1].partition(":")[0].partition(";")[0]


@each_case
def test_the_commands_without_labels_say_what_the_readers_say(
    case, root, tmp_path, make_adapter, server
):
    make_adapter().save(tmp_path / "c.safetensors")
    used = case.images + len(case.unlabeled)
    expected = f"used {used} files, skipped {len(case.broken) + len(case.skipped)}"
    commands = (
        ("adapt", root, tmp_path / "out", "--ckpt", tmp_path / "c.safetensors"),
        ("predict", root, "--url", url(server), "--out", tmp_path / "out.jsonl"),
    )
    for words in commands:
        assert summary_of(pgn(*words)) == expected, words[0]


@each_case
def test_the_command_map_says_what_the_readers_say(case, root, tmp_path, server):
    words = ("map", root, "--url", url(server), "--out", tmp_path / "m.safetensors")
    done = pgn(*words, "--max-failure-rate", 1)
    skipped = len(case.broken) + len(case.skipped) + len(case.unlabeled)
    assert done.returncode == 0, done.stderr
    assert summary_of(done) == f"used {case.images} files, skipped {skipped}"
    flagged = {name for name in case.remarks if name != "unreadable"}
    assert sum(line.startswith("warning: ") for line in done.stderr.splitlines()) == len(flagged)


def test_images_without_labels_can_be_checked(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png", i)
    done = pgn("check", tmp_path)
    assert done.returncode == 0
    assert "without labels" in done.stdout
    assert done.stdout.splitlines()[-1] == "used 3 files, skipped 0"


def test_the_last_line_names_three_files_and_the_ones_to_look_at_first(tmp_path):
    fill(tmp_path, "cat", "dog")
    for name in ("a.txt", "b.txt", "c.txt"):
        put(tmp_path / "cat" / name, b"text")
    put(tmp_path / "dog" / ".z.png", 7)
    last = pgn("check", tmp_path).stdout.splitlines()[-1]
    assert last.startswith("used 10 files, skipped 4: ")
    assert last.count("not an image") == 2
    assert ".z.png (hidden)" in last
    assert last.endswith(", …")


def test_data_that_cannot_be_split_are_reported_and_not_refused(tmp_path):
    fill(tmp_path, "cat", "dog", images=1)
    done = pgn("check", tmp_path)
    assert done.returncode == 1
    assert "no val images of cat" in done.stdout


def test_splits_of_one_kind_under_two_names_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        fill(tmp_path / name, "cat", "dog")
    with pytest.raises(ConfigurationError, match="two folders for the split val"):
        Dataset.read(tmp_path)


def test_many_links_to_one_folder_end(tmp_path):
    folders = [tmp_path / "cat" / str(i) for i in range(6)]
    for folder in folders:
        folder.mkdir(parents=True)
    put(folders[0] / "x.png", 1)
    for folder in folders:
        for other in folders:
            (folder / f"to {other.name}").symlink_to(other)
    fill(tmp_path, "dog")
    found = scan([tmp_path])
    assert folders[0] / "x.png" in found.files
    assert any("too many links" in item.reason for item in found.skipped)


def test_a_run_without_a_broken_file_equals_one_after_its_removal(tmp_path):
    fill(tmp_path, "cat", "dog", images=10)
    put(tmp_path / "cat" / "4.png", b"broken")
    before = load_task(Dataset.read(tmp_path).checked(), seed=3)
    (tmp_path / "cat" / "4.png").unlink()
    after = load_task(tmp_path, seed=3)
    for name in ("train", "val", "test"):
        assert getattr(before, name).paths == getattr(after, name).paths


# From commit d1eed61.
DIGESTS = {
    "a folder per class": "6ab1fe482c22dafb1dacafbe0b3949509ce407dfb0fd195e3654abba346499a8",
    "splits": "572148ad22eded3d21987cc89503b36d013f1b4f2c7f8ff1b744b89910d3d4a4",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_splits_of_data_without_faults_are_those_of_earlier_versions(name, tmp_path):
    CASES[name].make(tmp_path / "data")
    # Decoded pixels may be encoded otherwise by another Pillow, so the files get fixed contents.
    for path in sorted((tmp_path / "data").rglob("*.png")):
        path.write_bytes(str(path.relative_to(tmp_path)).encode())
    assert load_task(tmp_path / "data", seed=5).digest() == DIGESTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["splits", "a pipe", "sub-folders of a class"])
def test_the_commands_train_evaluate_and_retain_say_what_the_readers_say(name, tmp_path, server):
    case = CASES[name]
    case.make(tmp_path / "data")
    out = tmp_path / "c.safetensors"
    words = ("train", tmp_path / "data", "--method", "no_prompt", "--epochs", 1, "--out", out)
    done = pgn(*words, "--max-failure-rate", 1)
    skipped = len(case.broken) + len(case.skipped) + len(case.unlabeled)
    assert done.returncode == 0, done.stderr
    assert summary_of(done) == f"used {case.images} files, skipped {skipped}"

    words = ("evaluate", tmp_path / "data", "--url", url(server), "--ckpt", out, "--dry-run")
    done = pgn(*words, "--max-failure-rate", 1)
    assert done.returncode == 0, done.stderr
    assert summary_of(done) == f"used {case.images} files, skipped {skipped}"

    done = pgn("retain", tmp_path / "data", "--ckpt", out)
    used = case.images + len(case.unlabeled)
    assert summary_of(done) == f"used {used} files, skipped {len(case.broken) + len(case.skipped)}"
