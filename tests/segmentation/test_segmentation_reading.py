"""Reading masked images, drawing episodes, and counting overlap."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pgn_client.errors import ConfigurationError, ImageError, ShapeError
from pgn_client.segmentation import IGNORED, Masked, load_masked, mean_iou, sample

CLASSES = ("background", "bark", "cloth", "dots")


def write(folder, masks, classes=CLASSES):
    """Write noise with these masks; return the folder."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, mask in masks.items():
        Image.fromarray(rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)).save(
            folder / "images" / f"{name}.png"
        )
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    (folder.parent / "classes.json").write_text(json.dumps(classes))
    return folder


def plain(value=0, shape=(6, 6)):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[:2] = value
    return mask


def masked(shown, classes=CLASSES):
    """Images filled with their number; the mask of each shows some classes, a row each."""
    pictures = torch.stack([torch.full((3, 8, 8), i, dtype=torch.uint8) for i in range(len(shown))])
    masks = torch.zeros(len(shown), 8, 8, dtype=torch.uint8)
    for mask, own in zip(masks, shown, strict=True):
        for row, c in enumerate(own):
            mask[row] = c
    return Masked(pictures, masks, classes)


class TestReading:
    def test_pictures_and_masks_come_in_the_order_of_their_names(self, tmp_path):
        folder = write(tmp_path / "train", {"b": plain(2), "a": plain(IGNORED)})
        found = load_masked(folder)
        assert (found.classes, len(found)) == (CLASSES, 2)
        assert found.images.dtype == found.masks.dtype == torch.uint8
        for i, name in enumerate("ab"):
            picture = np.asarray(Image.open(folder / "images" / f"{name}.png"))
            assert (found.images[i].permute(1, 2, 0).numpy() == picture).all()
        assert found.masks.unique().tolist() == [0, 2, IGNORED]
        assert (found.masks[0] == IGNORED).sum() == 12

    def test_a_palette_gives_its_indices(self, tmp_path):
        folder = write(tmp_path / "train", {"a": plain(3)})
        coloured = Image.fromarray(plain(3), mode=None).convert("L")
        coloured.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
        coloured.save(folder / "masks" / "a.png")
        assert load_masked(folder).masks.unique().tolist() == [0, 3]

    @pytest.mark.parametrize(("kind", "other"), [("images", "masks"), ("masks", "images")])
    def test_what_has_no_partner_is_named(self, tmp_path, kind, other):
        folder = write(tmp_path / "train", {"a": plain(), "b": plain()})
        (folder / other / "b.png").unlink()
        with pytest.raises(
            ConfigurationError,
            match=rf"got {kind}/b.png alone in .*, expected "
            rf"{other}/b.png too",
        ):
            load_masked(folder)

    def test_no_pictures(self, tmp_path):
        with pytest.raises(ConfigurationError, match="masked images: got none in"):
            load_masked(write(tmp_path / "train", {}))

    def test_a_mask_of_another_size(self, tmp_path):
        folder = write(tmp_path / "train", {"a": plain()})
        Image.fromarray(plain(shape=(6, 5))).save(folder / "masks" / "a.png")
        with pytest.raises(
            ShapeError,
            match=r"mask a.png in .*: got \(6, 5\), expected its "
            r"image's \(6, 6\)",
        ):
            load_masked(folder)

    def test_a_picture_of_another_size(self, tmp_path):
        folder = write(tmp_path / "train", {"a": plain(), "b": plain(shape=(6, 7))})
        with pytest.raises(
            ShapeError,
            match=r"image b.png in .*: got \(6, 7\), expected the first image's \(6, 6\)",
        ):
            load_masked(folder)

    def test_a_class_without_a_name(self, tmp_path):
        with pytest.raises(
            ConfigurationError, match="got the value 4, expected 0 to 3, or 255 for ignored"
        ):
            load_masked(write(tmp_path / "train", {"a": plain(4)}))

    def test_a_mask_in_colour_and_one_that_is_no_picture(self, tmp_path):
        folder = write(tmp_path / "train", {"a": plain()})
        Image.fromarray(plain()).convert("RGB").save(folder / "masks" / "a.png")
        with pytest.raises(ImageError, match="got mode RGB, expected 8-bit gray or a palette"):
            load_masked(folder)
        (folder / "masks" / "a.png").write_text("no image")
        with pytest.raises(ImageError, match="expected a PNG"):
            load_masked(folder)

    @pytest.mark.parametrize("text", ["", "{}", '["background"]', '["background", 1]'])
    def test_class_names_that_are_none(self, tmp_path, text):
        folder = write(tmp_path / "train", {"a": plain()})
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(ConfigurationError, match=r"classes.json: (got|expected)"):
            load_masked(folder)


class TestEpisodes:
    TRAIN = masked([(c,) for c in (1, 2, 3)] * 4 + [(1, 2), (2, 3)])
    TEST = masked([(c,) for c in (3, 2, 1)] * 4)

    def draw(self, seed=0, **options):
        return sample(
            self.TRAIN, self.TEST, **{"ways": 2, "shots": 2, "queries": 4, "seed": seed} | options
        )

    def test_shapes_and_names(self):
        episode = self.draw()
        assert episode.classes[0] == "background"
        assert list(episode.classes[1:]) == sorted(episode.classes[1:])
        assert (len(episode.support), len(episode.query)) == (4, 4)

    def test_support_is_of_train_and_queries_are_of_test(self):
        for seed in range(5):
            episode = self.draw(seed)
            for source, pictures, masks in (
                (self.TRAIN, episode.support, episode.support_masks),
                (self.TEST, episode.query, episode.query_masks),
            ):
                numbers = pictures[:, 0, 0, 0].long()
                assert len(set(numbers.tolist())) == len(numbers)  # none twice
                names = [[CLASSES[c] for c in mask.unique()] for mask in source.masks[numbers]]
                assert names == [[episode.classes[c] for c in mask.unique()] for mask in masks]

    def test_every_class_is_shown_as_often_as_asked(self):
        for seed in range(5):
            episode = self.draw(seed)
            for c in (1, 2):
                assert sum(bool((mask == c).any()) for mask in episode.support_masks) >= 2
                assert sum(bool((mask == c).any()) for mask in episode.query_masks) >= 2

    def test_the_seed_decides(self):
        assert torch.equal(self.draw(3).support, self.draw(3).support)
        assert len({tuple(self.draw(s).support[:, 0, 0, 0].tolist()) for s in range(8)}) > 4

    def test_what_is_ignored_stays_ignored(self):
        train = masked([(1, IGNORED)])
        episode = sample(
            train,
            train,
            ways=1,
            shots=1,
            queries=1,
            seed=next(filter(self.draws_the_first, range(20))),
        )
        assert episode.support_masks.unique().tolist() == [0, 1, IGNORED]

    @staticmethod
    def draws_the_first(seed):
        return np.random.default_rng(seed).choice(np.arange(1, 4), size=1, replace=False)[0] == 1

    def test_too_few_pictures(self):
        with pytest.raises(
            ConfigurationError, match="too few images that show no class but the chosen"
        ):
            self.draw(shots=7)

    @pytest.mark.parametrize("wrong", [{"ways": 4}, {"ways": 0}, {"shots": 0}, {"queries": 1}])
    def test_numbers_that_make_no_episode(self, wrong):
        with pytest.raises(
            ConfigurationError,
            match=r"episode: got .* ways, .*expected 1 "
            r"to 3 ways",
        ):
            self.draw(**wrong)

    def test_other_classes_in_test(self):
        with pytest.raises(ConfigurationError, match="expected those of train"):
            sample(
                self.TRAIN,
                masked([(1,)], ("background", "x", "y", "z")),
                ways=1,
                shots=1,
                queries=1,
                seed=0,
            )


class TestOverlap:
    def test_counted_by_hand(self):
        true = torch.tensor([[[0, 0, 1, 1]], [[2, 2, 0, IGNORED]]])
        found = torch.tensor([[[0, 1, 1, 1]], [[2, 0, 0, 1]]])
        # background 2 of 4, first class 2 of 3, second 1 of 2; the ignored pixel is in no union
        assert mean_iou(found, true, 3) == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)

    def test_perfect_and_all_wrong(self):
        true = torch.tensor([[[0, 1], [1, 2]]])
        assert mean_iou(true, true, 3) == 1
        assert mean_iou((true + 1) % 3, true, 3) == 0

    def test_pooled_over_pictures_and_not_their_mean(self):
        true, found = (
            torch.tensor([[[1, 1, 1, 1]], [[1, 0, 0, 0]]]),
            torch.tensor([[[1, 1, 1, 1]], [[0, 0, 0, 0]]]),
        )
        assert mean_iou(found, true, 2) == pytest.approx((4 / 5 + 3 / 4) / 2)

    def test_a_class_that_is_nowhere_is_left_out(self):
        true = torch.tensor([[[0, 1]]])
        assert mean_iou(true, true, 5) == 1

    def test_shapes_that_differ_and_nothing_to_count(self):
        with pytest.raises(ShapeError, match=r"got predictions \(1, 2\), expected \(1, 3\)"):
            mean_iou(torch.zeros(1, 2), torch.zeros(1, 3), 2)
        with pytest.raises(ShapeError, match="no pixel that counts"):
            mean_iou(torch.zeros(1, 2), torch.full((1, 2), IGNORED), 2)
