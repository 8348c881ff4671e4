"""Damaged image files: each becomes a prediction or an ``ImageError``, in bounded memory."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from pgn_client import AdaptedClient, ImageFailure, Prediction
from pgn_client.errors import ImageError, ShapeError
from pgn_client.imaging.codecs import open_image
from tests.campaign.cases import MIB, Fault, checked, what
from tests.campaign.mutate import INTEGERS, mutated

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
REFUSED = (ImageError, ShapeError)
"""What ``open_image`` raises; ``ShapeError`` only for an image without pixels."""
ANSWER = json.dumps(
    {"output": "probs", "predictions": [{"labels": ["a", "b"], "scores": [0.75, 0.25]}]}
)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(mode: str, size: tuple[int, int] = (24, 18)) -> Image.Image:
    """Return an image of this mode with fixed random pixels."""
    width, height = size
    rng = np.random.default_rng(width)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), dtype=np.float32))
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def bases() -> list[tuple[str, bytes]]:
    """Return whole files: every format that Pillow writes, in every mode that it takes."""
    Image.init()
    found = []
    for format in sorted(Image.SAVE):
        for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "F"):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append((format, saved(noise(mode), format)))
    rgb = noise("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    profile = bytes(range(256)) * 2
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        for options in ({"exif": exif}, {"icc_profile": profile}):
            with contextlib.suppress(Exception):
                found.append((format, saved(rgb, format, **options)))
    frames = [noise("RGB").rotate(10 * i) for i in range(5)]
    for format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        with contextlib.suppress(Exception):
            more = saved(frames[0], format, save_all=True, append_images=frames[1:])
            found.append((format, more))
    found.append(("JPEG", saved(rgb, "JPEG", progressive=True)))
    found.append(("WEBP", saved(rgb, "WEBP", lossless=True)))
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        found.append(("TIFF", saved(rgb, "TIFF", compression=compression)))
    return found


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# ---- Files with good pixels and broken metadata, which must be predictions.


def png_with(*chunks: bytes) -> bytes:
    """Return a good PNG with further chunks behind its header."""
    data = saved(noise("RGB"), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png_with_junk_exif(rng: random.Random) -> bytes:
    start = rng.choice((b"", b"Exif\0\0", b"MM\0*\0\0\0\x08", b"II*\0\xff\xff\xff\x7f"))
    return png_with(png_chunk(b"eXIf", start + rng.randbytes(rng.randrange(80))))


def png_with_a_broken_profile(rng: random.Random) -> bytes:
    body = rng.choice((rng.randbytes(40), zlib.compress(rng.randbytes(99))[:-3], b""))
    return png_with(png_chunk(b"iCCP", b"icc\0" + rng.choice((b"\0", b"\x05")) + body))


def png_with_much_text(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        text = zlib.compress(b"x" * rng.choice((2, 70)) * MIB)
        return png_with(png_chunk(b"zTXt", b"Comment\0\0" + text))
    size = rng.choice((1, 65)) * MIB // 8
    return png_with(*[png_chunk(b"tEXt", b"Comment\0" + b"x" * size)] * 9)


def png_with_odd_chunks(rng: random.Random) -> bytes:
    kinds = (b"tEXt", b"iTXt", b"tIME", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"xyZw", b"zTXt")
    return png_with(*(png_chunk(k, rng.randbytes(rng.randrange(1, 30))) for k in kinds))


def jpeg_with_junk_segments(rng: random.Random) -> bytes:
    data = saved(noise("RGB"), "JPEG")
    start = rng.choice((b"Exif\0\0", b"ICC_PROFILE\0\x01\x02", b"Photoshop 3.0\0", b"MPF\0", b"x"))
    body = start + rng.randbytes(rng.randrange(60))
    marker = rng.choice((0xE1, 0xE2, 0xED, 0xFE))
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def webp_with_junk(rng: random.Random) -> bytes:
    options = {rng.choice(("exif", "icc_profile", "xmp")): rng.randbytes(rng.randrange(1, 70))}
    return saved(noise("RGB"), "WEBP", **options)


def many_frames(rng: random.Random) -> bytes:
    small = noise("L", (4, 4))
    frames = [small.rotate(90 * (i % 4)) for i in range(rng.choice((50, 500)))]
    format = rng.choice(("GIF", "TIFF", "WEBP", "PNG"))
    return saved(frames[0], format, save_all=True, append_images=frames[1:])


GOOD: tuple[Callable[[random.Random], bytes], ...] = (
    png_with_junk_exif,
    png_with_a_broken_profile,
    png_with_much_text,
    png_with_odd_chunks,
    jpeg_with_junk_segments,
    webp_with_junk,
    many_frames,
)

# ---- Files whose headers promise another size.


def png_of_another_size(rng: random.Random) -> bytes:
    data = saved(noise("RGB"), "PNG")
    sides = [rng.choice((*INTEGERS, 7999, 8000, 20000, 100_000)) for _ in range(2)]
    header = struct.pack(">II", *sides) + bytes([rng.choice((1, 8, 16)), rng.randrange(7), 0, 0])
    rest = png_chunk(b"IHDR", header + bytes([rng.randrange(2)]))
    return data[:8] + rest + data[33:]


def apng_of_many_frames(rng: random.Random) -> bytes:
    data = saved(noise("RGB"), "PNG")
    count = struct.pack(">II", rng.choice(INTEGERS), rng.choice(INTEGERS))
    return data[:33] + png_chunk(b"acTL", count) + data[33:]


def jpeg_of_another_size(rng: random.Random) -> bytes:
    data = bytearray(saved(noise("RGB"), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", *(rng.choice((0, 1, 8000, 65535)) for _ in "12"))
    return bytes(data)


def gif_of_another_size(rng: random.Random) -> bytes:
    data = bytearray(saved(noise("P"), "GIF"))
    data[6:10] = struct.pack("<HH", *(rng.choice((0, 1, 8000, 65535)) for _ in "12"))
    return bytes(data)


def bmp_of_another_size(rng: random.Random) -> bytes:
    data = bytearray(saved(noise("RGB"), "BMP"))
    sides = [rng.choice((0, 1, -1, 8000, 60_000, 2**31 - 1, -(2**31))) for _ in "12"]
    data[18:26] = struct.pack("<ii", *sides)
    return bytes(data)


def tiff_of_another_size(rng: random.Random) -> bytes:
    data = bytearray(saved(noise("RGB"), "TIFF"))
    start = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[start : start + 2])[0]
    entry = start + 2 + 12 * rng.randrange(count)
    field, value = rng.choice(((4, 4), (8, 4), (2, 2), (0, 2)))
    number = rng.choice(INTEGERS) & (256**value - 1)
    data[entry + field : entry + field + value] = number.to_bytes(value, "little")
    return bytes(data)


def png_that_is_large(rng: random.Random) -> bytes:
    """Return a small file of up to 60 million pixels of one color."""
    side = rng.choice((1000, 4000, 7700))
    mode = rng.choice(("1", "P", "L", "RGBA"))
    return saved(Image.new(mode, (side, side)), "PNG", compress_level=1)


SIZES: tuple[Callable[[random.Random], bytes], ...] = (
    png_of_another_size,
    apng_of_many_frames,
    jpeg_of_another_size,
    gif_of_another_size,
    bmp_of_another_size,
    tiff_of_another_size,
)


def damaged(files: list[tuple[str, bytes]], rng: random.Random, *, large: bool = True) -> bytes:
    """Return the content of a damaged file."""
    way = rng.random()
    if way < 0.72:
        return mutated(rng.choice(files)[1], rng, [data for _, data in files])
    if way < 0.999 or not large:
        return rng.choice(SIZES)(rng)
    return png_that_is_large(rng)


class Images:
    """One file: opened from its path and from its bytes, and classified.

    The client must agree with ``open_image``. Files of ``GOOD`` must be predictions. No decoder
    starts a program.
    """

    name = "images"
    workers = 1
    memory = 1536 * MIB
    """An image of 64 million pixels takes 256 MB as RGBA; transparency needs three of these."""
    hang = 300

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        self.files = bases()
        self.started: list[str] = []
        sys.addaudithook(self._watch)
        transport = httpx.MockTransport(
            lambda _: httpx.Response(200, text=ANSWER, headers={"content-type": "application/json"})
        )
        url = "http://127.0.0.1:9"
        with AdaptedClient(url, None, protocol="pgn", transport=transport) as self.client:
            yield

    def _watch(self, event: str, args: tuple[object, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.posix_spawn"):
            self.started.append(str(args[0]))

    def play(self, rng: random.Random, index: int) -> str:
        kind = ""
        if rng.random() < 0.12:
            make = rng.choice(GOOD)
            kind = make.__name__
            data = make(rng)
        else:
            data = damaged(self.files, rng)
        path = self.folder / f"{index}{rng.choice((*SUFFIXES, '', '.txt', '.avif', '.PNG'))}"
        path.write_bytes(data)
        try:
            self._opened(data, kind)
            outcome = self._opened(path, kind)
            (result,) = self.client.classify_many([path])
            if isinstance(result, Prediction) != outcome.startswith("image"):
                raise Fault(f"open_image: {outcome}, classify_many: {result!r}"[:400])
            if isinstance(result, ImageFailure):
                checked(result.error, REFUSED)
            return outcome
        finally:
            path.unlink()
            if self.started:
                program = self.started.pop()
                self.started.clear()
                raise Fault(f"decoding started the program {program}")

    def _opened(self, source: Path | bytes, kind: str) -> str:
        try:
            image = open_image(source)
        except Exception as error:
            outcome = checked(error, REFUSED)
            if kind:
                raise Fault(f"good pixels, refused ({kind}): {what(error)}") from error
            return outcome
        if image.mode != "RGB" or min(image.size) < 1:
            raise Fault(f"got a {image.mode} image of {image.size}")
        return "image (broken metadata)" if kind else "image"
