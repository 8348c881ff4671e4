"""Tensors of the Open Inference Protocol: JSON or bytes to images, and numbers to bytes.

All numbers on the wire are little-endian and row-major. A BYTES element is its length as uint32,
followed by its bytes.
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

Input = dict[str, Any]
"""JSON of one input: name, datatype, shape, and data or parameters.binary_data_size."""
DATATYPES = {"FP32": "<f4", "UINT8": "u1"}
"""Datatypes of the input ``images``, with NumPy's names for them."""


def read_input(
    content: dict[str, Any], tail: bytes, preprocessing: Preprocessing
) -> list[bytes | NDArray[np.float32] | RequestError]:
    """Return the images of a request.

    Args:
        content: JSON part of the request.
        tail: Binary tensors behind the JSON.
        preprocessing: Preprocessing of the hosted model.

    Returns:
        For the input ``pictures``, the bytes of each file, or its error. For the input ``images``,
        arrays (3, H, W) float32 in the normalized space.

    Raises:
        RequestError: ``invalid_request`` unless the request has exactly one input with a supported
            name, datatype and shape, and matching data.
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
            "invalid_request", "unexpected inference input; this model has images and pictures"
        )
    return _images(tensor, shape, data, preprocessing)


def pack(values: NDArray[Any]) -> bytes:
    """Return an array of any shape as bytes: numbers as FP32, strings as BYTES."""
    if values.dtype.kind != "U":
        return values.astype("<f4").tobytes()
    texts = [str(text).encode() for text in values.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _shape(tensor: Input) -> list[int]:
    shape = tensor.get("shape")
    # The exact type, because JSON's true and false are bool, which Python counts as int.
    if not isinstance(shape, list) or not all(
        type(side) is int and 0 < side < 2**31 for side in shape
    ):
        raise RequestError("invalid_request", "shape must be a list of whole numbers from 1")
    return shape


def _data(tensor: Input, tail: bytes) -> Any:
    """Return the input's data: bytes if it is binary, or else the value in its JSON."""
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
    """Return the files in the input ``pictures``."""
    one_column = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if tensor.get("datatype") != "BYTES" or not one_column:
        raise RequestError(
            "invalid_request", "the input pictures must be BYTES of shape [B] or [B, 1]"
        )

    elements: list[Any] = _elements(data) if isinstance(data, bytes) else _flattened(data)
    if len(elements) != shape[0]:
        raise RequestError(
            "invalid_request",
            f"the input pictures has {len(elements)} elements, but its shape has {shape[0]}",
        )
    return [
        one if isinstance(one, bytes) else from_text(one, "the data of pictures")
        for one in elements
    ]


def _flattened(data: Any) -> list[Any]:
    """Return the elements of JSON data of shape [B] or [B, 1]."""
    elements: list[Any] = []
    for row in data if isinstance(data, list) else [data]:
        elements += row if isinstance(row, list) else [row]
    return elements


def _elements(data: bytes) -> list[bytes]:
    """Return the elements of a binary BYTES tensor."""
    elements = []
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or end > len(data):
            raise RequestError("invalid_request", "a BYTES element is longer than the tensor")
        elements.append(data[start + 4 : end])
        start = end
    return elements


def _images(
    tensor: Input, shape: list[int], data: Any, preprocessing: Preprocessing
) -> list[bytes | NDArray[np.float32] | RequestError]:
    """Return the arrays in the input ``images``, (3, H, W) float32 in the normalized space."""
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise RequestError(
            "invalid_request",
            "the input images must be FP32 in the normalized space, or UINT8 pixels",
        )
    if len(shape) != 4 or shape[1] != 3 or not _fits(shape[2:], preprocessing):
        side = preprocessing.input_size
        raise RequestError(
            "invalid_request", f"unexpected shape for input 'images': expected [-1,3,{side},{side}]"
        )

    if isinstance(data, bytes):
        values = _from_bytes(data, datatype, shape)
    else:
        values = _from_json(data, datatype, shape)
    if datatype == "UINT8":
        values = np.stack([preprocessing.to_model(pixels.transpose(1, 2, 0)) for pixels in values])
    if not np.isfinite(values).all():
        raise RequestError("invalid_request", "the input images holds a non-finite number")
    return list(values.astype(np.float32))


def _fits(sides: list[int], preprocessing: Preprocessing) -> bool:
    """Return whether the model accepts an image with these sides."""
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
    except (ValueError, OverflowError, RecursionError):
        # The lists have unequal lengths, or more levels than NumPy supports. The check below
        # rejects this array, because it holds no numbers.
        values = np.array(None)

    if values.dtype.kind not in "iuf" or (values.ndim != 1 and list(values.shape) != shape):
        raise RequestError(
            "invalid_request",
            "the data of images must be numbers, in a flat list or nested like its shape",
        )
    if values.size != math.prod(shape):
        raise RequestError(
            "invalid_request",
            f"the input images has {values.size} numbers, but its shape has {math.prod(shape)}",
        )
    if datatype == "UINT8" and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 255):
        raise RequestError("invalid_request", "UINT8 data must be whole numbers from 0 to 255")

    # A number that overflows float32 becomes infinite; the caller rejects it as not finite.
    with np.errstate(over="ignore"):
        return values.astype(DATATYPES[datatype]).reshape(shape)
