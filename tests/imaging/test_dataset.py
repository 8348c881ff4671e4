import dataclasses
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgn_client.errors import ConfigurationError, ImageError
from pgn_client.imaging.dataset import Split, Task, load_task, union
from pgn_client.imaging.geometry import Canvas
from pgn_client.training.examples import Examples, load_images


@pytest.fixture
def plain(make_folder, tmp_path):
    return make_folder(tmp_path / "plain", 10)


@pytest.fixture
def split(make_folder, tmp_path):
    return make_folder(tmp_path / "split", train=5, val=2, test=3)


def counts(part):
    return np.bincount(part.labels, minlength=3).tolist()


def made_up(*sizes):
    """A task of files that are not there: so many of each class in every split, the classes
    mixed.
    """

    def part(name):
        labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
        return Split(tuple(Path(f"{name}/{i}_{label}") for i, label in enumerate(labels)), labels)

    return Task(tuple("abcdefgh"[: len(sizes)]), part("train"), part("val"), part("test"), 4, 9)


class TestPlainTree:
    def test_is_split_60_20_20_in_every_class(self, plain):
        task = load_task(plain)
        assert [counts(part) for part in (task.train, task.val, task.test)] == [
            [6] * 3,
            [2] * 3,
            [2] * 3,
        ]

    def test_splits_are_disjoint_and_lose_nothing(self, plain):
        task = load_task(plain)
        paths = [*task.train.paths, *task.val.paths, *task.test.paths]
        assert len(paths) == len(set(paths)) == 30

    def test_the_seed_decides(self, plain):
        assert load_task(plain, seed=3).train.paths == load_task(plain, seed=3).train.paths
        assert set(load_task(plain, seed=3).test.paths) != set(load_task(plain, seed=4).test.paths)

    def test_labels_are_the_folders(self, plain):
        task = load_task(plain)
        assert task.classes == ("blue", "red", "white")
        for part in (task.train, task.val, task.test):
            assert [task.classes[i] for i in part.labels] == [
                path.parent.name for path in part.paths
            ]


class TestGivenSplits:
    def test_are_taken_as_they_are(self, split):
        task = load_task(split)
        for name, size in (("train", 5), ("val", 2), ("test", 3)):
            part = getattr(task, name)
            assert counts(part) == [size] * 3
            assert {path.parent.parent.name for path in part.paths} == {name}

    def test_a_missing_val_is_split_off_train(self, split):
        shutil.rmtree(split / "val")
        task = load_task(split)
        assert [counts(part) for part in (task.train, task.val, task.test)] == [
            [4] * 3,
            [1] * 3,
            [3] * 3,
        ]
        assert not set(task.train.paths) & set(task.val.paths)

    def test_a_missing_test_is_empty(self, split):
        shutil.rmtree(split / "test")
        assert len(load_task(split).test) == 0

    def test_hidden_folders_and_other_files_are_left_out(self, split):
        (split / "train" / ".cache").mkdir()
        (split / "train" / "red" / "notes.txt").write_text("x")
        (split / "train" / "red" / "MORE.JPG").write_bytes(b"")
        task = load_task(split)
        assert task.classes == ("blue", "red", "white")
        assert counts(task.train) == [5, 6, 5]


class TestShots:
    def test_are_so_many_of_each_class(self, split):
        task = load_task(split, shots=2)
        assert counts(task.train) == [2, 2, 2]
        assert counts(task.val) == [2, 2, 2]

    def test_are_drawn_by_the_seed(self, plain):
        drawn = {load_task(plain, shots=2, seed=0).train.paths for _ in range(3)}
        assert len(drawn) == 1
        assert load_task(plain, shots=2, seed=1).train.paths not in drawn

    def test_leave_validation_and_test_as_they_are(self, plain):
        few, all_ = load_task(plain, shots=1), load_task(plain)
        assert (few.val.paths, few.test.paths) == (all_.val.paths, all_.test.paths)
        assert set(few.train.paths) < set(all_.train.paths)

    def test_more_than_there_are_takes_all(self, split):
        assert counts(load_task(split, shots=99).train) == [5, 5, 5]

    def test_fewer_than_one_are_refused(self, split):
        with pytest.raises(ConfigurationError, match=r"shots: got 0"):
            load_task(split, shots=0)


class TestLimited:
    @pytest.mark.parametrize("name", ["train", "val", "test"])
    def test_is_even_over_the_classes(self, name):
        assert counts(getattr(made_up(9, 9, 9).limited(**{name: 6}), name)) == [2, 2, 2]

    @pytest.mark.parametrize(("limit", "left"), [(7, [1, 3, 3]), (11, [1, 3, 7]), (16, [1, 3, 9])])
    def test_what_a_small_class_lacks_comes_from_the_others(self, limit, left):
        assert counts(made_up(1, 3, 9).limited(train=limit).train) == left

    def test_the_remainder_goes_to_classes_by_chance(self):
        extra = {
            np.argmax(counts(made_up(9, 9, 9).limited(train=7, seed=seed).train))
            for seed in range(20)
        }
        assert extra == {0, 1, 2}

    def test_the_pictures_of_a_class_are_drawn_by_the_seed(self):
        drawn = [made_up(9, 9, 9).limited(train=6, seed=seed).train.paths for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_rows_keep_their_order(self):
        task = made_up(9, 9, 9)
        chosen = task.limited(train=14).train.paths
        assert chosen == tuple(path for path in task.train.paths if path in chosen)

    def test_labels_stay_with_their_pictures(self):
        part = made_up(9, 5, 2).limited(train=11).train
        assert [path.name.split("_")[1] for path in part.paths] == [
            str(label) for label in part.labels
        ]

    def test_fewer_are_among_more(self):
        task = made_up(9, 5, 2)
        chosen = [set(task.limited(train=n).train.paths) for n in range(3, 17)]
        assert all(few < more for few, more in pairwise(chosen))

    def test_more_than_there_are_takes_all(self):
        task = made_up(2, 3)
        assert task.limited(train=99).train.paths == task.train.paths

    def test_no_limit_leaves_a_split_alone(self):
        task = made_up(9, 9, 9)
        limited = task.limited(val=3)
        assert limited.train is task.train
        assert limited.test is task.test

    def test_keeps_classes_shots_and_seed(self):
        limited = made_up(9, 9, 9).limited(train=3, val=3, test=3, seed=5)
        assert (limited.classes, limited.shots, limited.seed) == (("a", "b", "c"), 4, 9)

    @pytest.mark.parametrize("name", ["train", "val"])
    def test_one_of_each_class_is_allowed_and_fewer_are_refused(self, name):
        task = made_up(1, 9, 9)
        assert counts(getattr(task.limited(**{name: 3}), name)) == [1, 1, 1]
        with pytest.raises(
            ConfigurationError,
            match=f"limit of {name}: got 2, expected at least 3, one of each class",
        ):
            task.limited(**{name: 2})

    def test_test_may_be_a_single_picture_but_not_none(self):
        assert len(made_up(9, 9, 9).limited(test=1).test) == 1
        with pytest.raises(ConfigurationError, match="limit of test: got 0, expected at least 1"):
            made_up(9, 9, 9).limited(test=0)

    def test_an_empty_test_stays_empty(self, split):
        shutil.rmtree(split / "test")
        assert len(load_task(split).limited(test=5).test) == 0


class TestUnion:
    @pytest.fixture
    def tasks(self, split, make_folder, tmp_path):
        other = make_folder(tmp_path / "other", train=2, val=1, test=1, classes=("green", "red"))
        return {"zoo": load_task(split, seed=7), "art": load_task(other, seed=7)}

    def test_classes_follow_the_order_given(self, tasks):
        assert union(tasks).classes == ("zoo/blue", "zoo/red", "zoo/white", "art/green", "art/red")

    @pytest.mark.parametrize(
        ("name", "sizes"), [("train", [5, 5, 5, 2, 2]), ("val", [2, 2, 2, 1, 1])]
    )
    def test_labels_are_shifted(self, tasks, name, sizes):
        part = getattr(union(tasks), name)
        assert (counts(part), part.labels.dtype) == (sizes, np.int64)

    @pytest.mark.parametrize("name", ["train", "val", "test"])
    def test_labels_are_still_the_folders(self, tasks, name):
        whole = union(tasks)
        part = getattr(whole, name)
        assert [whole.classes[i].split("/")[1] for i in part.labels] == [
            path.parent.name for path in part.paths
        ]

    @pytest.mark.parametrize("name", ["train", "val", "test"])
    def test_paths_follow_one_another(self, tasks, name):
        assert getattr(union(tasks), name).paths == sum(
            (getattr(task, name).paths for task in tasks.values()), ()
        )

    def test_an_empty_test_adds_nothing(self, tasks):
        tasks["zoo"] = dataclasses.replace(tasks["zoo"], test=tasks["zoo"].test.take([]))
        assert union(tasks).test.labels.tolist() == [3, 4]

    def test_keeps_shots_and_seed(self):
        whole = union({"x": made_up(2, 2), "y": made_up(3, 3)})
        assert (whole.shots, whole.seed) == (4, 9)

    def test_card_has_the_card_of_every_part(self, tasks):
        whole = union(tasks)
        parts = {"zoo": tasks["zoo"].card(), "art": tasks["art"].card()}
        expected = {
            "digest": whole.digest(),
            "train": 19,
            "val": 8,
            "shots": None,
            "seed": 7,
            "parts": parts,
        }
        assert whole.card() == expected

    def test_limited_has_cards_of_what_is_left_of_the_parts(self, tasks):
        parts = union(tasks).limited(train=16).card()["parts"]
        assert [(part["train"], part["val"]) for part in parts.values()] == [(12, 6), (4, 2)]
        assert parts["zoo"]["digest"] != tasks["zoo"].digest()
        assert parts["art"] == tasks["art"].card()

    def test_of_nothing_is_refused(self):
        with pytest.raises(ConfigurationError, match="union: got no tasks, expected at least one"):
            union({})

    @pytest.mark.parametrize("name", ["", "a/b"])
    def test_a_name_that_would_be_ambiguous_is_refused(self, name):
        with pytest.raises(
            ConfigurationError, match=f"union: got the name '{name}', expected one without a slash"
        ):
            union({name: made_up(2, 2)})

    def test_a_name_given_twice_is_refused(self):
        class Twice(dict):
            def items(self):
                return [*super().items(), *super().items()]

        with pytest.raises(ConfigurationError, match="union: got the name 'x' twice"):
            union(Twice(x=made_up(2, 2)))

    @pytest.mark.parametrize(("what", "value"), [("shots", None), ("seed", 1)])
    def test_tasks_drawn_in_different_ways_are_refused(self, what, value):
        tasks = {"x": made_up(2, 2), "y": dataclasses.replace(made_up(2, 2), **{what: value})}
        with pytest.raises(
            ConfigurationError,
            match=f"union: got {what} .*'y': {value}.*, expected the same in all",
        ):
            union(tasks)

    def test_a_union_of_unions_is_refused(self):
        inner = union({"x": made_up(2, 2), "y": made_up(2, 2)})
        with pytest.raises(
            ConfigurationError,
            match="got a union as 'z', expected a plain task; pass its parts x, y instead",
        ):
            union({"z": inner})


class TestDigest:
    def test_is_the_same_for_the_same_contents_elsewhere(self, split, tmp_path):
        shutil.copytree(split, tmp_path / "copy")
        assert load_task(tmp_path / "copy").digest() == load_task(split).digest()

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_changes_with_one_pixel(self, split, part):
        before = load_task(split).digest()
        path = next((split / part / "red").iterdir())
        pixels = np.array(Image.open(path))
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(path)
        assert load_task(split).digest() != before

    def test_changes_with_a_label(self, split):
        before = load_task(split).digest()
        shutil.move(split / "train" / "red" / "000.png", split / "train" / "blue" / "zzz.png")
        assert load_task(split).digest() != before

    def test_does_not_open_the_test_split(self, split):
        task = load_task(split)
        before = task.digest()
        shutil.rmtree(split / "test")
        assert task.digest() == before

    def test_card_tells_sizes_and_how_they_were_drawn(self, split):
        task = load_task(split, shots=2, seed=7)
        # and no parts
        assert task.card() == {"digest": task.digest(), "train": 6, "val": 6, "shots": 2, "seed": 7}


class TestRefusal:
    def test_of_a_missing_folder(self, tmp_path):
        with pytest.raises(
            ConfigurationError,
            match=r"nowhere, expected a folder with train/, "
            r"val/, test/",
        ):
            load_task(tmp_path / "nowhere")

    def test_of_one_class(self, make_folder, tmp_path):
        make_folder(tmp_path, 3, classes=("red",))
        with pytest.raises(ConfigurationError, match=r"got 1 class folders.*at least 2"):
            load_task(tmp_path)

    def test_of_an_empty_folder(self, tmp_path):
        with pytest.raises(ConfigurationError, match="got 0 class folders"):
            load_task(tmp_path)

    @pytest.mark.parametrize("part", ["train", "val"])
    def test_of_a_class_without_pictures(self, split, part):
        for path in (split / part / "red").iterdir():
            path.unlink()
        with pytest.raises(ConfigurationError, match=f"no {part} images of red; .*png"):
            load_task(split)

    def test_of_a_class_that_val_has_not(self, split):
        shutil.rmtree(split / "val" / "white")
        with pytest.raises(ConfigurationError, match="no val images of white"):
            load_task(split)

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_of_a_class_that_train_has_not(self, split, part):
        (split / part / "mauve").mkdir()
        with pytest.raises(
            ConfigurationError,
            match=f"{part} has classes \\['mauve'\\] that the training split does not have",
        ):
            load_task(split)

    def test_of_too_few_pictures_to_split(self, make_folder, tmp_path):
        make_folder(tmp_path, 1)
        with pytest.raises(ConfigurationError, match="no val images of blue"):
            load_task(tmp_path)


class TestPictures:
    def test_are_fitted_in_order(self, split):
        part = load_task(split).val
        ticks = []
        loaded = load_images(part, Canvas.build(32, 8), lambda: ticks.append(1))
        assert (loaded.dtype, loaded.shape, len(ticks)) == (torch.uint8, (6, 3, 16, 16), 6)
        brightest = loaded.float().mean((2, 3)).argmax(1)[:4]  # two blue, two red
        assert brightest.tolist() == [2, 2, 0, 0]

    def test_a_broken_file_is_named(self, split):
        path = split / "val" / "red" / "broken.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\nno")
        with pytest.raises(ImageError, match=r"broken\.png"):
            load_images(load_task(split).val, Canvas.build(32, 8))


class TestBatches:
    def examples(self, n):
        return Examples(torch.arange(n).view(n, 1, 1, 1), torch.arange(n))

    def test_in_order_cover_all(self):
        assert [y.tolist() for _, y in self.examples(5).batches(2)] == [[0, 1], [2, 3], [4]]

    def test_shuffled_cover_all_but_a_last_single_one(self):
        torch.manual_seed(0)
        batches = [y for _, y in self.examples(5).batches(2, shuffle=True)]
        assert [len(y) for y in batches] == [2, 2]
        assert len(set(torch.cat(batches).tolist())) == 4

    def test_pictures_stay_with_their_targets(self):
        assert all((x.flatten() == y).all() for x, y in self.examples(7).batches(3, shuffle=True))

    @pytest.mark.parametrize(("n", "size"), [(1, 4), (4, 4), (5, 4), (6, 4), (9, 4), (3, 1)])
    def test_steps_counts_the_shuffled_ones(self, n, size):
        examples = self.examples(n)
        assert examples.steps(size) == len(list(examples.batches(size, shuffle=True)))
