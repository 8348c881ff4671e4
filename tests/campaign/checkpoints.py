"""Damaged and crafted checkpoints: each is a ``CheckpointError`` in one line, or it works."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pgn_client.errors import CheckpointError
from pgn_client.prompting.adapter import PromptAdapter, load
from pgn_client.types import Answer
from tests.campaign.cases import MIB, ROOT, Fault, checked, what
from tests.campaign.commands import command
from tests.campaign.mutate import INTEGERS, json_text, mutated, odd_document

FILES = ROOT / "tests/compatibility/files"
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
SIZES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "X99": 4}

Header = dict[str, Any]


def taken_apart(data: bytes) -> tuple[Header, Header, dict[str, bytes]]:
    """Return a file's card, and descriptions and bytes of its tensors."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    card = json.loads(header.pop("__metadata__")["pgn_client"])
    rest = data[8 + length :]
    parts = {name: rest[slice(*told["data_offsets"])] for name, told in header.items()}
    return card, header, parts


def put_together(card: str, header: Header, parts: dict[str, bytes]) -> bytes:
    """Return the file of a card and tensors."""
    place = 0
    told = {"__metadata__": {"pgn_client": card}}
    for name, data in parts.items():
        told[name] = {**header[name], "data_offsets": [place, place + len(data)]}
        place += len(data)
    text = json.dumps(told).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts.values())


TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
TYPES |= {"BOOL": "|b1", "U16": "<u2"}


def signed(card: Any, header: Header, parts: dict[str, bytes]) -> Any:
    """Return a card with its fingerprint over itself and these tensors."""
    if not isinstance(card, dict):
        return card
    bare = {key: value for key, value in card.items() if key != "fingerprint"}
    text = json.dumps(bare, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(parts):
        dtype = TYPES.get(header[name]["dtype"], "?")
        digest.update(f"{name} {dtype} {tuple(header[name]['shape'])}".encode())
        digest.update(parts[name])
    return {**card, "fingerprint": digest.hexdigest()}


class Checkpoints:
    """One file: loaded, used if that worked, and inspected."""

    name = "checkpoints"
    workers = 1
    memory = 1024 * MIB
    hang = 60

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        import torch

        torch.set_num_threads(1)
        self.folder = folder
        self.files = {
            path.name.partition(".")[0]: gzip.decompress(path.read_bytes())
            for path in sorted(FILES.glob("*.safetensors.gz"))
        }
        self.image = Image.fromarray(
            np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        )
        # The first use imports what all others need; it must not run against the limit of memory.
        self._judge(self._written(self.files["pgn_pixel"], 0), "whole", whole=True)
        yield

    def play(self, rng: random.Random, index: int) -> str:
        # The small files are as good for most mutations, and faster.
        names = sorted(self.files, key=lambda name: len(self.files[name]))
        name = rng.choice(names[:6] if rng.random() < 0.3 else names)
        data = self.files[name]
        way = rng.choices(("bytes", "header", "card", "tensors"), (3, 2, 4, 3))[0]
        if way == "bytes":
            data = self._changed_bytes(data, rng)
        elif way == "header":
            length = struct.unpack("<Q", data[:8])[0]
            header = odd_document(json.loads(data[8 : 8 + length]), rng)
            text = json_text(header, rng).encode("utf-8", "surrogatepass")
            data = struct.pack("<Q", len(text)) + text + data[8 + length :]
        elif way == "card":
            card, header, parts = taken_apart(data)
            card = signed(odd_document(card, rng), header, parts)
            data = put_together(json_text(card, rng), header, parts)
        else:
            data = self._changed_tensors(*taken_apart(data), rng)
        path = self._written(data, index)
        try:
            return f"{way}: {self._judge(path, f'{name}, {way}')}"
        finally:
            path.unlink()

    @staticmethod
    def _changed_bytes(data: bytes, rng: random.Random) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        draw = rng.random()
        if draw < 0.2:
            size = rng.choice((*INTEGERS, length + 1, length - 1, 2**63, 2**40, len(data)))
            return struct.pack("<Q", size) + data[8:]
        if draw < 0.7:
            return mutated(data[: 8 + length], rng) + data[8 + length :]
        return mutated(data, rng)

    @staticmethod
    def _changed_tensors(
        card: Header, header: Header, parts: dict[str, bytes], rng: random.Random
    ) -> bytes:
        name = rng.choice(sorted(parts))
        told = header[name]
        shape = list(told["shape"])
        way = rng.randrange(8)
        if way == 0:
            del parts[name]
        elif way == 1:
            other = rng.choice(("x", "", f"{name}.x", "mapping.weight", "a\x1b[2Jb", "n" * 5000))
            header[other] = told
            parts[other] = parts.pop(name)
        elif way == 2:
            told["dtype"] = dtype = rng.choice(list(SIZES))
            parts[name] = bytes(SIZES[dtype] * int(np.prod(shape, dtype=np.int64)))
        elif way == 3:
            told["shape"] = rng.choice(
                (shape[::-1], [int(np.prod(shape))], [1, *shape], [*shape, 1])
            )
        elif way == 4:
            told["shape"] = [0, *shape[1:]]
            parts[name] = b""
        elif way == 5:
            grown = [2 * shape[0], *shape[1:]] if shape else [2]
            told["shape"] = grown
            parts[name] *= 2
        elif way == 6:
            told["shape"] = []
            parts[name] = parts[name][: SIZES.get(told["dtype"], 4)]
        else:
            value = rng.choice((np.nan, np.inf, 1e38, -1e38, 0.0))
            values = np.frombuffer(parts[name], np.uint8).copy()
            if told["dtype"] == "F32":
                values.view(np.float32)[: rng.choice((1, 10**9))] = value
            parts[name] = values.tobytes()
        return put_together(json.dumps(signed(card, header, parts)), header, parts)

    def _written(self, data: bytes, index: int) -> Path:
        path = self.folder / f"{index}.safetensors"
        path.write_bytes(data)
        return path

    def _judge(self, path: Path, said: str, *, whole: bool = False) -> str:
        try:
            inspected = command("inspect", path, accept=(0, 2))
            loaded = self._loaded(path, whole=whole)
        except Fault as fault:
            raise Fault(f"{said}: {fault}") from fault
        except Exception as error:
            raise Fault(f"{said}: {what(error)}") from error
        return f"inspect {inspected}, {loaded}"

    def _loaded(self, path: Path, *, whole: bool) -> str:
        try:
            adapter = load(path, None)
        except Exception as error:
            if whole:
                raise
            return checked(error, CheckpointError)
        try:
            (prepared,) = adapter.prepare([self.image])
            if isinstance(prepared, Exception):
                raise prepared
            if prepared.image.mode != "RGB":
                raise Fault(f"got a {prepared.image.mode} image")
            self._mapped(adapter)
            if isinstance(adapter, PromptAdapter):
                repr(adapter)
        except Fault:
            raise
        # The networks are built at the first use, and refuse tensors that do not fit.
        except CheckpointError as error:
            return f"{checked(error, CheckpointError)} at the first use"
        except Exception as error:
            raise Fault(f"loaded, but does not work: {what(error)}") from error
        return "works"

    @staticmethod
    def _mapped(adapter: Any) -> None:
        mapping = adapter.mapping
        labels = tuple(getattr(mapping, "source", ()))
        if not labels:
            return
        kind = "embedding" if labels[0] == "dim 0" else "probabilities"
        answer = Answer(labels, tuple(1 / len(labels) for _ in labels), kind)
        found = np.asarray(mapping([answer]))
        if found.shape != (1, len(mapping.classes)):
            raise Fault(f"a mapping to {len(mapping.classes)} classes returns {found.shape}")
        if np.isnan(found).any():
            raise Fault("a mapping returns NaN")
