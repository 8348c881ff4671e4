"""Tensors of the Open Inference Protocol: from JSON or bytes to images, and back to bytes.

Everything on the wire is little-endian and row-major; a BYTES element is its length as uint32, then
its bytes.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mock_server.errors import RequestError
from mock_server.preprocess import LONGEST_SHAPE, Preprocessing
from mock_server.routes.payload import from_text

Input = dict[str, Any]  # name, datatype, shape, and data or parameters.binary_data_size
DATATYPES = {"FP32": "<f4", "UINT8": "u1"}


def read_input(
    content: dict[str, Any], tail: bytes, preprocessing: Preprocessing
) -> list[bytes | NDArray[np.float32] | RequestError]:
    """Return the images of a request: files as they are, tensors (3, H, W) in the normalised
    space.

    Args:
        content: The JSON part of the request.
        tail: The tensors behind it.
        preprocessing: Of the hosted model.

    Raises:
        RequestError: ``invalid_request`` for anything but one input of a known name, datatype and
            shape with its data.
    """
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError("invalid_request", "expected one input: images or pictures")
    [tensor] = inputs
    shape = _shape(tensor)
    data = _data(tensor, tail)
    if tensor.get("name") == "pictures":
        return _files(tensor, shape, data)
    if tensor.get("name") != "images":
        raise RequestError(
            "invalid_request", "unexpected inference input; this model has images and images"
        )
    return _images(tensor, shape, data, preprocessing)


def pack(values: NDArray[Any]) -> bytes:
    """Return numbers (any shape) as FP32, strings as BYTES."""
    if values.dtype.kind != "U":
        return values.astype("<f4").tobytes()
    texts = [str(text).encode() for text in values.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _shape(tensor: Input) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(
        type(side) is int and 0 < side < 2**31 for side in shape
    ):
        raise RequestError("invalid_request", "shape must be a list of whole numbers from 1")
    return shape


def _data(tensor: Input, tail: bytes) -> Any:
    """Return the input's bytes if it is binary, else what stands in its JSON."""
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if "data" in tensor or type(size) is not int or size != len(tail):
            message = (
                f"unexpected size of the input: its binary_data_size must be the {len(tail)} bytes "
                "behind the JSON"
            )
            raise RequestError("invalid_request", message)
        return tail
    if tail or "data" not in tensor:
        raise RequestError(
            "invalid_request", "an input needs either data or parameters.binary_data_size"
        )
    return tensor["data"]


def _files(
    tensor: Input, shape: list[int], data: Any
) -> list[bytes | NDArray[np.float32] | RequestError]:
    if tensor.get("datatype") != "BYTES" or len(shape) not in (1, 2) or shape[1:] not in ([], [1]):
        raise RequestError("invalid_request", "images are BYTES of shape [B] or [B, 1]")
    if isinstance(data, bytes):
        elements: list[Any] = list(_elements(data))
    else:
        nested = data if isinstance(data, list) else [data]
        elements = [one for row in nested for one in (row if isinstance(row, list) else [row])]
    if len(elements) != shape[0]:
        raise RequestError(
            "invalid_request", f"images hold {len(elements)} elements, and shape says {shape[0]}"
        )
    return [
        one if isinstance(one, bytes) else from_text(one, "the data of images") for one in elements
    ]


def _elements(data: bytes) -> list[bytes]:
    elements, place = [], 0
    while place < len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "little")
        if place + 4 > len(data) or end > len(data):
            raise RequestError("invalid_request", "a BYTES element is longer than the tensor")
        elements.append(data[place + 4 : end])
        place = end
    return elements


def _images(
    tensor: Input, shape: list[int], data: Any, preprocessing: Preprocessing
) -> list[bytes | NDArray[np.float32] | RequestError]:
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise RequestError(
            "invalid_request", "images are FP32 in the normalised space, or UINT8 pixels"
        )
    if len(shape) != 4 or shape[1] != 3 or not _fits(shape[2:], preprocessing):
        side = preprocessing.input_size
        raise RequestError(
            "invalid_request", f"unexpected shape for input 'images': expected [-1,3,{side},{side}]"
        )
    values = (
        _from_bytes(data, datatype, shape)
        if isinstance(data, bytes)
        else _from_json(data, datatype, shape)
    )
    if datatype == "UINT8":
        values = np.stack([preprocessing.to_model(pixels.transpose(1, 2, 0)) for pixels in values])
    if not np.isfinite(values).all():
        raise RequestError("invalid_request", "images hold a number that is not finite")
    return list(values.astype(np.float32))


def _fits(sides: list[int], preprocessing: Preprocessing) -> bool:
    short, long = sorted(sides)
    longest = LONGEST_SHAPE if preprocessing.profile.kind == "shortest_edge" else 1
    return short == preprocessing.input_size and long <= longest * short


def _from_bytes(data: bytes, datatype: str, shape: list[int]) -> NDArray[Any]:
    expected = math.prod(shape) * np.dtype(DATATYPES[datatype]).itemsize
    if len(data) != expected:
        raise RequestError(
            "invalid_request", f"unexpected size for input 'images': expected {expected} bytes"
        )
    return np.frombuffer(data, DATATYPES[datatype]).reshape(shape)


def _from_json(data: Any, datatype: str, shape: list[int]) -> NDArray[Any]:
    try:
        values = np.asarray(data)
    # lists of unequal lengths, more of them than numpy nests
    except (ValueError, OverflowError, RecursionError):
        values = np.array(None)
    if values.dtype.kind not in "iuf" or (values.ndim != 1 and list(values.shape) != shape):
        raise RequestError(
            "invalid_request", "the data of images must be numbers, flat or nested as shape says"
        )
    if values.size != math.prod(shape):
        raise RequestError(
            "invalid_request",
            f"images hold {values.size} numbers, and shape says {math.prod(shape)}",
        )
    if datatype == "UINT8" and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 255):
        raise RequestError("invalid_request", "UINT8 data must be whole numbers from 0 to 255")
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        return values.astype(DATATYPES[datatype]).reshape(shape)
