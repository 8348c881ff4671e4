"""Rule 11: only allow-listed decoders see a file; first frame only; bounded memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, TiffImagePlugin

from pgn_client.errors import ImageError
from pgn_client.imaging.codecs import FORMATS, HEAD, format_of, open_image, portions
from pgn_client.segmentation.masks import load_masked
from tests.rules.faulty_folders import EPS, encoded, noise, put

OTHERS = ("DDS", "ICO", "MSP", "PCX", "SGI", "SPIDER", "TGA", "XBM")


def test_no_page_description_reaches_its_interpreter(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    put(tmp_path / "x.png", EPS)
    for source in (tmp_path / "x.png", EPS):
        with pytest.raises(ImageError, match="not an image in any known format"):
            open_image(source)
    assert not started


@pytest.mark.parametrize("name", OTHERS)
def test_a_decoder_that_is_not_listed_is_not_used(name):
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(name, "RGB")
    with pytest.raises(ImageError, match="not an image in any known format"):
        open_image(encoded(noise(1).convert(mode), name))


@pytest.mark.parametrize("name", FORMATS)
def test_a_listed_format_is_known_by_its_first_bytes_and_decoded(name):
    if name == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow writes no AVIF")
    data = encoded(noise(1), name)
    assert format_of(data[:HEAD]) == name
    assert open_image(data).size == noise(1).size


@pytest.mark.parametrize(
    "head", [b"", b"BM", b"BMW is a car, not a bitmap image", b"P6 is a format", EPS[:HEAD]]
)
def test_a_text_is_no_image(head):
    assert format_of(head) is None


def tiff(pages: int) -> bytes:
    """A TIFF whose pages all share one row of pixels."""
    tags = [(256, 4, 1), (257, 4, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, 1), (279, 4, 1)]
    size = 2 + 12 * len(tags) + 4
    data = io.BytesIO()
    data.write(b"II*\0" + struct.pack("<I", 12) + b"\x07\0\0\0")
    for page in range(pages):
        data.write(struct.pack("<H", len(tags)))
        for tag, kind, value in tags:
            data.write(struct.pack("<HHII", tag, kind, 1, value))
        last = page == pages - 1
        data.write(struct.pack("<I", 0 if last else 12 + size * (page + 1)))
    return data.getvalue()


def test_pages_are_not_counted(monkeypatch):
    sought = []
    original = TiffImagePlugin.TiffImageFile._seek

    def seek(self, frame):
        sought.append(frame)
        return original(self, frame)

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "_seek", seek)
    opened = open_image(tiff(2000))
    assert opened.info == {"pgn_note": "used the first of several frames"}
    assert set(sought) <= {0, 1}


PEAK = """
    import io
    from pathlib import Path
    from PIL import Image
    from pgn_client.imaging.codecs import open_image

    def kilobytes(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new({mode!r}, (4000, 4000), {color!r}).save(buffer, "PNG", exif=exif, compress_level=1)
    # What the decoders load is not counted, nor what the encoder needed.
    open_image(buffer.getvalue())
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    open_image(buffer.getvalue())
    print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("mode", "color"), [("RGBA", (1, 2, 3, 4)), ("I;16", 300), ("RGB", (1, 2, 3)), ("P", 0)]
)
def test_an_image_takes_at_most_ten_bytes_per_pixel(mode, color):
    code = textwrap.dedent(PEAK.format(mode=mode, color=color))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = 4000 * 4000
    # 32 MB for the strips.
    assert int(done.stdout) * 1024 < 10 * pixels + 32e6


def test_portions_hold_a_bounded_number_of_pixels(tmp_path):
    for i in range(8):
        Image.new("L", (1000, 1000)).save(tmp_path / f"{i}.png")
    paths = [*sorted(tmp_path.glob("*.png")), tmp_path / "missing.png"]
    divided = list(portions(paths, images=5, pixels=3_000_000))
    assert [len(portion) for portion in divided] == [3, 3, 3]
    assert [path for portion in divided for path in portion] == paths
    assert [len(portion) for portion in portions(paths, images=4)] == [4, 4, 1]
    assert [len(portion) for portion in portions(paths, images=4, pixels=1)] == [1] * 9


def test_a_mask_is_read_by_the_decoder_of_png_alone(tmp_path):
    put(tmp_path / "train" / "images" / "a.png", 1)
    put(tmp_path / "train" / "masks" / "a.png", EPS)
    (tmp_path / "classes.json").write_text('["background", "cat"]')
    with pytest.raises(ImageError, match=r"mask .*expected a PNG"):
        load_masked(tmp_path / "train")


def test_a_16_bit_image_in_strips_is_the_same(monkeypatch):
    values = np.random.default_rng(1).integers(0, 65536, (50, 31)).astype(np.uint16)
    data = encoded(Image.fromarray(values))
    whole = np.asarray(open_image(data))
    monkeypatch.setattr("pgn_client.imaging.codecs._STRIP", 100)
    assert np.array_equal(np.asarray(open_image(data)), whole)
    assert np.array_equal(whole[:, :, 0], (values.astype(int) + 128) // 257)
