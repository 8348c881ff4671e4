"""How large an image may be: a small image in a long file tells bytes from pixels, a flat one
pixels from bytes.

A limit is only bracketed. What is reported is its upper end: that what is larger was refused is
certain.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace

from PIL import Image

from pgn_client.errors import (
    BudgetExceededError,
    ConnectionFailedError,
    EndpointError,
    ImageError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
)
from pgn_client.probe.findings import Finding

Send = Callable[[bytes], int]

BASE64 = 4 / 3  # the most that a wire format adds to a file
MEBIBYTES = (1, 5, 10, 20)
SIDES = (2048, 4096, 7168)  # 4, 17 and 51 million pixels


def find_bytes(send: Send, left: int) -> Finding:
    """Send ever longer files until one is refused; what is found are bytes of the request's body.

    Args:
        send: sends a PNG file as it is and returns the bytes of the request's body, or raises what
            the client raises.
        left: how many may be sent.
    """
    added: list[float] = []

    def weighed(data: bytes) -> int:
        added.append(send(data) / len(data))
        return 0

    found = _largest(
        weighed, ((n * 2**20, long_file(n * 2**20)) for n in MEBIBYTES[:left]), "bytes"
    )
    if not isinstance(found.value, int):
        return found
    body = int((found.value + 1) * max(added, default=BASE64)) - 1
    return replace(
        found,
        value=body,
        evidence=f"files: {found.evidence}; the value is that of the request's body",
    )


def find_pixels(send: Send, left: int) -> Finding:
    """Send ever larger flat images until one is refused; see ``find_bytes``."""
    return _largest(send, ((side * side, flat_file(side)) for side in SIDES[:left]), "pixels")


def _largest(send: Send, files: Iterable[tuple[int, bytes]], unit: str) -> Finding:
    taken = 0
    for size, data in files:
        try:
            send(data)
        except BudgetExceededError:
            break
        except (
            ImageError,
            InvalidRequestError,
            ServerError,
            ConnectionFailedError,
            TimedOutError,
        ) as error:
            return _refused(size, taken, unit, error)
        taken = size
    if not taken:
        return Finding.unknown("no image was left to try it with")
    return Finding(None, "unknown", f"{taken:,} {unit} are taken; more was not tried")


def _refused(size: int, taken: int, unit: str, error: Exception) -> Finding:
    """A refusal for the size has a status of its own; anything else may have another reason."""
    status = getattr(error, "status", None)
    said = (
        f"status {status}" if isinstance(error, EndpointError) and status else type(error).__name__
    )
    text = f"{taken:,} {unit} are taken, {size:,} refused ({said}); the limit lies between"
    sure = isinstance(error, ImageError) or status == 413
    return Finding(size - 1, "certain" if sure else "likely", text)


def long_file(size: int) -> bytes:
    """Return a PNG of 32 x 32 grey pixels that is ``size`` bytes long: a private chunk that
    decoders skip fills it.
    """
    file = _png(Image.new("RGB", (32, 32), (128, 128, 128)))
    filling = os.urandom(size - len(file) - 12)
    body = b"pgNc" + filling
    chunk = struct.pack(">I", len(filling)) + body + struct.pack(">I", zlib.crc32(body))
    end = file.index(b"IDAT") - 4
    return file[:end] + chunk + file[end:]


def flat_file(side: int) -> bytes:
    """Return a PNG of one grey, ``side`` pixels wide and high."""
    return _png(Image.new("RGB", (side, side), (128, 128, 128)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
