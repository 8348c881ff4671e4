"""Measure how large an image an endpoint accepts, in bytes and in pixels.

A small image in a long file tests the limit of bytes; a large flat image in a short file tests the
limit of pixels. A limit lies between the largest accepted size and the smallest refused size. The
reported limit is just below the refused size, because only the refusal is certain.
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
    ImageError,
    InvalidRequestError,
    ServerError,
    StatusError,
    TimedOutError,
)
from pgn_client.probe.findings import Finding

Send = Callable[[bytes], int]

BASE64 = 4 / 3  # the largest growth of a file in a request, among the wire formats
# Documented limits lie in this range, from 1.5 MB (Vertex AI) to 20 MB (Google Vision).
MEBIBYTES = (1, 5, 10, 20)
# 4, 17 and 51 million pixels. 8192 px would exceed the client's own limit, ``codecs.MAX_PIXELS``.
SIDES = (2048, 4096, 7168)


def find_bytes(send: Send, left: int) -> Finding:
    """Find the largest request body, in bytes, that an endpoint accepts.

    The endpoint gets longer and longer image files until it refuses one.

    Args:
        send: Function that sends a PNG file unchanged and returns the length of the request body
            in bytes; it raises the client's errors.
        left: Number of images that may be sent.
    """
    growths: list[float] = []

    def measured(data: bytes) -> int:
        body = send(data)
        growths.append(body / len(data))
        return body

    sizes = [mebibytes * 2**20 for mebibytes in MEBIBYTES[:left]]
    finding = _largest(measured, ((size, long_file(size)) for size in sizes), "bytes")
    if not isinstance(finding.value, int):
        return finding

    # Bytes of the refused body. If no file was accepted, the growth is unknown and the largest one
    # is assumed, so that the client rejects nothing that the endpoint might accept.
    refused = (finding.value + 1) * max(growths, default=BASE64)
    return replace(
        finding,
        value=int(refused) - 1,
        evidence=f"files: {finding.evidence}; the value is the length of the request body",
    )


def find_pixels(send: Send, left: int) -> Finding:
    """Find the largest image, in pixels, that an endpoint accepts.

    The endpoint gets larger and larger images of one gray until it refuses one.

    Args:
        send: Function that sends a PNG file unchanged; it raises the client's errors.
        left: Number of images that may be sent.
    """
    return _largest(send, ((side * side, flat_file(side)) for side in SIDES[:left]), "pixels")


def _largest(send: Send, files: Iterable[tuple[int, bytes]], unit: str) -> Finding:
    """Send files in ascending order until one is refused, and return the size limit.

    Args:
        send: Function that sends a file.
        files: Size and content of each file; the size counts ``unit``.
        unit: Name of the unit, for the evidence.
    """
    accepted = 0
    for size, data in files:
        try:
            send(data)
        except BudgetExceededError:
            break
        # Servers also refuse a size by a 5xx status, by closing the connection, or not at all.
        # Errors that have nothing to do with the size, such as a wrong key, pass through.
        except (
            ImageError,
            InvalidRequestError,
            ServerError,
            ConnectionFailedError,
            TimedOutError,
        ) as error:
            return _refused(size, accepted, unit, error)
        accepted = size

    if not accepted:
        return Finding.unknown("no image was left to test this limit")
    return Finding.unknown(f"{accepted:,} {unit} are accepted; larger sizes were not tested")


def _refused(size: int, accepted: int, unit: str, error: Exception) -> Finding:
    """Return the finding that an endpoint's size limit lies below a refused size.

    The finding is certain if the error names the size as the reason (status 413, or an
    ``ImageError``).
    """
    # Errors without a response, such as a timeout, have no status.
    status = error.status if isinstance(error, StatusError) else None
    reason = f"status {status}" if status else type(error).__name__
    evidence = (
        f"{accepted:,} {unit} are accepted, {size:,} are refused ({reason}); the limit lies between"
    )
    sure = isinstance(error, ImageError) or status == 413
    return Finding(size - 1, "certain" if sure else "likely", evidence)


def long_file(size: int) -> bytes:
    """Return a PNG file that is ``size`` bytes long, with an image of 32 x 32 gray pixels.

    A private chunk, which decoders skip, fills the file.
    """
    file = _png(Image.new("RGB", (32, 32), (128, 128, 128)))

    # A chunk has 12 bytes besides its data: length, type and checksum. Random data cannot be
    # compressed on the way.
    filling = os.urandom(size - len(file) - 12)
    # The case of the letters marks the chunk as optional and private, so decoders skip it.
    body = b"pgNc" + filling
    chunk = struct.pack(">I", len(filling)) + body + struct.pack(">I", zlib.crc32(body))

    # The length of the next chunk stands in the 4 bytes before its type.
    end = file.index(b"IDAT") - 4
    return file[:end] + chunk + file[end:]


def flat_file(side: int) -> bytes:
    """Return a PNG file with a square image of one gray, ``side`` pixels wide and high."""
    return _png(Image.new("RGB", (side, side), (128, 128, 128)))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
