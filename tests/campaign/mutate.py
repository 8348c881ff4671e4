"""Mutations of bytes and of JSON documents."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Values at the borders of integer types."""


def _place(data: bytearray, rng: random.Random) -> int:
    # Headers are at the start, so half of the places are there.
    return rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip 1 to 16 bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[_place(changed, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave out the end."""
    return data[: rng.randrange(len(data))]


def dug_out(data: bytes, rng: random.Random) -> bytes:
    """Leave out some bytes in the middle."""
    start = _place(bytearray(data), rng)
    return data[:start] + data[start + rng.randrange(1, 40) :]


def junked(data: bytes, rng: random.Random) -> bytes:
    """Insert random bytes."""
    start = _place(bytearray(data), rng)
    return data[:start] + rng.randbytes(rng.randrange(1, 60)) + data[start:]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    """Replace some bytes by zeros or ones."""
    start = _place(bytearray(data), rng)
    gap = data[start : start + rng.randrange(1, 40)]
    return data[:start] + rng.choice((b"\0", b"\xff")) * len(gap) + data[start + len(gap) :]


def numbered(data: bytes, rng: random.Random) -> bytes:
    """Overwrite a place with an integer at the border of its type."""
    width = rng.choice((1, 2, 4))
    value = rng.choice(INTEGERS) & (256**width - 1)
    start = _place(bytearray(data), rng)
    number = value.to_bytes(width, rng.choice(("big", "little")))
    return data[:start] + number + data[start + width :]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped,
    cut,
    dug_out,
    junked,
    zeroed,
    numbered,
)


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Change bytes once or a few times, or join them with a part of another file."""
    if others and rng.random() < 0.15:
        other = rng.choice(others)
        return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other)) :]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(BYTES)(data, rng) if data else rng.randbytes(8)
    return data


RAW = {
    "@huge": "1e999",
    "@digits": "9" * 5000,
    "@deep": "[" * 100_000 + "]" * 100_000,
    "@deeper": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "@nan": "NaN",
    "@minus": "-Infinity",
}
"""JSON texts that Python's own values cannot spell."""
ODD: tuple[Any, ...] = (
    *RAW,
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 5e-324, 2**31, 2**63, 10**30, -(10**30)),
    *("", " ", "a", "0", "1e999", "NaN", "\0", "\x1b[2J\x1b]0;x\x07", "\ud800", "é", "x" * 3000),
    *([], {}, [[]], [None], [{}], {"": None}, [[], []], [0] * 1000, {"a": {"a": {"a": 1}}}),
)


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document."""
    found = [path]
    if isinstance(document, dict):
        for key, value in document.items():
            found += _places(value, (*path, key))
    elif isinstance(document, list):
        # The first few items stand for all of them.
        for number, value in enumerate(document[:4]):
            found += _places(value, (*path, number))
    return found


def odd_value(value: Any, rng: random.Random) -> Any:
    """Return another value in the place of one."""
    ways = [
        lambda: rng.choice(ODD),
        lambda: [value],
        lambda: {"value": value},
        lambda: str(value),
        lambda: json.dumps(value),
    ]
    if isinstance(value, list) and value:
        ways += [
            lambda: value[:-1],
            lambda: value + value[:1],
            lambda: value[:1] * rng.choice((2, 3000)),
            lambda: value[::-1],
            lambda: [*value, rng.choice(ODD)],
        ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        ways += [lambda: -value, lambda: value * 1e6, lambda: value + 1, lambda: float(value)]
    if isinstance(value, str):
        ways += [lambda: value.upper(), lambda: value + "\u0301", lambda: value[:-1]]
    return rng.choice(ways)()


def odd_document(document: Any, rng: random.Random) -> Any:
    """Return a document with one to three values changed, removed, renamed or added."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(_places(document))
        if not path:
            # The document as a whole is one place of many, and hides all others.
            if rng.random() < 0.3:
                return odd_value(document, rng)
            continue
        inner = document
        for key in path[:-1]:
            inner = inner[key]
        last = path[-1]
        way = rng.random()
        if way < 0.65:
            inner[last] = odd_value(inner[last], rng)
        elif way < 0.85:
            del inner[last]
        elif isinstance(inner, dict):
            inner[f"{last}_"] = inner[last] if way < 0.92 else inner.pop(last)
        else:
            inner.append(rng.choice(ODD))
    return document


def json_text(document: Any, rng: random.Random) -> str:
    """Return a document as JSON, with the texts of ``RAW`` in their places."""
    text = json.dumps(document, ensure_ascii=rng.random() < 0.9)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def json_bytes(document: Any, rng: random.Random) -> bytes:
    """Return a document as the bytes of a JSON file, sometimes in another encoding."""
    text = json_text(document, rng)
    encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "latin-1"))
    return text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")
