"""The Open Inference Protocol's tensors: an image as the input that a model wants, and the outputs
of an answer.

JSON holds a tensor's numbers as a list; with the binary extension they follow the JSON,
little-endian, in the order in which it names them, and an element of BYTES is its length (uint32)
and the bytes.
"""

from __future__ import annotations

import base64
import io
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
LONGEST_SIDE = 2**13  # pixels; what metadata say is untrusted, and an image is resized to it


@dataclass(frozen=True, slots=True)
class Input:
    """The input that takes one image.

    Attributes:
        name: the tensor's.
        datatype: BYTES (an image's file), UINT8 (its pixels in [0, 255]), or FP32 and FP16
            (normalised pixels).
        shape: as the model declares it; -1 is any.
        layout: of pixels: CHW or HWC.
        mean: of each channel: a normalised number is (pixel / 255 - mean) / std.
        std: see ``mean``.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    layout: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels; -1 is any. (-1, -1) for files."""
        if self.datatype == "BYTES":
            return -1, -1
        height, width = self.shape[-2:] if self.layout == "CHW" else self.shape[-3:-1]
        return height, width

    def array(self, payload: Payload) -> NDArray[Any]:
        """Return the image's numbers, in the declared rank.

        An image of another size is squashed to the model's (bicubic). FP32 arithmetic.
        """
        image = (
            payload.image
            if payload.image is not None
            else Image.open(io.BytesIO(payload.data)).convert("RGB")
        )
        height, width = (
            have if want < 0 else want
            for want, have in zip(self.size, image.size[::-1], strict=True)
        )
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels: NDArray[Any] = np.asarray(image)
        if self.datatype != "UINT8":
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            pixels = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        pixels = pixels.transpose(2, 0, 1) if self.layout == "CHW" else pixels
        pixels = pixels.astype(PIXELS[self.datatype])
        return np.ascontiguousarray(pixels[None] if len(self.shape) == 4 else pixels)

    def tensor(self, image: Payload, *, binary: bool) -> tuple[dict[str, Any], bytes]:
        """Return the tensor's JSON, and what follows the JSON in the binary form."""
        if self.datatype == "BYTES":
            shape = [1] * max(len(self.shape), 1)
            data, tail = [base64.b64encode(image.data).decode("ascii")] if not binary else [], b""
            if binary:
                tail = len(image.data).to_bytes(4, "little") + image.data
        else:
            array = self.array(image)
            shape, tail = list(array.shape), array.tobytes() if binary else b""
            data = [] if binary else array.ravel().tolist()
        told = {"parameters": {"binary_data_size": len(tail)}} if binary else {"data": data}
        return {"name": self.name, "shape": shape, "datatype": self.datatype} | told, tail


def choose_input(inputs: Sequence[Any], given: Mapping[str, Any], told: Mapping[str, Any]) -> Input:
    """Return the input for the image: the one that option ``input`` names, or the first that can
    take one.

    Args:
        inputs: the model's metadata, untrusted.
        given: the options ``input``, ``layout``, ``mean``, ``std``.
        told: the model's own ``mean`` and ``std``, where its metadata holds them.

    Raises:
        ConfigurationError: there is none, or what it needs is not known; the message says how to
            give it.
    """
    for item in inputs:
        name, datatype, shape = (
            item.get(key) if isinstance(item, dict) else None
            for key in ("name", "datatype", "shape")
        )
        if (
            not isinstance(name, str)
            or not isinstance(shape, list)
            or given.get("input", name) != name
        ):
            continue
        if not isinstance(datatype, str) or not all(
            isinstance(n, int) and not isinstance(n, bool) for n in shape
        ):
            continue
        if datatype == "BYTES" or (datatype in PIXELS and len(shape) in (3, 4)):
            return _complete(Input(name, datatype, tuple(shape)), given, told)
    wish = f"an input named {given['input']!r}" if "input" in given else "an input"
    raise ConfigurationError(
        f"the model has no input that takes an image: expected {wish} of BYTES, or of UINT8, FP32 "
        "or FP16 with three "
        "or four axes; name it with options: input, datatype, shape"
    )


def _complete(found: Input, given: Mapping[str, Any], told: Mapping[str, Any]) -> Input:
    if found.datatype == "BYTES":
        return found
    first, last = found.shape[-3] == 3, found.shape[-1] == 3
    layout = given.get("layout", "").upper().removeprefix("N") or (
        "CHW" if first and not last else ""
    )
    layout = layout or ("HWC" if last and not first else "")
    if layout not in ("CHW", "HWC"):
        raise ConfigurationError(
            f"the model's input has the shape {list(found.shape)}, which does not tell where the "
            "three channels are; "
            "give options: layout, CHW or HWC"
        )
    plain = Input(found.name, found.datatype, found.shape, layout)
    if not all(side < 0 or 0 < side <= LONGEST_SIDE for side in plain.size):
        raise ConfigurationError(
            f"the model's input has the shape {list(found.shape)}, expected sides of 1 to "
            f"{LONGEST_SIDE} pixels, or -1"
        )
    if found.datatype == "UINT8":
        return plain
    mean, std = (
        _three(key, given[key] if key in given else told.get(key)) for key in ("mean", "std")
    )
    if not all(std):
        raise ConfigurationError("options: std: got a zero, expected numbers to divide by")
    return replace(plain, mean=mean, std=std)


def _three(name: str, value: Any) -> tuple[float, ...]:
    """Read ``[0.5, 0.5, 0.5]``, ``[0.5]``, 0.5, or one of them as text."""
    if isinstance(value, str):
        value = _list(value)
    numbers = value if isinstance(value, list) else [value]
    fine = all(
        isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 1e9 for n in numbers
    )
    if not fine or len(numbers) not in (1, 3):
        raise ConfigurationError(
            "the model takes normalised pixels, (pixel / 255 - mean) / std, and does not tell its "
            f"{name}: expected "
            "three numbers; give options: mean and std, for example [0.485, 0.456, 0.406] and "
            "[0.229, 0.224, 0.225]"
        )
    return tuple(float(n) for n in numbers) * (3 if len(numbers) == 1 else 1)


def _list(text: str) -> Any:
    """Read a list from metadata that hold texts only: JSON, or numbers with commas."""
    try:
        return json.loads(text if text.strip().startswith("[") else f"[{text}]")
    except (ValueError, RecursionError):
        return None


def texts(value: Any) -> tuple[str, ...]:
    """Return the class names that metadata hold as a list, or as JSON text; empty where they do
    not.
    """
    value = _list(value) if isinstance(value, str) else value
    fine = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return tuple(value) if fine else ()


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of an answer.

    Attributes:
        name: of the tensor.
        datatype: for example FP32.
        shape: its axes.
        data: its elements in row-major order; texts for BYTES.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] = field(repr=False)


def outputs(response: WireResponse) -> list[Output]:
    """Return the tensors of an answer, JSON or binary.

    Raises:
        MalformedAnswerError: it is none.
    """
    length = response.headers.get(HEADER)
    if length is not None and not (
        length.isdecimal() and len(length) < 20 and int(length) <= len(response.body)
    ):
        raise MalformedAnswerError(length[:20], f"at most {len(response.body)}", f"{HEADER}: ")
    head = response.body if length is None else response.body[: int(length)]
    document = WireResponse(response.status, {}, head).json()
    found = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(found, list) or not found:
        raise MalformedAnswerError(head, "outputs")
    rest, tensors = response.body[len(head) :], []
    for item in found:
        output, rest = _output(item, rest)
        tensors.append(output)
    return tensors


def _output(item: Any, rest: bytes) -> tuple[Output, bytes]:
    """Read one tensor; returns what follows it in the binary part."""
    fields = item if isinstance(item, dict) else {}
    name, datatype, shape = fields.get("name"), fields.get("datatype"), fields.get("shape")
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
        data, rest = _unpacked(datatype, rest[:size]), rest[size:]
    if len(data) != math.prod(shape):
        raise MalformedAnswerError(f"{len(data)} elements", f"as many as the shape {shape} has")
    return Output(name, datatype, tuple(shape), data), rest


def _flat(data: Any) -> list[Any]:
    """Return JSON's elements in row-major order, flat or nested."""
    if not isinstance(data, list):
        raise MalformedAnswerError(json.dumps(data), "a list", "the data ")
    flat: list[Any] = data
    while flat and all(isinstance(item, list) for item in flat):
        flat = [element for item in flat for element in item]
    return flat


def _unpacked(datatype: str, data: bytes) -> list[Any]:
    kind = FLOATS.get(datatype)
    if kind is not None and len(data) % int(kind[-1]) == 0:
        return [float(number) for number in np.frombuffer(data, np.dtype(kind))]
    if datatype != "BYTES":
        raise MalformedAnswerError(
            f"{len(data)} bytes", f"whole numbers of {', '.join(FLOATS)}", f"{datatype} with "
        )
    elements, place = [], 0
    while place < len(data):
        start, rest = place + 4, len(data) - place
        place = start + int.from_bytes(data[place:start], "little")
        if place > len(data):
            raise MalformedAnswerError(
                f"{rest} bytes", f"{rest + place - len(data)}", "an element of BYTES with "
            )
        elements.append(data[start:place].decode("utf-8", "replace"))
    return elements
