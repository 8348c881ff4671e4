"""Decoding of any image source to RGB uint8, and encoding of RGB uint8 to the bytes that are sent.

``open_image`` applies the EXIF orientation, lays transparent pixels over white, and scales 16-bit
gray to 8 bits instead of clipping it. Of an animation it uses the first frame; it then adds a note
to ``image.info["pgn_note"]`` and to the log. It fetches nothing from the network.

Only the decoders in ``FORMATS`` read a file, whatever its name is. Metadata that cannot be read
(EXIF, text, color profile) is ignored.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pgn_client.arrays import Pixels
from pgn_client.errors import ImageError, ShapeError, printable, reason
from pgn_client.imaging.opening import open_regular

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Pixels

FORMATS = (
    # Pillow decodes AVIF since 11.3.
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
    *("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"),
)
"""Pillow's decoders that may read a file. Others would start programs (EPS) or are rarely tested.

That of JPEG also reads MPO, the JPEG files of phones with several images.
"""
IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Endings of file names that promise an image. What a file is, its content decides."""
HEAD = 32
"""Number of bytes at the start of a file from which ``format_of`` knows its format."""
MAX_PIXELS = 64_000_000
"""Default limit for the width times the height of an image.

It limits memory: an RGB image of this size takes 192 MB.
"""
ARRAY_SHAPES = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
NOTE = "pgn_note"
"""Key in a decoded image's ``info`` for a note to the user, such as which frame was used."""

_log = logging.getLogger("pgn_client")
# warnings.catch_warnings changes the state of the whole process, so only one thread may use it.
_quiet = threading.Lock()


class Codec(Protocol):
    """Encoder of RGB images into the bytes of a file format."""

    @property
    def name(self) -> str:
        """Short name of the file format, for example ``png``."""
        ...

    @property
    def media_type(self) -> str:
        """Value of the ``Content-Type`` header for the encoded bytes, for example ``image/png``."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether decoding the encoded bytes gives the same pixels."""
        ...

    def encode(self, image: Image.Image) -> bytes:
        """Return an RGB image as a file's bytes, without any metadata."""
        ...


@dataclass(frozen=True, slots=True)
class _PillowCodec:
    name: str
    media_type: str
    lossless: bool
    format: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    def encode(self, image: Image.Image) -> bytes:
        """Return an RGB image as a file's bytes, without any metadata."""
        if image.mode != "RGB":
            raise ShapeError(
                f"encoding as {self.name}: got a {image.mode} image, expected RGB; "
                "use open_image first"
            )

        # Pillow writes what is in info, such as an EXIF block, into the file.
        plain = image.copy()
        plain.info = {}

        buffer = io.BytesIO()
        try:
            plain.save(buffer, self.format, **self.options)
        except (OSError, ValueError) as error:
            raise ImageError(
                f"encoding as {self.name} failed: {_one_line(error)}; send a smaller image"
            ) from error
        return buffer.getvalue()


PNG: Codec = _PillowCodec("png", "image/png", True, "PNG")
WEBP_LOSSLESS: Codec = _PillowCodec(
    "webp", "image/webp", True, "WEBP", {"lossless": True, "exact": True}
)


def describe(source: object) -> str:
    """Return a short printable name of an image source (path, bytes, image or array)."""
    if isinstance(source, str | os.PathLike):
        # A file's name may hold control characters, which must not reach a terminal.
        return printable(os.fsdecode(os.fspath(source)))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if isinstance(source, Image.Image):
        return f"<{source.mode} image {source.width}x{source.height}>"
    if isinstance(source, np.ndarray):
        return f"<{source.dtype} array {source.shape}>"
    return f"<{type(source).__name__}>"


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image file, its bytes, a PIL image or an array as an RGB image, uint8 in [0, 255].

    Args:
        source: Path, file content, PIL image, or uint8 array of shape (H, W), (H, W, 1), (H, W, 3)
            or (H, W, 4).
        max_pixels: Limit for the width times the height; larger images are refused by their header,
            before they are decoded.

    Returns:
        A new image of at least 1x1 pixels. Its ``info`` is empty, or has one sentence under
        ``pgn_note``.

    Memory at the peak is at most 10 bytes per pixel (4 as decoded, 3 as RGB, 3 turned upright), 640
    MB at the default limit, beside the file's bytes and the decoder's own buffers. 3 remain.

    Raises:
        ImageError: The source is missing, unreadable, not an image, truncated, or too large.
        ShapeError: The array is not uint8, has another shape, or has no pixels.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), name, max_pixels)
    if isinstance(source, Image.Image):
        return _to_rgb(source, name, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), name, max_pixels)
    if isinstance(source, str | os.PathLike):
        with _open_file(source, name) as file:
            try:
                return _decode(file, name, max_pixels)
            # A failing disk, or a file of the system whose content is no data.
            except OSError as error:
                raise ImageError(
                    f"{name}: cannot be read ({reason(error)}); check the disk"
                ) from error
    raise ImageError(
        f"cannot read an image: got {name}, expected a path, bytes, PIL image or uint8 array"
    )


def format_of(head: bytes) -> str | None:
    """Return the format of an image file by its first ``HEAD`` bytes; ``None`` for other files.

    Returns:
        A name in ``FORMATS``.
    """
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis") and "AVIF" in FORMATS:
        return "AVIF"
    # Two letters could also begin a text, so the size of the second header is compared too.
    if head.startswith(b"BM") and head[14:18] in _BMP_HEADERS:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in (b"\n", b"\r"):
        return "PPM"
    return None


_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}
_BMP_HEADERS = frozenset(struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124))


def portions(
    sources: Iterable[ImageSource], *, images: int, pixels: int = MAX_PIXELS
) -> Iterator[list[ImageSource]]:
    """Divide images into portions that may be held decoded at the same time, in order.

    Only the headers of files are read. A source that cannot be read counts as no pixels.

    Args:
        sources: Images.
        images: Largest number of images in a portion.
        pixels: Largest sum of width times height in a portion; a larger image is alone.

    Yields:
        Lists of at least one image.
    """
    portion: list[ImageSource] = []
    total = 0
    for source in sources:
        area = _area(source)
        if portion and (len(portion) == images or total + area > pixels):
            yield portion
            portion = []
            total = 0
        portion.append(source)
        total += area
    if portion:
        yield portion


def _area(source: ImageSource) -> int:
    """Return an image's width times height by its header; 0 if it cannot be read."""
    if isinstance(source, np.ndarray):
        return int(np.prod(source.shape[:2]))
    if isinstance(source, Image.Image):
        return source.width * source.height
    try:
        if isinstance(source, str | os.PathLike):
            file = _open_file(source, "")
        else:
            file = io.BytesIO(source)
        with file, _identified(file, "", MAX_PIXELS) as image:
            return image.width * image.height
    # The reader of the portion reports what is wrong.
    except (ImageError, OSError, TypeError):
        return 0


def _open_file(path: str | os.PathLike[str], name: str) -> IO[bytes]:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: got a folder, expected an image file") from None
    # A path with a NUL character raises a ValueError.
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{name}: cannot be read ({reason(error)}); check the path and its permissions"
        ) from None


def _decode(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    try:
        with _identified(file, name, max_pixels) as image:
            return _to_rgb(image, name, max_pixels)
    except ImageError:
        # Pillow refuses a PNG for its text or color profile; the pixels may be good.
        plain = _without_metadata(file)
        if plain is None:
            raise
    with _identified(plain, name, max_pixels) as image:
        return _to_rgb(image, name, max_pixels)


def _identified(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Return an image of which only the header is read.

    Raises:
        ImageError: The file is not an image, broken or far too large.
    """
    file.seek(0)
    if not file.read(1):
        raise ImageError(f"{name}: got an empty file, expected an image")

    file.seek(0)
    try:
        with _no_warnings():
            return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(
            f"{name}: not an image in any known format (PNG, JPEG, WebP, GIF, BMP, TIFF, ...)"
        ) from None
    # Pillow refuses images above a limit of its own, before `_to_rgb` compares with max_pixels.
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name}: the image is too large, expected at most {max_pixels:,} pixels"
        ) from None
    # Pillow's decoders raise many types on a damaged file: struct.error, SyntaxError, EOFError, …
    except Exception as error:
        raise ImageError(f"{name}: broken image ({_one_line(error)})") from error


def _without_metadata(file: IO[bytes]) -> io.BytesIO | None:
    """Return a PNG file with nothing but its first frame and its orientation.

    Returns:
        The content of a PNG file; ``None`` for other formats.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    signature = file.read(8)
    if format_of(signature) != "PNG":
        return None

    plain = io.BytesIO()
    plain.write(signature)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in (*_PIXEL_CHUNKS, b"eXIf"):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        # The length may be a lie of gigabytes, which read() would allocate.
        body = file.read(min(length + 4, size - file.tell()))
        intact = zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:], "big")
        if kind in _PIXEL_CHUNKS or intact:
            plain.write(head + body)
    return plain


_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
"""Chunks of a PNG file that its pixels depend on."""


def is_verbatim(data: bytes, image: Image.Image) -> bool:
    """Whether a file's own pixels are exactly those of an image that ``open_image`` made of it.

    An image decoder that knows neither EXIF nor transparency then returns the same pixels.
    """
    try:
        with _identified(io.BytesIO(data), "", MAX_PIXELS) as file:
            unchanged = (
                file.mode == "RGB"
                and file.size == image.size
                and not getattr(file, "is_animated", False)
                and not file.has_transparency_data
            )
            if not unchanged:
                return False
            # A PNG may have its EXIF block behind the pixels.
            file.load()
            # The pixels too: the file may have been replaced meanwhile.
            return _turn(file) is None and np.array_equal(np.asarray(file), np.asarray(image))
    # Pillow's decoders raise many types on a damaged file.
    except Exception:
        return False


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Return a PIL image as RGB, with its orientation applied, after checking its size."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{name}: the image is too large: got {image.width}x{image.height}, "
            f"expected at most {max_pixels:,} pixels; make it smaller"
        )
    if image.width * image.height == 0:
        raise ShapeError(f"{name}: got an image without pixels, expected at least 1x1")

    try:
        with _no_warnings():
            note = _animation_note(image)
            # A PNG may have its EXIF block behind the pixels.
            image.load()
            turn = _turn(image)
            rgb = _flatten(image)
            if turn is not None:
                rgb = rgb.transpose(turn)
    # These are from `_flatten`: the image is intact, and the message says what to change.
    except ImageError:
        raise
    # Pillow decodes the pixels only here; as above, its decoders raise many types.
    except Exception as error:
        raise ImageError(f"{name}: broken or truncated image ({_one_line(error)})") from error

    rgb.info = {NOTE: note} if note else {}
    if note:
        _log.warning("%s: %s", name, note)
    return rgb


def _animation_note(image: Image.Image) -> str | None:
    """Go to the first frame of an image; return a note to the user if it has more."""
    # Not n_frames: to count the pages of a TIFF or GIF, Pillow walks through all of them. And
    # phones write MPO files, whose other "frames" are previews and depth maps.
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return None
    # A PIL image from the caller may be at another frame.
    image.seek(0)
    return "used the first of several frames"


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return the turn that puts an image upright by its metadata; ``None`` for no turn."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # Broken metadata raises many types: SyntaxError, struct.error, KeyError, ValueError, …
    except Exception:
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → turn that puts the image upright."""


def _flatten(image: Image.Image) -> Image.Image:
    """Convert an image of any PIL mode to a new RGB image."""
    if image.mode == "F":
        raise ImageError(
            "got a floating-point image, expected integers; scale it to [0, 255] "
            "and convert to uint8"
        )
    # Pillow opens 16-bit gray as I, I;16 or I;16B, and would clip it when it converts to RGB.
    if image.mode.startswith("I"):
        return _in_strips(image, _from_16_bit)
    if image.has_transparency_data:
        return _in_strips(image, _over_white)
    return image.convert("RGB")  # A copy, if the image is RGB already.


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB a few rows at a time, which limits the memory for intermediates."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(convert(image.crop(box)), box)
    return rgb


_STRIP = 1_000_000
"""Number of pixels that ``_in_strips`` converts at a time."""


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits: round(v / 257), since 65535 = 255 * 257."""
    values = np.asarray(image, dtype=np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            "got 32-bit gray values outside [0, 65535], expected at most 16 bits; scale them first"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not fits or array.size == 0:
        raise ShapeError(
            f"image array: got shape {array.shape}, expected {ARRAY_SHAPES} with at least one pixel"
        )
    if array.dtype != np.uint8:
        raise ShapeError(
            f"image array: got {array.dtype}, expected uint8 in [0, 255]; "
            "round and convert it, for example (x * 255).round().astype('uint8') for x in [0, 1]"
        )

    is_gray = array.ndim == 3 and array.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if is_gray else array))


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings about large images and broken EXIF data.

    Where such a problem matters, the caller raises an ``ImageError``.
    """
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _one_line(error: BaseException) -> str:
    text = printable(" ".join(str(error).split()))
    return text[:200] or type(error).__name__
