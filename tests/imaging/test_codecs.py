from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pgn_client.errors import ImageError, ShapeError
from pgn_client.imaging.codecs import NOTE, PNG, WEBP_LOSSLESS, describe, open_image
from tests.wire.fakes import file_bytes, picture

arrays = hnp.arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3)))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("codec", [PNG, WEBP_LOSSLESS], ids=lambda codec: codec.name)
@settings(max_examples=40)
@given(array=arrays)
def test_a_lossless_codec_gives_back_every_pixel(codec, array):
    assert np.array_equal(pixels(open_image(codec.encode(open_image(array)))), array)


@pytest.mark.parametrize("codec", [PNG, WEBP_LOSSLESS], ids=lambda codec: codec.name)
def test_encoding_drops_metadata(codec):
    image = picture()
    image.info = {"exif": b"Exif\0\0secret place", "icc_profile": b"x" * 128, "comment": "secret"}
    data = codec.encode(image)
    assert b"secret" not in data
    assert b"xxxx" not in data


@pytest.mark.parametrize(
    "make", [str, Path, lambda p: Path(p).read_bytes(), lambda p: bytearray(Path(p).read_bytes())]
)
def test_path_and_bytes_give_the_same_picture(make, tmp_path):
    path = tmp_path / "ä image.png"
    path.write_bytes(file_bytes(picture(3)))
    assert np.array_equal(pixels(open_image(make(str(path)))), np.asarray(picture(3)))


def test_a_pil_picture_is_not_changed():
    image = picture().convert("RGBA")
    opened = open_image(image)
    assert image.mode == "RGBA"
    assert opened is not image
    assert opened.mode == "RGB"


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image = Image.new("RGB", (40, 20))
    assert open_image(file_bytes(image, "JPEG", exif=exif)).size == (20, 40)


def test_a_broken_exif_block_is_no_reason_to_fail_or_warn():
    data = file_bytes(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(data).size == (4, 4)


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert pixels(open_image(file_bytes(Image.fromarray(grey))))[0, :, 0].tolist() == [
        0,
        1,
        128,
        255,
    ]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    clear = Image.new(mode, (2, 2), 0)
    assert (pixels(open_image(file_bytes(clear))) == 255).all()


def test_a_palette_with_transparent_entries_is_laid_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    data = file_bytes(image, transparency=b"\x00\xff")
    assert pixels(open_image(data)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "LAB", "P"])
def test_every_pil_mode_becomes_rgb(mode):
    assert (
        open_image(Image.new("RGB", (3, 2)).convert("L" if mode in ("1", "LAB") else mode)).mode
        == "RGB"
    )


def test_a_cmyk_jpeg_keeps_its_colours():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    r, g, b = pixels(open_image(file_bytes(red, "JPEG", quality=95)))[4, 4]
    assert r > 230
    assert max(g, b) < 25


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_used_and_said(format, caplog):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue", "lime")]
    data = file_bytes(frames[0], format, save_all=True, append_images=frames[1:])
    opened = open_image(data)
    assert pixels(opened)[0, 0, 0] > 200
    assert opened.info == {NOTE: "used the first of several frames"}
    assert "first of several frames" in caplog.text


def test_a_still_picture_has_no_note():
    assert open_image(file_bytes(picture())).info == {}


def test_one_pixel_is_a_picture():
    assert open_image(np.zeros((1, 1, 3), np.uint8)).size == (1, 1)


def test_grey_and_rgba_arrays_are_accepted():
    assert pixels(open_image(np.full((2, 3), 7, np.uint8))).tolist() == [[[7, 7, 7]] * 3] * 2
    assert (pixels(open_image(np.zeros((2, 3, 4), np.uint8))) == 255).all()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 3), np.float32), "round and convert"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((3, 8, 8), np.uint8), "(H, W, 3)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "(1, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 0), np.uint8), "at least one pixel"),
        (np.uint8(3) * np.ones(4, np.uint8), "(4,)"),
    ],
)
def test_an_array_that_is_no_picture_is_a_shape_error(array, says):
    with pytest.raises(ShapeError) as caught:
        open_image(array)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pil_picture_without_pixels_is_a_shape_error():
    with pytest.raises(ShapeError):
        open_image(Image.new("RGB", (0, 4)))


BROKEN = {
    "empty.png": b"",
    "text.png": b"hello, this is not a picture\n",
    "cut.png": file_bytes(picture(size=64))[:-2000],
    "cut.jpg": file_bytes(picture(size=64), "JPEG")[:400],
    "header.png": b"\x89PNG\r\n\x1a\n",
    "nul.png": bytes(4096),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)
    assert "0x" not in str(caught.value)


@settings(max_examples=150)
@given(
    data=st.binary(max_size=400),
    start=st.sampled_from([b"", *BROKEN.values(), b"GIF89a", b"RIFF\0\0\0\0WEBPVP8L"]),
)
def test_no_bytes_raise_anything_but_image_errors(data, start):
    with contextlib.suppress(ImageError, ShapeError):
        open_image(start + data)


@pytest.mark.parametrize("path", ["nowhere/x.png", "bad\0name.png", "n" * 3000 + ".png", "."])
def test_a_path_without_a_picture_is_an_image_error(path):
    with pytest.raises(ImageError):
        open_image(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_an_image_error(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(file_bytes(picture()))
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        open_image(path)


@pytest.mark.parametrize("source", [None, 3, [1, 2], object()])
def test_something_else_is_an_image_error_that_says_what_is_expected(source):
    with pytest.raises(ImageError, match="expected a path, bytes"):
        open_image(source)


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8001, 10_000, 12_000, 20_000, 60_000])
def test_a_huge_picture_is_refused_from_its_header(side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="too large"):
            open_image(bomb(side, side))


def test_reading_a_picture_does_not_use_its_end_before_the_size_is_known():
    with pytest.raises(ImageError, match="too large"):
        open_image(io.BytesIO(bomb(20_000, 20_000)).getvalue()[:60])


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("a/b.png", "a/b.png"),
        (b"12345", "<5 bytes>"),
        (Image.new("L", (3, 2)), "<L image 3x2>"),
        (None, "<NoneType>"),
    ],
)
def test_describe_is_short(source, shown):
    assert describe(source) == shown


def test_describe_is_printable():
    assert describe("a\nb\x1b[31m.png").isprintable()


def test_an_array_with_one_channel_is_grey():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert np.array_equal(pixels(open_image(grey)), np.repeat(grey, 3, axis=2))
