"""Smaller forms of an image whose PNG is larger than the endpoint accepts.

A PNG of a photo can be ten times as large as the user's own JPEG, so the lossless encoding alone
must not make an image unsendable.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace

from PIL import Image

from pgn_client.imaging.codecs import (
    PNG,
    WEBP_LOSSLESS,
    ImageSource,
    format_of,
    is_verbatim,
    open_image,
)
from pgn_client.imaging.opening import read_regular
from pgn_client.wire.accepted import Accepted
from pgn_client.wire.endpoint import Limits
from pgn_client.wire.protocols.base import Payload

OWN_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""Formats of the user's files that are sent as they are, with their media types."""
MOST_WEBP = 16383
"""Largest side of a WebP image, in pixels."""
TAKE_WEBP = frozenset(
    {
        "huggingface",
        "huggingface-features",
        "huggingface-zero-shot",
        "openai",
        "openai-embeddings",
        "pgn",
        "torchserve",
    }
)
"""Protocols whose servers decode WebP; TensorFlow's decoder, for example, does not."""
SCALINGS = 4
"""Largest number of scaled copies of one image that are tried."""
SHARE = 1 / 3
"""Share of the pixels that a scaled copy keeps where only a refusal shows the limit."""


def smaller_forms(image: Payload, protocol: str, accepted: Accepted) -> Iterator[Payload]:
    """Yield the image as it is, and then, if the caller continues, ever smaller forms of it.

    In this order: the user's own file, if it holds the same pixels; lossless WebP; scaled copies.
    An image with a prompt is never scaled, because the prompt fits one size. A form larger than the
    one before is left out.

    Args:
        image: Encoded image.
        protocol: Name of the protocol.
        accepted: What the endpoint is known to accept; decides how far to scale.
    """
    yield image
    if image.verbatim:
        return

    pixels = image.image or open_image(image.data)
    smallest = image
    for form in _lossless(image, pixels, protocol):
        if len(form.data) < len(smallest.data):
            smallest = form
            yield form
    if image.source is None:
        return

    scale = 1.0
    for _ in range(SCALINGS):
        scale *= _next_scale(smallest, accepted.limits)
        smallest = _scaled(pixels, scale)
        yield smallest


def _lossless(image: Payload, pixels: Image.Image, protocol: str) -> Iterator[Payload]:
    """Yield the forms of an image that decode to exactly the same pixels."""
    own = _own_file(image, pixels)
    if own is not None:
        yield own
    if protocol in TAKE_WEBP and max(pixels.size) <= MOST_WEBP:
        data = WEBP_LOSSLESS.encode(pixels)
        yield replace(image, data=data, media_type=WEBP_LOSSLESS.media_type)


def _own_file(image: Payload, pixels: Image.Image) -> Payload | None:
    """Return the user's own file as it is; None unless it decodes to exactly the pixels to send."""
    try:
        data = _content(image.source)
    except (OSError, ValueError):
        # The file was removed meanwhile.
        return None
    media_type = None if data is None else OWN_FORMATS.get(format_of(data) or "")
    if data is None or media_type is None or not is_verbatim(data, pixels):
        return None
    return replace(image, data=data, media_type=media_type)


def _content(source: ImageSource | None) -> bytes | None:
    """Return the content of the user's file; None if the image comes from no file."""
    if isinstance(source, str | os.PathLike):
        return read_regular(source)
    return bytes(source) if isinstance(source, bytes | bytearray | memoryview) else None


def _next_scale(image: Payload, limits: Limits) -> float:
    """Return the factor for both sides of the image that should bring it below the limits."""
    shares = []
    if limits.body_bytes is not None:
        # Base64 and the text around it lengthen the body by a third.
        shares.append(0.7 * limits.body_bytes / len(image.data))
    if limits.pixels is not None:
        shares.append(limits.pixels / image.pixels)
    share = min(shares, default=SHARE)
    # A limit that the image keeps already is not the one that it breaks.
    return math.sqrt(max(share if share < 1 else SHARE, 1e-4))


def _scaled(image: Image.Image, scale: float) -> Payload:
    size = (max(1, math.floor(image.width * scale)), max(1, math.floor(image.height * scale)))
    smaller = image.resize(size, Image.Resampling.LANCZOS)
    return Payload(PNG.encode(smaller), PNG.media_type, size[0] * size[1], smaller)
