"""Decoding of any image source to RGB uint8, and encoding of RGB uint8 to the bytes that are sent.

``open_image`` applies the EXIF orientation, lays transparent pixels over white, and scales 16-bit
gray to 8 bits instead of clipping it. Of an animation it uses the first frame; it then adds a note
to ``image.info["pgn_note"]`` and to the log. It fetches nothing from the network.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pgn_client.arrays import Pixels
from pgn_client.errors import ImageError, ShapeError

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Pixels

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
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
        text = os.fsdecode(os.fspath(source))
        # A file's name may hold control characters, which must not reach a terminal.
        return text if text.isprintable() else ascii(text)
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
        with _open_file(Path(source), name) as file:
            return _decode(file, name, max_pixels)
    raise ImageError(
        f"cannot read an image: got {name}, expected a path, bytes, PIL image or uint8 array"
    )


def _open_file(path: Path, name: str) -> IO[bytes]:
    try:
        # Opening a named pipe would wait for a writer. A missing file gets its own error below.
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a special file"
            raise ImageError(f"{name}: got {kind}, expected an image file")
        return path.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file; check the path") from None
    # A path with a NUL character raises a ValueError.
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        else:
            reason = _one_line(error)
        raise ImageError(
            f"{name}: cannot be read ({reason}); check the path and its permissions"
        ) from None


def _decode(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    if not file.read(1):
        raise ImageError(f"{name}: got an empty file, expected an image")

    file.seek(0)
    try:
        with _no_warnings():
            image = Image.open(file)
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

    with image:
        return _to_rgb(image, name, max_pixels)


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
            rgb = _flatten(ImageOps.exif_transpose(image))
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
    frames = getattr(image, "n_frames", 1)
    # Phones write MPO files, whose other "frames" are previews and depth maps.
    if frames == 1 or image.format == "MPO":
        return None
    # A PIL image from the caller may be at another frame.
    image.seek(0)
    return f"used the first of {frames} frames"


def _flatten(image: Image.Image) -> Image.Image:
    """Convert an image of any PIL mode to a new RGB image."""
    # Pillow opens 16-bit gray as I, I;16 or I;16B, and would clip it when it converts to RGB.
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    if image.mode == "F":
        raise ImageError(
            "got a floating-point image, expected integers; scale it to [0, 255] "
            "and convert to uint8"
        )

    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")  # A copy, if the image is RGB already.


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit gray to 8 bits: round(v / 257), since 65535 = 255 * 257."""
    values = np.asarray(image, dtype=np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            "got 32-bit gray values outside [0, 65535], expected at most 16 bits; scale them first"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


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
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
