import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pgn_client.errors import ConfigurationError, ImageError
from pgn_client.geometry import Canvas
from pgn_client.training.data import Examples, load_pictures, load_task


@pytest.fixture
def plain(make_folder, tmp_path):
    return make_folder(tmp_path / "plain", 10)


@pytest.fixture
def split(make_folder, tmp_path):
    return make_folder(tmp_path / "split", train=5, val=2, test=3)


def counts(part):
    return np.bincount(part.labels, minlength=3).tolist()


class TestPlainTree:
    def test_is_split_60_20_20_in_every_class(self, plain):
        task = load_task(plain)
        assert [counts(part) for part in (task.train, task.val, task.test)] == [[6] * 3, [2] * 3, [2] * 3]

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
            assert [task.classes[i] for i in part.labels] == [path.parent.name for path in part.paths]


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
        assert [counts(part) for part in (task.train, task.val, task.test)] == [[4] * 3, [1] * 3, [3] * 3]
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
        assert task.card() == {"digest": task.digest(), "train": 6, "val": 6, "shots": 2, "seed": 7}


class TestRefusal:
    def test_of_a_missing_folder(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"nowhere, expected a folder with train/, val/, test/"):
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
        with pytest.raises(ConfigurationError, match=f"no {part} pictures of red; .*png"):
            load_task(split)

    def test_of_a_class_that_val_has_not(self, split):
        shutil.rmtree(split / "val" / "white")
        with pytest.raises(ConfigurationError, match="no val pictures of white"):
            load_task(split)

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_of_a_class_that_train_has_not(self, split, part):
        (split / part / "mauve").mkdir()
        with pytest.raises(
            ConfigurationError, match=f"{part} has classes \\['mauve'\\] that the training split has not"
        ):
            load_task(split)

    def test_of_too_few_pictures_to_split(self, make_folder, tmp_path):
        make_folder(tmp_path, 1)
        with pytest.raises(ConfigurationError, match="no val pictures of blue"):
            load_task(tmp_path)


class TestPictures:
    def test_are_fitted_in_order(self, split):
        part = load_task(split).val
        ticks = []
        loaded = load_pictures(part, Canvas.build(32, 8), lambda: ticks.append(1))
        assert (loaded.dtype, loaded.shape, len(ticks)) == (torch.uint8, (6, 3, 16, 16), 6)
        brightest = loaded.float().mean((2, 3)).argmax(1)[:4]  # two blue, two red
        assert brightest.tolist() == [2, 2, 0, 0]

    def test_a_broken_file_is_named(self, split):
        path = split / "val" / "red" / "broken.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\nno")
        with pytest.raises(ImageError, match=r"broken\.png"):
            load_pictures(load_task(split).val, Canvas.build(32, 8))


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
