import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from pgn_client.errors import ShapeError
from pgn_client.imaging.compositor import GREY, compose, fit_to_canvas, seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.types import ServerProfile

PROFILES = [
    "direct",
    "resize_crop:36:32",
    "resize_crop:37:32",
    "resize_crop:41:32",
    "resize_crop:32:32",
    "shortest_edge:32",
    "letterbox:32",
]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def parts(layout="ring", profile="direct"):
    """A canvas of 32 pixels with patches of 8, an image and prompt patches of noise."""
    canvas = Canvas.build(32, 8, layout, ServerProfile.parse(profile))
    return canvas, noise(*canvas.box[2:], 3), noise(canvas.prompts, 8, 8, 3, seed=1)


def by_hand(canvas, picture, patches):
    """The canvas, one cell at a time."""
    pixels = np.zeros((canvas.size, canvas.size, 3), np.uint8)
    top, left, height, width = canvas.box
    pixels[top : top + height, left : left + width] = picture
    for cell, patch in zip(canvas.cells, patches, strict=True):
        row, column = divmod(cell, canvas.size // canvas.patch)
        pixels[row * canvas.patch :, column * canvas.patch :][: canvas.patch, : canvas.patch] = (
            patch
        )
    return pixels


def torchvision_sees(image, resize, crop):
    resized = Resize(resize, InterpolationMode.BICUBIC, antialias=True)(image)
    return np.asarray(CenterCrop(crop)(resized))


class TestCompose:
    @pytest.mark.parametrize("layout", ["ring", "corner", "rows:1", "rows:3"])
    def test_every_prompt_lands_exactly_on_its_cell(self, layout):
        canvas, picture, patches = parts(layout)
        assert (
            np.asarray(compose(picture, patches, canvas)) == by_hand(canvas, picture, patches)
        ).all()

    @pytest.mark.parametrize("profile", PROFILES)
    def test_the_server_sees_the_canvas_bit_for_bit(self, profile):
        canvas, picture, patches = parts(profile=profile)
        image = compose(picture, patches, canvas)
        assert image.size == (canvas.sent, canvas.sent)
        seen = seen_by_server(image, ServerProfile.parse(profile), 32)
        assert (seen == by_hand(canvas, picture, patches)).all()

    @pytest.mark.parametrize("resize", [32, 35, 36, 37, 41, 47])
    def test_torchvision_sees_the_canvas_bit_for_bit(self, resize):
        canvas, picture, patches = parts(profile=f"resize_crop:{resize}:32")
        seen = torchvision_sees(compose(picture, patches, canvas), resize, 32)
        assert (seen == by_hand(canvas, picture, patches)).all()

    def test_without_the_margin_the_server_sees_something_else(self):
        canvas, picture, patches = parts(profile="resize_crop:37:32")
        bare = compose(picture, patches, canvas, margin=False)
        assert bare.size == (32, 32)
        assert (np.asarray(bare) == by_hand(canvas, picture, patches)).all()
        assert (torchvision_sees(bare, 37, 32) != np.asarray(bare)).any()

    def test_the_margin_repeats_the_edge(self):
        # offset round(2.5) = 2, so 2 before and 3 after
        canvas, picture, patches = parts(profile="resize_crop:37:32")
        nearest = np.clip(np.arange(37) - 2, 0, 31)
        expected = by_hand(canvas, picture, patches)[nearest][:, nearest]
        assert (np.asarray(compose(picture, patches, canvas)) == expected).all()

    def test_without_prompts_the_cells_are_grey(self):
        canvas, picture, patches = parts()
        expected = by_hand(canvas, picture, np.full_like(patches, GREY))
        assert (np.asarray(compose(picture, None, canvas)) == expected).all()

    def test_the_inputs_stay_as_they_are(self):
        canvas, picture, patches = parts()
        before = picture.copy(), patches.copy()
        compose(picture, patches, canvas)
        assert (picture == before[0]).all()
        assert (patches == before[1]).all()

    def test_a_picture_of_another_size_is_refused(self):
        canvas, _, patches = parts()
        with pytest.raises(ShapeError, match=r"\(15, 16, 3\).*\(16, 16, 3\).*fit_to_canvas"):
            compose(noise(15, 16, 3), patches, canvas)

    def test_patches_of_another_layout_are_refused(self):
        canvas, picture, _ = parts()
        with pytest.raises(ShapeError, match=r"\(7, 8, 8, 3\).*\(12, 8, 8, 3\)"):
            compose(picture, noise(7, 8, 8, 3), canvas)


class TestComposeWholeCanvas:
    """From a method that paints the image itself."""

    @pytest.mark.parametrize("profile", PROFILES)
    def test_the_server_sees_it_bit_for_bit(self, profile):
        canvas, picture, _ = parts("full", profile)
        painted = noise(32, 32, 3, seed=2)
        image = compose(picture, painted, canvas)
        assert image.size == (canvas.sent, canvas.sent)
        assert (seen_by_server(image, ServerProfile.parse(profile), 32) == painted).all()

    def test_the_margin_repeats_its_edge(self):
        canvas, picture, _ = parts("full", "resize_crop:37:32")
        painted, nearest = noise(32, 32, 3, seed=2), np.clip(np.arange(37) - 2, 0, 31)
        assert (np.asarray(compose(picture, painted, canvas)) == painted[nearest][:, nearest]).all()

    def test_without_a_prompt_it_is_the_picture(self):
        canvas, picture, _ = parts("full")
        assert (np.asarray(compose(picture, None, canvas)) == picture).all()

    def test_one_of_another_size_is_refused(self):
        canvas, picture, _ = parts("full")
        with pytest.raises(ShapeError, match=r"\(16, 16, 3\).*\(32, 32, 3\)"):
            compose(picture, noise(16, 16, 3), canvas)

    def test_it_is_refused_where_there_are_prompt_cells(self):
        canvas, picture, _ = parts("ring")
        with pytest.raises(ShapeError, match=r"\(32, 32, 3\).*\(12, 8, 8, 3\)"):
            compose(picture, noise(32, 32, 3), canvas)


class TestFitPicture:
    def test_squashes_into_the_box_height_by_width(self):
        canvas = Canvas.build(32, 8, "rows:1")
        assert fit_to_canvas(Image.new("RGB", (50, 20)), canvas).shape == (24, 32, 3)

    def test_is_torchvisions_antialiased_bicubic_resize(self):
        image = Image.fromarray(noise(45, 70, 3))
        canvas = Canvas.build(32, 8, "rows:1")
        expected = Resize((24, 32), InterpolationMode.BICUBIC, antialias=True)(image)
        assert (fit_to_canvas(image, canvas) == np.asarray(expected)).all()

    def test_a_picture_of_the_boxs_size_passes_unchanged(self):
        pixels = noise(16, 16, 3)
        assert (fit_to_canvas(Image.fromarray(pixels), Canvas.build(32, 8)) == pixels).all()

    def test_grey_pictures_are_converted(self):
        fitted = fit_to_canvas(Image.new("L", (16, 16), 77), Canvas.build(32, 8))
        assert (fitted == 77).all()


class TestSeenByServer:
    @pytest.mark.parametrize(
        "size", [(50, 41), (41, 50), (33, 97), (97, 33), (31, 31), (20, 64), (37, 37), (101, 100)]
    )
    @pytest.mark.parametrize("resize", [32, 37])
    def test_resize_and_crop_are_torchvisions(self, size, resize):
        image = Image.fromarray(noise(size[1], size[0], 3))
        seen = seen_by_server(image, ServerProfile("resize_crop", resize, 32), 32)
        assert (seen == torchvision_sees(image, resize, 32)).all()

    @pytest.mark.parametrize("size", [(50, 41), (20, 64)])
    def test_direct_squashes_as_torchvision_does(self, size):
        image = Image.fromarray(noise(size[1], size[0], 3))
        expected = np.asarray(Resize((32, 32), InterpolationMode.BICUBIC, antialias=True)(image))
        assert (seen_by_server(image, ServerProfile("direct"), 32) == expected).all()

    def test_letterbox_keeps_the_shape_and_pads_with_grey(self):
        seen = seen_by_server(
            Image.new("RGB", (64, 32), (200, 0, 0)), ServerProfile("letterbox", 32), 32
        )
        assert seen.shape == (32, 32, 3)
        assert (seen[:8] == GREY).all()
        assert (seen[24:] == GREY).all()
        assert (seen[8:24] == (200, 0, 0)).all()
