"""Reading and writing of checkpoint files: written atomically, verified when read.

A checkpoint holds tensors and a card, the metadata. The fingerprint is the SHA-256 over the card
(as canonical JSON, without the fingerprint), and over every tensor's name, dtype, shape and bytes.
This module treats the card as JSON; the module ``card`` defines its fields.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from pgn_client.checkpoint.card import HOSTED, SCHEMA
from pgn_client.checkpoint.entry import shown
from pgn_client.errors import CheckpointError, reading, reason
from pgn_client.imaging.files import whole_file
from pgn_client.imaging.opening import open_regular

_HEADER_KEY = "pgn_client"
_HOSTED_SCHEMA = 1
"""Schema, the card format's version, of checkpoints that run on the server.

It stays at 1, because servers of other versions must be able to read them.
"""

MOST_LEVELS = 64
"""Deepest nesting of a card; a deeper one would exceed Python's recursion limit in other code."""

Arrays = dict[str, NDArray[Any]]


def fingerprint(card: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return a checkpoint's fingerprint: the SHA-256 over its card and all its tensors.

    The card is hashed as canonical JSON, without the fingerprint.
    """
    bare = {key: value for key, value in card.items() if key != "fingerprint"}
    digest = hashlib.sha256(_canonical(bare).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str], card: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """Write a checkpoint atomically.

    Args:
        path: Path to write.
        card: Card, the metadata, as JSON. A card with an older schema keeps that schema.
        tensors: Arrays by name.

    Returns:
        The card with its schema and fingerprint.

    Raises:
        CheckpointError: The file cannot be written.
    """
    # An older schema is kept, because the fingerprint covers it and must not change with each save.
    newest = _HOSTED_SCHEMA if card.get("method") == HOSTED else SCHEMA
    full = {**card, "schema": min(card.get("schema", newest), newest)}
    full["fingerprint"] = fingerprint(full, tensors)

    # safetensors writes the memory of an array as it lies, so a view would be saved wrongly.
    data = save(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()},
        metadata={_HEADER_KEY: _canonical(full)},
    )

    path = Path(path)
    try:
        with whole_file(path) as partial:
            partial.write_bytes(data)
    # ValueError: a path that contains a zero byte.
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path}: cannot be written ({reason(error)}); choose another place"
        ) from error
    return full


def read_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the card of a checkpoint file, its metadata as JSON, without reading the tensors.

    Raises:
        CheckpointError: The file is missing, a pickle, truncated, not a PGN checkpoint, or has a
            newer schema.
    """
    with _border(path):
        _refuse_other_files(Path(path))
        with safe_open(path, framework="np") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
        return _checked_card(header, path)


def fingerprint_of(path: str | os.PathLike[str]) -> str:
    """Return the fingerprint in a checkpoint's card, without reading or verifying the tensors.

    Raises:
        CheckpointError: :func:`read_card` fails, or the card has no fingerprint.
    """
    recorded = read_card(path).get("fingerprint")
    if not isinstance(recorded, str):
        raise CheckpointError(f"checkpoint {path}: its card has no fingerprint; train it again")
    return recorded


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Arrays]:
    """Return the card (the metadata) and the tensors of a checkpoint file, after verifying them.

    Raises:
        CheckpointError: :func:`read_card` fails, the tensors cannot be read, or the contents do not
            match the fingerprint.
    """
    card = read_card(path)
    with _border(path):
        with safe_open(path, framework="np") as file:
            # NumPy has no bfloat16, and raises a TypeError for such a tensor.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        # Canonical JSON refuses NaN and infinite numbers, which json.loads accepts.
        computed = fingerprint(card, tensors)
    if computed != card.get("fingerprint"):
        raise CheckpointError(
            f"checkpoint {path}: its contents do not match its fingerprint; copy or train it again"
        )
    return card, tensors


def _refuse_other_files(path: Path) -> None:
    with open_regular(path) as file:
        start = file.read(16)
    # A safetensors file starts with eight bytes for the header's length, which may look like the
    # start of a pickle; then follows the JSON header, which starts with a brace.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        raise CheckpointError(
            f"checkpoint {path}: got a pickle, which could run code; expected safetensors written "
            "by pgn train"
        )


def _checked_card(header: str | None, path: str | os.PathLike[str]) -> dict[str, Any]:
    if header is None:
        raise CheckpointError(
            f"checkpoint {path}: safetensors without a PGN card; expected a file written by "
            "pgn train"
        )
    card: dict[str, Any] = json.loads(header)
    if _levels(card) > MOST_LEVELS:
        raise ValueError(f"nested in more than {MOST_LEVELS} levels")
    schema = int(card["schema"])
    if schema > SCHEMA:
        raise CheckpointError(
            f"checkpoint {path}: got schema {shown(str(schema))}, expected at most {SCHEMA}; "
            "upgrade: pip install -U pgn-client"
        )
    return card


def _levels(value: Any) -> int:
    """Return how many lists and objects lie inside one another in a JSON value, at most.

    The count ends above ``MOST_LEVELS``.
    """
    levels = 0
    inside = [value]
    while inside and levels <= MOST_LEVELS:
        containers = [item for item in inside if isinstance(item, dict | list)]
        inside = []
        for container in containers:
            inside += container.values() if isinstance(container, dict) else container
        levels += bool(containers)
    return levels


def _border(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Context manager around the reading of a checkpoint: all that is wrong is one error."""
    remedy = "expected a whole file written by pgn train"
    return reading(f"checkpoint {path}", remedy, CheckpointError)


def _canonical(card: Mapping[str, Any]) -> str:
    return json.dumps(
        card, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
