from __future__ import annotations

import contextlib
import warnings
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize
from torchvision.transforms.functional import normalize, to_tensor

from mock_server.errors import ConfigurationError, RequestError
from mock_server.preprocess import Jpeg, Preprocessing, Profile, decode

MANY = 10**7
SIZES = [(32, 32), (40, 31), (31, 40), (100, 57), (57, 100), (20, 20)]


def preprocessing(
    profile: str, *, jpeg: Jpeg | None = None, interpolation: str = "bicubic", size: int = 32
):
    return Preprocessing(
        Profile.parse(profile), size, interpolation, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), jpeg
    )


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_crop_equals_torchvision(picture, size, interpolation):
    image = picture(0, size)
    mode = InterpolationMode(interpolation)
    expected = CenterCrop(32)(Resize(37, mode)(image))
    ours = preprocessing("resize_crop:37:32", interpolation=interpolation).geometry(image)
    assert np.array_equal(np.asarray(ours), np.asarray(expected))


def test_shortest_edge_equals_torchvision_without_a_crop(picture):
    image = picture(0, (100, 57))
    expected = Resize(32, InterpolationMode.BICUBIC)(image)
    assert np.array_equal(
        np.asarray(preprocessing("shortest_edge:32").geometry(image)), np.asarray(expected)
    )


def test_shortest_edge_refuses_a_picture_that_would_become_huge(picture):
    with pytest.raises(RequestError, match="4 times"):
        preprocessing("shortest_edge:32").geometry(picture(0, (200, 10)))


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_resize_crop_refuses_a_picture_whose_resize_would_ask_for_gigabytes(monkeypatch, size):
    monkeypatch.setattr(Image.Image, "resize", lambda *_, **__: pytest.fail("resized"))
    with pytest.raises(RequestError, match="64 times") as caught:
        preprocessing("resize_crop:256:224", size=224).geometry(Image.new("RGB", size))
    assert caught.value.code == "invalid_image"


def test_resize_crop_takes_a_panorama(picture):
    assert preprocessing("resize_crop:37:32").geometry(picture(0, (640, 10))).size == (32, 32)


def test_direct_squashes(picture):
    expected = picture(0, (50, 70)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(
        np.asarray(preprocessing("direct").geometry(picture(0, (50, 70)))), np.asarray(expected)
    )


def test_letterbox_centres_and_pads_with_the_mean():
    seen = np.asarray(preprocessing("letterbox:32").geometry(Image.new("RGB", (64, 32), "white")))
    padding = [102, 128, 153]  # 255 * (0.4, 0.5, 0.6)
    assert (seen[8:24] == 255).all()
    assert (seen[:8] == padding).all()
    assert (seen[24:] == padding).all()


@pytest.mark.parametrize(
    "profile", ["direct", "resize_crop:32:32", "shortest_edge:32", "letterbox:32"]
)
def test_a_picture_of_the_models_size_arrives_unchanged(picture, profile):
    assert np.array_equal(
        np.asarray(preprocessing(profile).geometry(picture(1))), np.asarray(picture(1))
    )


def test_normalised_equals_torchvision(picture):
    expected = normalize(to_tensor(picture(1)), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert torch.allclose(
        torch.from_numpy(preprocessing("direct").normalise(picture(1))), expected, atol=1e-6
    )


@pytest.mark.parametrize(
    ("setting", "subsampling"), [("75", "4:2:0"), ("75:444", "4:4:4"), ("60:422", "4:2:2")]
)
def test_jpeg_is_applied_to_the_sent_picture_before_the_resize(picture, setting, subsampling):
    image = picture(2, (48, 40))
    data = encoded(image, "JPEG", quality=int(setting[:2]), subsampling=subsampling)
    expected = Image.open(BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    ours = preprocessing("direct", jpeg=Jpeg.parse(setting)).geometry(image)
    assert np.array_equal(np.asarray(ours), np.asarray(expected))


@pytest.mark.parametrize("text", ["0", "101", "75:411", "x", ":444"])
def test_a_bad_jpeg_setting_is_a_configuration_error(text):
    with pytest.raises(ConfigurationError, match="bad JPEG setting"):
        Jpeg.parse(text)


@pytest.mark.parametrize(
    "text", ["direct", "resize_crop:256:224", "shortest_edge:224", "letterbox:224"]
)
def test_a_profile_is_printed_as_it_was_read(text):
    assert str(Profile.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "squash",
        "direct:3",
        "resize_crop",
        "resize_crop:224",
        "resize_crop:200:224",
        "letterbox:0",
        "letterbox:x",
    ],
)
def test_a_bad_profile_is_a_configuration_error(text):
    with pytest.raises(ConfigurationError, match="bad profile"):
        Profile.parse(text)


def test_a_profile_of_another_size_than_the_models_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="gives 24 pixels, but the model takes 32"):
        preprocessing("direct").configured(Profile.parse("resize_crop:32:24"), None)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_are_decoded_exactly(picture, kind, options):
    assert np.array_equal(
        np.asarray(decode(encoded(picture(1), kind, **options), MANY)), np.asarray(picture(1))
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_every_mode_becomes_rgb(picture, mode):
    image = picture(1).convert(mode)
    decoded = decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"), MANY)
    assert decoded.mode == "RGB"
    assert decoded.size == (32, 32)


def test_transparency_is_laid_over_white():
    decoded = decode(encoded(Image.new("RGBA", (2, 2), (100, 0, 200, 51))), MANY)
    assert decoded.getpixel((0, 0)) == (224, 204, 244)  # 0.2 of the colour, 0.8 of white


def test_a_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert decode(encoded(image, transparency=1), MANY).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_high_byte():
    image = Image.fromarray(np.array([[0x0000, 0x1234], [0x80FF, 0xFFFF]], np.uint16))
    decoded = np.asarray(decode(encoded(image), MANY))
    assert decoded[..., 0].tolist() == [[0x00, 0x12], [0x80, 0xFF]]


def test_the_exif_orientation_is_not_applied(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(picture(0, (40, 20)), "JPEG", exif=exif), MANY).size == (40, 20)


def test_an_animation_gives_its_first_frame():
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert decode(data, MANY).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(picture, kind):
    with pytest.raises(RequestError) as caught:
        decode(encoded(picture(1), kind), MANY)
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_truncated_picture_is_refused(picture, kind):
    data = encoded(picture(1), kind)
    with pytest.raises(RequestError) as caught:
        decode(data[: len(data) // 2], MANY)
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_is_refused_without_a_warning(bomb, side):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(RequestError) as caught:
            decode(bomb(side), MANY)
    assert caught.value.code == "payload_too_large"
    assert seen == []


def test_the_pixels_that_are_allowed_are_decoded_where_pillow_would_warn(monkeypatch, picture):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # it warns from here, and refuses from 1200
    assert decode(encoded(picture(1)), 1024).size == (32, 32)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_bytes_never_raise_anything_else(picture, seed):
    random = np.random.default_rng(seed)
    kind = ["PNG", "JPEG", "WEBP", "BMP", "GIF"][seed % 5]
    data = np.frombuffer(encoded(picture(seed), kind), np.uint8).copy()
    data[random.integers(4, len(data), 20)] = random.integers(0, 256, 20)
    with contextlib.suppress(RequestError):
        assert decode(data.tobytes(), MANY).mode == "RGB"
