"""Rule 10: broken metadata does not condemn good pixels."""

from __future__ import annotations

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, features

from pgn_client.errors import ImageError
from pgn_client.imaging.codecs import open_image
from tests.rules.faulty_folders import encoded, noise

JUNK = b"Exif\0\0\xff\xff no TIFF"
LONG = zlib.compress(bytes(80_000_000))
IMAGE = noise(1, (40, 30))
HEADER = 33
"""Number of bytes before the second chunk of a PNG."""


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", crc)


def png(extra: bytes, *, at: int = HEADER) -> bytes:
    data = encoded(IMAGE)
    return data[:at] + extra + data[at:]


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
LOSSLESS = {
    "webp, exif": encoded(IMAGE, "WEBP", lossless=True, exact=True, exif=JUNK),
    "webp, profile": encoded(IMAGE, "WEBP", lossless=True, exact=True, icc_profile=b"junk"),
    "tiff, profile": encoded(IMAGE, "TIFF", icc_profile=b"junk"),
    "png, exif": png(chunk(b"eXIf", JUNK)),
    "png, exif in text": png(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 20\nzz")),
    "png, long text": png(chunk(b"zTXt", b"k\0\0" + LONG)),
    "png, long text at the end": png(chunk(b"zTXt", b"k\0\0" + LONG), at=-12),
    "png, long international text": png(chunk(b"iTXt", b"k\0\1\0en\0\0" + LONG)),
    "png, profile": png(chunk(b"iCCP", b"icc\0\0no zlib")),
    "png, profile of an unknown method": png(chunk(b"iCCP", b"icc\0\7no zlib")),
    "png, long profile": png(chunk(b"iCCP", b"icc\0\0" + LONG)),
    "png, text with a wrong checksum": png(chunk(b"tEXt", b"a\0bc", crc=0)),
    "png, cut gamma": png(chunk(b"gAMA", b"\0")),
    "png, cut resolution": png(chunk(b"pHYs", b"\0")),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_pixels_are_read(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(open_image(LOSSLESS[name])), np.asarray(IMAGE))


def test_the_pixels_of_a_jpeg_are_read():
    plain = np.asarray(open_image(encoded(IMAGE, "JPEG")))
    for options in ({"exif": JUNK}, {"icc_profile": b"junk"}):
        assert np.array_equal(np.asarray(open_image(encoded(IMAGE, "JPEG", **options))), plain)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_the_pixels_of_an_avif_are_read():
    data = bytearray(encoded(IMAGE, "AVIF", exif=ORIENTED.tobytes()))
    start = bytes(data).find(b"II*\0") if b"II*\0" in data else bytes(data).find(b"MM\0*")
    data[start : start + 4] = b"junk"
    assert sorted(open_image(bytes(data)).size) == [30, 40]


def test_a_sound_orientation_is_applied_beside_a_broken_text():
    data = encoded(IMAGE, exif=ORIENTED)
    broken = data[:HEADER] + chunk(b"zTXt", b"k\0\0" + LONG) + data[HEADER:]
    assert np.array_equal(np.asarray(open_image(broken)), np.asarray(open_image(data)))
    assert open_image(broken).size == (30, 40)


def test_transparency_survives_a_broken_text():
    clear = IMAGE.convert("RGBA")
    clear.putalpha(0)
    data = encoded(clear)
    broken = data[:HEADER] + chunk(b"zTXt", b"k\0\0" + LONG) + data[HEADER:]
    assert (np.asarray(open_image(broken)) == 255).all()


def test_broken_pixels_are_still_an_error():
    data = encoded(IMAGE)
    with pytest.raises(ImageError, match="broken or truncated"):
        open_image(data[:-200])
