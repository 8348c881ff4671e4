"""Lists of images: one path per line, or a manifest with labels (CSV or JSON Lines).

A manifest has the columns or keys ``path``, ``label`` and, optional, ``split``. Relative paths are
relative to the manifest; those of a plain list are relative to the working folder.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgn_client.errors import ConfigurationError, reason
from pgn_client.imaging.codecs import describe
from pgn_client.imaging.opening import open_regular

LARGEST = 64_000_000
"""Largest size of a list in bytes."""
STDIN = "-"
COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class Listed:
    """One image in a list.

    Attributes:
        path: Path of the image.
        line: Number of the line in the list, from 1.
        label: Class name; ``None`` without one.
        split: Split as the list has it, such as ``train``; ``None`` without one.
    """

    path: Path
    line: int
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class ImageList:
    """A list of images.

    Attributes:
        images: Images in the order of the list.
        is_manifest: Whether the list has named columns or keys, such as labels.
    """

    images: tuple[Listed, ...]
    is_manifest: bool


def read_list(source: str | os.PathLike[str]) -> ImageList:
    """Read a list of images from a file, or from stdin if ``source`` is ``-``.

    The text is UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        ConfigurationError: The list cannot be read, is empty, or has a line that names no path.
    """
    if os.fspath(source) == STDIN:
        name = "stdin"
        # A test or a notebook may put a text stream without bytes in the place of stdin.
        stream = getattr(sys.stdin, "buffer", None)
        text = sys.stdin.read() if stream is None else _text(stream.read(LARGEST + 1), name)
        folder = Path()
    else:
        name = describe(source)
        text = _text(_content(source, name), name)
        folder = Path(source).parent

    _check_nul(text, name)
    images = _parsed(text, name, folder)
    if not images.images:
        raise ConfigurationError(f"{name}: got an empty list, expected one path per line")
    return images


def _content(source: str | os.PathLike[str], name: str) -> bytes:
    try:
        with open_regular(source) as file:
            return file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{name}: cannot be read ({reason(error)}), expected an image, a folder or a list "
            "of paths; check the path"
        ) from None


def _text(content: bytes, name: str) -> str:
    if len(content) > LARGEST:
        raise ConfigurationError(
            f"{name}: got more than {LARGEST:,} bytes, expected an image or a list of paths; "
            "divide the list"
        )
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(
            f"{name}: neither an image nor a text file with one path per line; save a list as UTF-8"
        ) from None


def _check_nul(text: str, name: str) -> None:
    place = text.find("\0")
    if place >= 0:
        line = text.count("\n", 0, place) + 1
        raise ConfigurationError(
            f"{name}: got a NUL character in line {line}, expected one path per line; save the "
            "list as UTF-8"
        )


def _parsed(text: str, name: str, folder: Path) -> ImageList:
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("{"):
        return ImageList(tuple(_from_json_lines(lines, name, folder)), True)

    delimiter = _delimiter(first)
    if delimiter is not None:
        return ImageList(tuple(_from_csv(text, name, folder, delimiter)), True)
    return ImageList(
        tuple(
            Listed(Path(line.strip()), number)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ),
        False,
    )


def _delimiter(header: str) -> str | None:
    """Return the character between the columns of a manifest; ``None`` for a plain list."""
    for delimiter in (",", ";", "\t"):
        if "path" in _names(header.split(delimiter)):
            return delimiter
    return None


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().strip('"').lower() for cell in cells]


def _from_csv(text: str, name: str, folder: Path, delimiter: str) -> Iterator[Listed]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _names(cells)
                continue
            row = dict(zip(header, cells, strict=False))
            yield _listed(row, name, folder, reader.line_num)
    except csv.Error as error:
        raise ConfigurationError(
            f"{name}: line {reader.line_num} is no CSV ({error}); check the quotes"
        ) from None


def _from_json_lines(lines: list[str], name: str, folder: Path) -> Iterator[Listed]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ConfigurationError(
                f'{name}: line {number} is no JSON object, expected {{"path": ..., "label": ...}}'
            )
        yield _listed(row, name, folder, number)


def _listed(row: Mapping[str, Any], name: str, folder: Path, line: int) -> Listed:
    """Return one row of a manifest.

    Raises:
        ConfigurationError: It has no path, or a value that is neither text nor a number.
    """
    values: dict[str, str | None] = {}
    for column in COLUMNS:
        value = row.get(column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise ConfigurationError(
                f"{name}: line {line} has the {column} {value!r:.40}, expected text"
            )
        values[column] = None if value is None else str(value).strip() or None

    path = values["path"]
    if path is None or "\0" in path:
        raise ConfigurationError(f"{name}: line {line} has no path, expected one in every line")
    return Listed(folder / path, line, values["label"], values["split"])
