"""Tensors of the Open Inference Protocol: encodes an image as input, and decodes the outputs.

In JSON, a tensor's elements are a list. With the protocol's binary extension, the tensors' bytes
follow the JSON, in the order in which the JSON names them. Numbers are then little-endian, and an
element of BYTES is its length (uint32) followed by its bytes.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgn_client.errors import ConfigurationError
from pgn_client.wire.protocols.base import MalformedAnswerError, Payload, WireResponse

FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
PIXELS = {"UINT8": "|u1", "FP16": "<f2", "FP32": "<f4"}
HEADER = "inference-header-content-length"
# Largest side in pixels that a model's metadata may declare. The metadata are untrusted, and a huge
# size would exhaust the memory when an image is resized to it.
LONGEST_SIDE = 2**13


@dataclass(frozen=True, slots=True)
class Input:
    """Form of the model's input tensor for one image.

    Attributes:
        name: Name of the tensor.
        datatype: Datatype of the tensor: BYTES (an image file), UINT8 (pixels in [0, 255]), or FP32
            and FP16 (normalized pixels).
        shape: Shape that the model declares; -1 is any size.
        layout: Order of the pixels' axes, CHW or HWC; empty for BYTES.
        mean: Mean of each channel, where a normalized pixel is (pixel / 255 - mean) / std; empty
            for BYTES and UINT8.
        std: Standard deviation of each channel; see ``mean``.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    layout: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the model takes; -1 is any size.

        (-1, -1) for BYTES, which takes an image file.
        """
        if self.datatype == "BYTES":
            return -1, -1
        height, width = self.shape[-2:] if self.layout == "CHW" else self.shape[-3:-1]
        return height, width

    def array(self, payload: Payload) -> NDArray[Any]:
        """Return the image's pixels as an array, (H, W, 3) or (3, H, W) for height H and width W.

        The array has a leading batch axis if the model declares one. An image of another size is
        resized to the model's input size (bicubic), without keeping its aspect ratio. Normalization
        uses float32.
        """
        image = payload.image
        if image is None:
            image = Image.open(io.BytesIO(payload.data)).convert("RGB")

        # A declared side of -1 accepts any size, so the image keeps its own.
        height, width = self.size
        width = image.width if width < 0 else width
        height = image.height if height < 0 else height
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)

        pixels: NDArray[Any] = np.asarray(image)
        if self.datatype != "UINT8":
            mean = np.array(self.mean, np.float32)
            std = np.array(self.std, np.float32)
            pixels = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        pixels = pixels.transpose(2, 0, 1) if self.layout == "CHW" else pixels
        pixels = pixels.astype(PIXELS[self.datatype])
        return np.ascontiguousarray(pixels[None] if len(self.shape) == 4 else pixels)

    def tensor(self, image: Payload, *, binary: bool) -> tuple[dict[str, Any], bytes]:
        """Return an image as a tensor: a JSON object, and the bytes to append to the request.

        With ``binary``, the elements are in the bytes; otherwise they are in the JSON, and the
        bytes are empty.
        """
        data: list[Any] = []
        tail = b""
        if self.datatype == "BYTES":
            # One file is one element, in a tensor with as many axes as the model declares.
            shape = [1] * max(len(self.shape), 1)
            if binary:
                tail = len(image.data).to_bytes(4, "little") + image.data
            else:
                data = [base64.b64encode(image.data).decode("ascii")]
        else:
            array = self.array(image)
            shape = list(array.shape)
            if binary:
                tail = array.tobytes()
            else:
                data = array.ravel().tolist()

        document = {"name": self.name, "shape": shape, "datatype": self.datatype}
        if binary:
            return document | {"parameters": {"binary_data_size": len(tail)}}, tail
        return document | {"data": data}, tail


def choose_input(
    inputs: Sequence[Any], given: Mapping[str, Any], declared: Mapping[str, Any]
) -> Input:
    """Return the model's input tensor that takes the image.

    It is the one that the option ``input`` names, or else the first one that can take an image.

    Args:
        inputs: Inputs in the model's metadata, untrusted.
        given: Options ``input``, ``layout``, ``mean`` and ``std``.
        declared: Parameters in the model's metadata, which may contain ``mean`` and ``std``.

    Raises:
        ConfigurationError: No input can take an image, or its form is unknown; the message names
            the options that help.
    """
    for item in inputs:
        fields = item if isinstance(item, dict) else {}
        name = fields.get("name")
        datatype = fields.get("datatype")
        shape = fields.get("shape")
        if not isinstance(name, str) or given.get("input", name) != name:
            continue
        if not isinstance(datatype, str) or not isinstance(shape, list):
            continue
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in shape):
            continue
        if datatype == "BYTES" or (datatype in PIXELS and len(shape) in (3, 4)):
            return _complete(Input(name, datatype, tuple(shape)), given, declared)

    expected = f"an input named {given['input']!r}" if "input" in given else "an input"
    raise ConfigurationError(
        f"the model has no input that takes an image: expected {expected} of BYTES, or of UINT8, "
        "FP32 or FP16 with three or four axes; name it with options: input, datatype, shape"
    )


def _complete(tensor: Input, given: Mapping[str, Any], declared: Mapping[str, Any]) -> Input:
    """Return the input tensor, completed with the layout, mean and std of its pixels.

    Options (``given``) come before the model's metadata (``declared``).
    """
    if tensor.datatype == "BYTES":
        return tensor

    # Layouts are also written with the batch axis, NCHW and NHWC.
    layout = given.get("layout", "").upper().removeprefix("N") or _layout(tensor.shape)
    if layout not in ("CHW", "HWC"):
        raise ConfigurationError(
            f"the model's input has the shape {list(tensor.shape)}, which does not show the axis "
            "of the three channels; give options: layout, CHW or HWC"
        )

    pixels = Input(tensor.name, tensor.datatype, tensor.shape, layout)
    if not all(side < 0 or 0 < side <= LONGEST_SIDE for side in pixels.size):
        raise ConfigurationError(
            f"the model's input has the shape {list(tensor.shape)}, expected sides of 1 to "
            f"{LONGEST_SIDE} pixels, or -1"
        )
    if tensor.datatype == "UINT8":
        return pixels

    mean = _three("mean", given.get("mean", declared.get("mean")))
    std = _three("std", given.get("std", declared.get("std")))
    if not all(std):
        raise ConfigurationError("options: std: got a zero, expected numbers that are not zero")
    return replace(pixels, mean=mean, std=std)


def _layout(shape: tuple[int, ...]) -> str:
    """Return CHW or HWC, by which axis of a shape has size 3; empty if that is ambiguous."""
    channels_first = shape[-3] == 3
    channels_last = shape[-1] == 3
    if channels_first and not channels_last:
        return "CHW"
    if channels_last and not channels_first:
        return "HWC"
    return ""


def _three(name: str, value: Any) -> tuple[float, ...]:
    """Return three numbers, one per color channel, from an option or the model's metadata.

    The value is ``[0.5, 0.5, 0.5]``, ``[0.5]``, 0.5, or one of these as text.
    """
    if isinstance(value, str):
        value = _list(value)
    numbers = value if isinstance(value, list) else [value]
    # The limit excludes NaN, infinity and integers that float refuses.
    valid = all(
        isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e9 for n in numbers
    )
    if not valid or len(numbers) not in (1, 3):
        raise ConfigurationError(
            "the model takes normalized pixels, (pixel / 255 - mean) / std, and its metadata do "
            f"not contain its {name}: expected three numbers; give options: mean and std, for "
            "example [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225]"
        )
    return tuple(float(n) for n in numbers) * (3 if len(numbers) == 1 else 1)


def _list(text: str) -> Any:
    """Return the list in a text such as ``[1, 2]`` or ``1, 2``; None if it is not JSON."""
    try:
        return json.loads(text if text.strip().startswith("[") else f"[{text}]")
    # Deeply nested brackets raise RecursionError.
    except (ValueError, RecursionError):
        return None


def texts(value: Any) -> tuple[str, ...]:
    """Return the class names in a value from metadata: a list, or a list written as JSON text.

    Empty for anything else.
    """
    value = _list(value) if isinstance(value, str) else value
    are_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return tuple(value) if are_texts else ()


@dataclass(frozen=True, slots=True)
class Output:
    """One decoded output tensor of a response.

    Attributes:
        name: Name of the tensor.
        datatype: Datatype of the tensor, for example FP32.
        shape: Size of each axis.
        data: Elements in row-major order; texts for BYTES.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] = field(repr=False)


def outputs(response: WireResponse) -> list[Output]:
    """Return the output tensors of a response in JSON or in the binary form.

    Raises:
        MalformedAnswerError: The response does not follow the protocol.
    """
    length = response.headers.get(HEADER)
    # The number of digits is limited, because int refuses thousands of them.
    if length is not None and not (
        length.isdecimal() and len(length) < 20 and int(length) <= len(response.body)
    ):
        raise MalformedAnswerError(length[:20], f"at most {len(response.body)}", f"{HEADER}: ")

    head = response.body if length is None else response.body[: int(length)]
    document = WireResponse(response.status, {}, head).json()
    items = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(items, list) or not items:
        raise MalformedAnswerError(head, "outputs")

    rest = response.body[len(head) :]
    tensors = []
    for item in items:
        output, rest = _output(item, rest)
        tensors.append(output)
    return tensors


def _output(item: Any, rest: bytes) -> tuple[Output, bytes]:
    """Return one decoded output tensor, and the binary data that remain after it.

    ``item`` is the tensor's JSON. ``rest`` are the binary data, which start with this tensor's
    elements unless the JSON holds them.
    """
    fields = item if isinstance(item, dict) else {}
    name = fields.get("name")
    datatype = fields.get("datatype")
    shape = fields.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(shape, list):
        raise MalformedAnswerError(json.dumps(item), "name, datatype and shape", "the output ")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise MalformedAnswerError(json.dumps(shape), "whole numbers", "the shape ")

    parameters = fields.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        data = _flat(fields.get("data"))
    else:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
            raise MalformedAnswerError(str(size), f"at most {len(rest)}", "binary_data_size ")
        data = _unpacked(datatype, rest[:size])
        rest = rest[size:]
    if len(data) != math.prod(shape):
        raise MalformedAnswerError(f"{len(data)} elements", f"as many as the shape {shape} has")
    return Output(name, datatype, tuple(shape), data), rest


def _flat(data: Any) -> list[Any]:
    """Return the elements of a flat or nested JSON list in row-major order."""
    if not isinstance(data, list):
        raise MalformedAnswerError(json.dumps(data), "a list", "the data ")
    flat: list[Any] = data
    while flat and all(isinstance(item, list) for item in flat):
        flat = list(itertools.chain.from_iterable(flat))
    return flat


def _unpacked(datatype: str, data: bytes) -> list[Any]:
    """Return the elements of one tensor, decoded from its binary data: numbers or texts."""
    dtype = np.dtype(FLOATS[datatype]) if datatype in FLOATS else None
    if dtype is not None and len(data) % dtype.itemsize == 0:
        return [float(number) for number in np.frombuffer(data, dtype)]
    if datatype != "BYTES":
        raise MalformedAnswerError(
            f"{len(data)} bytes", f"whole numbers of {', '.join(FLOATS)}", f"{datatype} with "
        )

    elements = []
    position = 0
    while position < len(data):
        start = position + 4
        end = start + int.from_bytes(data[position:start], "little")
        if end > len(data):
            raise MalformedAnswerError(
                f"{len(data) - position} bytes", f"{end - position}", "an element of BYTES with "
            )
        elements.append(data[start:end].decode("utf-8", "replace"))
        position = end
    return elements
