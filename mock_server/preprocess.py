"""Decoding and preprocessing of an image on the server, before the model.

Decoding is strict. The server accepts only PNG, JPEG, WebP, BMP and GIF (first frame). It checks
the size in the header before it decodes a pixel, and it rejects truncated files. It does *not*
apply the EXIF orientation (timm's own servers do not; clients re-encode without it). Transparency
is composed over white, 16-bit gray keeps its high byte, and CMYK and palettes become RGB. ``Image``
means `PIL.Image.Image` everywhere.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mock_server.errors import ConfigurationError, RequestError

Kind = Literal["direct", "resize_crop", "shortest_edge", "letterbox"]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
LONGEST_SHAPE = 4
"""Largest ratio of longer to shorter edge that `shortest_edge` passes to the model: it bounds the
number of tokens, and so the time of a forward pass.
"""
LONGEST_CROPPED = 64
"""Largest ratio of longer to shorter edge that `resize_crop` resizes before its crop: it bounds the
memory of the resized image.
"""
MOST_PIXELS = 2 * (1024**3 // 12)
"""Largest image in pixels; Pillow rejects larger images whatever the settings allow: it raises
`DecompressionBombError` above twice its ``MAX_IMAGE_PIXELS``, which is 1024**3 // 4 // 3.
"""
SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}
"""Names of the chroma subsamplings, with Pillow's numbers for them."""

# `_open` changes the warning filters, which belong to the whole process: one thread at a time.
_HEADER_LOCK = threading.Lock()


@dataclass(frozen=True)
class Profile:
    """Resize and crop that turn an image of any size into the model's input.

    - ``direct`` squashes the image to the input size.
    - ``resize_crop:R:C`` resizes the shorter edge to R and cuts out the central C x C at offset
      ``round((side - C) / 2)``, like torchvision.
    - ``shortest_edge:R`` resizes the shorter edge to R, without a crop.
    - ``letterbox:R`` fits the image into R x R and pads it with the mean color, half on each side.

    Attributes:
        kind: Name of the profile.
        resize: R in pixels, 0 for ``direct``.
        crop: C in pixels, 0 unless ``resize_crop``.
    """

    kind: Kind = "direct"
    resize: int = 0
    crop: int = 0

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Parse ``direct``, ``resize_crop:R:C``, ``shortest_edge:R`` or ``letterbox:R``.

        Args:
            text: Text of the option.

        Raises:
            ConfigurationError: The text has another form, or R < C.
        """
        counts = {"direct": 0, "resize_crop": 2, "shortest_edge": 1, "letterbox": 1}
        error = ConfigurationError(
            f"bad profile {text!r}: expected direct, resize_crop:R:C with R >= C, "
            "shortest_edge:R or letterbox:R"
        )
        kind, *rest = text.split(":")
        if kind not in counts or len(rest) != counts[kind]:
            raise error
        if not all(part.isdecimal() for part in rest):
            raise error

        numbers = [int(part) for part in rest]
        if 0 in numbers:
            raise error
        if kind == "resize_crop" and numbers[0] < numbers[1]:
            raise error
        return cls(cast(Kind, kind), *numbers)

    def __str__(self) -> str:
        return ":".join([self.kind, *(str(side) for side in (self.resize, self.crop) if side)])


@dataclass(frozen=True)
class Jpeg:
    """JPEG re-encoding that a service applies to each received image.

    Attributes:
        quality: JPEG quality, 1 (worst) to 100.
        subsampling: Chroma subsampling: ``444``, ``422`` or ``420``.
    """

    quality: int
    subsampling: str = "420"

    @classmethod
    def parse(cls, text: str) -> Jpeg:
        """Parse ``Q`` or ``Q:SUB``, for instance ``75:420``.

        Args:
            text: Text of the option.

        Raises:
            ConfigurationError: The text has another form.
        """
        quality, _, subsampling = text.partition(":")
        # 420 is the default of libjpeg and Pillow. The common notation 4:2:0 is accepted as well.
        subsampling = (subsampling or "420").replace(":", "")

        valid_quality = quality.isdecimal() and 1 <= int(quality) <= 100
        if not valid_quality or subsampling not in SUBSAMPLINGS:
            raise ConfigurationError(
                f"bad JPEG setting {text!r}: expected Q or Q:SUB, Q 1-100, SUB 444, 422 or 420"
            )
        return cls(int(quality), subsampling)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return ``image`` after one round trip through JPEG."""
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=self.quality, subsampling=SUBSAMPLINGS[self.subsampling])
        # `Image.open` itself goes back to the start of the buffer.
        return Image.open(buffer, formats=("JPEG",)).convert("RGB")


@dataclass(frozen=True)
class Preprocessing:
    """Everything between the decoded image and the model.

    Attributes:
        profile: Resize and crop.
        input_size: Side of the model's input in pixels.
        interpolation: Pillow's ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        mean: Mean of each channel, in [0, 1]; the normalized space is (x - mean) / std.
        std: Standard deviation of each channel, in the same unit as ``mean``.
        jpeg: JPEG re-encoding before the resize, or None.
    """

    profile: Profile
    input_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    jpeg: Jpeg | None = None

    def configured(self, profile: Profile | None, jpeg: Jpeg | None) -> Preprocessing:
        """Return a copy with the user's profile and JPEG setting.

        Args:
            profile: Resize and crop; None keeps the model's own.
            jpeg: JPEG re-encoding, or None.

        Raises:
            ConfigurationError: The profile ends at another size than the model's input.
        """
        profile = profile or self.profile
        # The side after the last step: a profile has 0 for a step that it does not have.
        side = profile.crop or profile.resize or self.input_size
        if side != self.input_size:
            raise ConfigurationError(
                f"profile {profile} gives {side} pixels, but the model takes {self.input_size}"
            )
        return replace(self, profile=profile, jpeg=jpeg)

    def geometry(self, image: Image.Image) -> Image.Image:
        """Return the RGB pixels that the model receives when a client sends ``image``.

        Args:
            image: Decoded RGB image of any size.

        Raises:
            RequestError: The image is too elongated for ``shortest_edge`` or ``resize_crop``.
        """
        if self.jpeg is not None:
            image = self.jpeg(image)

        profile = self.profile
        if profile.kind == "direct":
            return self._resize(image, (self.input_size, self.input_size))
        if profile.kind == "letterbox":
            return self._letterbox(image)
        image = self._shorter_edge(image)
        return _center_crop(image, profile.crop) if profile.crop else image

    def normalise(self, image: Image.Image) -> NDArray[np.float32]:
        """Apply `geometry` to ``image``; return (3, H, W) float32 in the normalized space."""
        return self.to_model(np.asarray(self.geometry(image)))

    def to_model(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return pixels (H, W, 3) uint8 as (3, H, W) float32 in the normalized space.

        This method neither resizes nor re-encodes.
        """
        x = pixels.astype(np.float32) / np.float32(255)
        mean = np.array(self.mean, np.float32)
        std = np.array(self.std, np.float32)
        return np.asarray((x - mean) / std, np.float32).transpose(2, 0, 1)

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize(size, Image.Resampling[self.interpolation.upper()])

    def _shorter_edge(self, image: Image.Image) -> Image.Image:
        short, long = sorted(image.size)
        # The check comes before the resize, which would allocate memory for the long edge.
        longest = LONGEST_CROPPED if self.profile.crop else LONGEST_SHAPE
        if long > longest * short:
            raise RequestError("invalid_image", f"one edge is more than {longest} times the other")

        side = self.profile.resize
        # Truncated, like in torchvision.
        longer = int(side * long / short)
        wide = image.width >= image.height
        return self._resize(image, (longer, side) if wide else (side, longer))

    def _letterbox(self, image: Image.Image) -> Image.Image:
        side = self.profile.resize
        scale = side / max(image.size)
        # The shorter edge of a very elongated image would round to 0, which Pillow rejects.
        width, height = (max(1, round(edge * scale)) for edge in image.size)

        color = tuple(round(255 * channel) for channel in self.mean)
        canvas = Image.new("RGB", (side, side), color)
        canvas.paste(
            self._resize(image, (width, height)),
            (round((side - width) / 2), round((side - height) / 2)),
        )
        return canvas


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image file to RGB.

    Args:
        data: Bytes of the file.
        max_pixels: Largest accepted image in pixels, up to `MOST_PIXELS`.

    Raises:
        RequestError: ``payload_too_large`` if the header claims more than ``max_pixels``;
            ``invalid_image`` if the file is damaged or has none of the `FORMATS`.
    """
    try:
        image = _open(data)
        if image.width * image.height > max_pixels:
            # Pillow raises the same exception in `_open` for images that are larger still.
            raise Image.DecompressionBombError
        image.load()
        return _to_rgb(image)
    except Image.DecompressionBombError:
        raise RequestError(
            "payload_too_large", f"the image has more than {max_pixels} pixels"
        ) from None
    except UnidentifiedImageError:
        raise RequestError(
            "invalid_image", f"not an image in one of the formats {', '.join(FORMATS)}"
        ) from None
    except Exception as error:
        # Pillow's decoders raise exceptions of nearly any type on hostile bytes.
        raise RequestError(
            "invalid_image", f"the image is damaged ({type(error).__name__})"
        ) from error


def _open(data: bytes) -> Image.Image:
    """Open an image and read its header only."""
    with _HEADER_LOCK, warnings.catch_warnings():
        # Pillow warns about images of half of `MOST_PIXELS` and more; `max_pixels` decides here,
        # and may be larger.
        warnings.simplefilter("ignore")
        return Image.open(BytesIO(data), formats=FORMATS)


def _to_rgb(image: Image.Image) -> Image.Image:
    # Modes that start with "I" hold 16-bit gray. Pillow's own conversion would clip it at 255. Mode
    # "I" itself has 32 bits, so values beyond 16 bits are clipped here.
    if image.mode.startswith("I"):
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(high_byte.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _center_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = (round((edge - side) / 2) for edge in image.size)
    return image.crop((left, top, left + side, top + side))
