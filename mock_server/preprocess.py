"""What the server does to an image before the model sees it.

Decoding is strict: PNG, JPEG, WebP, BMP and GIF (first frame) only, the size is checked in the
header before a pixel is decoded, and truncated files are refused. The EXIF orientation is *not*
applied (timm's own servers do not; clients re-encode without it). Transparency is laid over white,
16-bit grey keeps its high byte, and CMYK and palettes become RGB. ``Image`` everywhere means
`PIL.Image.Image`.
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
LONGEST_SHAPE = 4  # times the shorter edge: the most that `shortest_edge` hands to the model
# times the shorter edge: the most that `resize_crop` resizes before it throws the ends away
LONGEST_CROPPED = 64
MOST_PIXELS = 2 * (1024**3 // 12)  # Pillow refuses larger images by itself, whatever we allow
SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}  # Pillow's numbers

# Pillow warns about images of half of `MOST_PIXELS` and more, and warning filters belong to the
# whole process.
_HEADER_LOCK = threading.Lock()


@dataclass(frozen=True)
class Profile:
    """How an image of any size becomes the model's input.

    ``direct`` squashes it to the input size. ``resize_crop:R:C`` resizes the shorter edge to R and
    cuts the central C x C at offset ``round((side - C) / 2)``, as torchvision does.
    ``shortest_edge:R`` is the same without the crop. ``letterbox:R`` fits it into R x R and pads
    with the mean colour, half on each side.

    Attributes:
        kind: One of the four names.
        resize: R in pixels, 0 for ``direct``.
        crop: C in pixels, 0 unless ``resize_crop``.
    """

    kind: Kind = "direct"
    resize: int = 0
    crop: int = 0

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read ``direct``, ``resize_crop:R:C``, ``shortest_edge:R`` or ``letterbox:R``.

        Raises:
            ConfigurationError: For any other text, or R < C.
        """
        counts = {"direct": 0, "resize_crop": 2, "shortest_edge": 1, "letterbox": 1}
        kind, *rest = text.split(":")
        numbers = [int(part) for part in rest if part.isdecimal()]
        fits = counts.get(kind) == len(rest) == len(numbers) and 0 not in numbers
        if not fits or (kind == "resize_crop" and numbers[0] < numbers[1]):
            raise ConfigurationError(
                f"bad profile {text!r}: expected direct, resize_crop:R:C with R >= C, "
                "shortest_edge:R or letterbox:R"
            )
        return cls(cast(Kind, kind), *numbers)

    def __str__(self) -> str:
        return ":".join([self.kind, *(str(side) for side in (self.resize, self.crop) if side)])


@dataclass(frozen=True)
class Jpeg:
    """The JPEG re-encoding that a service does to what it receives.

    Attributes:
        quality: 1 (worst) to 100.
        subsampling: ``444``, ``422`` or ``420``.
    """

    quality: int
    subsampling: str = "420"

    @classmethod
    def parse(cls, text: str) -> Jpeg:
        """Read ``Q`` or ``Q:SUB``, for instance ``75:420``.

        Raises:
            ConfigurationError: For any other text.
        """
        quality, _, subsampling = text.partition(":")
        subsampling = (subsampling or "420").replace(":", "")
        if (
            not quality.isdecimal()
            or not 1 <= int(quality) <= 100
            or subsampling not in SUBSAMPLINGS
        ):
            raise ConfigurationError(
                f"bad JPEG setting {text!r}: expected Q or Q:SUB, Q 1-100, SUB 444, 422 or 420"
            )
        return cls(int(quality), subsampling)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return ``image`` as it comes back from the codec."""
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=self.quality, subsampling=SUBSAMPLINGS[self.subsampling])
        return Image.open(buffer, formats=("JPEG",)).convert("RGB")


@dataclass(frozen=True)
class Preprocessing:
    """Everything between the decoded image and the model.

    Attributes:
        profile: Resize and crop.
        input_size: Side of the model's input in pixels.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``, always Pillow's.
        mean: Of the normalised space (x - mean) / std, per channel, x in [0, 1].
        std: As ``mean``.
        jpeg: Re-encoding of the sent image, before the resize.
    """

    profile: Profile
    input_size: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    jpeg: Jpeg | None = None

    def configured(self, profile: Profile | None, jpeg: Jpeg | None) -> Preprocessing:
        """Return a copy with the user's profile (None: the model's own) and JPEG setting.

        Raises:
            ConfigurationError: The profile does not end at the model's input size.
        """
        profile = profile or self.profile
        side = profile.crop or profile.resize or self.input_size
        if side != self.input_size:
            raise ConfigurationError(
                f"profile {profile} gives {side} pixels, but the model takes {self.input_size}"
            )
        return replace(self, profile=profile, jpeg=jpeg)

    def geometry(self, image: Image.Image) -> Image.Image:
        """Return the RGB pixels that the model sees when ``image`` is sent.

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
        return _centre_crop(image, profile.crop) if profile.crop else image

    def normalise(self, image: Image.Image) -> NDArray[np.float32]:
        """Return `geometry` (H, W) as (3, H, W) float32 in the normalised space."""
        return self.to_model(np.asarray(self.geometry(image)))

    def to_model(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return pixels (H, W, 3) that the model shall see as they are, as (3, H, W) in the
        normalised space.
        """
        x = pixels.astype(np.float32) / np.float32(255)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.asarray((x - mean) / std, np.float32).transpose(2, 0, 1)

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize(size, Image.Resampling[self.interpolation.upper()])

    def _shorter_edge(self, image: Image.Image) -> Image.Image:
        short, long = sorted(image.size)
        longest = LONGEST_CROPPED if self.profile.crop else LONGEST_SHAPE
        if long > longest * short:  # before the resize, which would ask for as many bytes
            raise RequestError("invalid_image", f"one edge is more than {longest} times the other")
        side = self.profile.resize
        longer = int(side * long / short)  # truncated, as in torchvision
        wide = image.width >= image.height
        return self._resize(image, (longer, side) if wide else (side, longer))

    def _letterbox(self, image: Image.Image) -> Image.Image:
        side = self.profile.resize
        scale = side / max(image.size)
        width, height = (max(1, round(edge * scale)) for edge in image.size)
        colour = tuple(round(255 * channel) for channel in self.mean)
        canvas = Image.new("RGB", (side, side), colour)
        canvas.paste(
            self._resize(image, (width, height)),
            (round((side - width) / 2), round((side - height) / 2)),
        )
        return canvas


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """Return the image in ``data`` as RGB.

    Args:
        data: The file.
        max_pixels: The most that are decoded, up to `MOST_PIXELS`.

    Raises:
        RequestError: ``payload_too_large`` if the header claims more than ``max_pixels``,
            ``invalid_image`` if the bytes are none of `FORMATS` or are damaged.
    """
    try:
        image = _open(data)
        if image.width * image.height > max_pixels:
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
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise RequestError(
            "invalid_image", f"the image is damaged ({type(error).__name__})"
        ) from error


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    with _HEADER_LOCK, warnings.catch_warnings():
        # the bomb warning too: `max_pixels` decides, which may be more
        warnings.simplefilter("ignore")
        return Image.open(BytesIO(data), formats=FORMATS)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255)
        image = Image.fromarray(high_byte.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _centre_crop(image: Image.Image, side: int) -> Image.Image:
    left, top = (round((edge - side) / 2) for edge in image.size)
    return image.crop((left, top, left + side, top + side))
