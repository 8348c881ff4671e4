"""Base of the frozen dataclasses that are read from JSON as their annotations say.

Every value is checked when it is read. A subclass of :class:`Entry` declares its keys as fields.
A field's type may be ``str``, ``int``, ``float``, ``bool``, ``Any``, ``Literal``, another entry, a
``tuple`` or ``Mapping`` of these, one of these or ``None``, and ``Annotated`` with :class:`Bounds`.
A number keeps its JSON type (``1`` is a valid ``float``), so that an entry is written exactly as it
was read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pgn_client.errors import CheckpointError, printable

LONGEST_SHOWN = 200
"""Largest number of characters of a file's text that an error message shows."""
E = TypeVar("E", bound="Entry")
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Bounds:
    """Inclusive bounds for the value of a number, or for the length of a text or list.

    Attributes:
        least: Smallest allowed value or length.
        most: Greatest allowed value or length.
    """

    least: float
    most: float

    def __str__(self) -> str:
        return f"from {self.least:g} to {self.most:g}"


NULL: Mapping[str, Any] = {"null": True}
"""Metadata of a field whose ``None`` is written as ``null``; else a ``None`` is left out."""


@dataclass(frozen=True)
class Entry:
    """Base of a checkpoint card and its parts: read from JSON, checked, written to JSON.

    Attributes:
        extra: Keys that this version does not declare, with their values; they are written back
            unchanged.
    """

    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

    @classmethod
    def from_json(cls: type[E], value: Any, where: str = "") -> E:
        """Return the entry of this class that a JSON object describes, with every value checked.

        Args:
            value: Value that ``json.loads`` returned.
            where: Dotted path of the entry on the card, for error messages.

        Raises:
            CheckpointError: A key is missing, or a value is of another type or out of bounds.
        """
        if not isinstance(value, Mapping):
            raise _refused(where or "the card", value, "an object")

        # mypy rejects a type variable as the argument of a cached function.
        key: Any = cls
        types, required = _keys(key)

        fields_read: dict[str, Any] = {}
        for name, kind in types.items():
            place = f"{where}.{name}" if where else name
            if name in value:
                fields_read[name] = _read(kind, value[name], place)
            elif name in required:
                raise CheckpointError(f"{shown(place)} is missing")

        extra = {name: value[name] for name in value if name not in types}
        return cls(**fields_read, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as an object for ``json.dumps``.

        A field that is ``None`` is left out, unless its metadata is :data:`NULL`.
        """
        written = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "extra" and (value is not None or "null" in entry.metadata):
                written[entry.name] = _written(value)
        # A copy, so that a caller who changes what it was given does not change this entry.
        return written | copy.deepcopy(dict(self.extra))


# Cached, because evaluating annotations is slow, and a card has many entries of the same type.
@cache
def _keys(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the type of every key of an entry, and the names of its required keys."""
    hints = get_type_hints(cls, include_extras=True)
    declared = [entry for entry in fields(cls) if entry.name != "extra"]
    required = frozenset(entry.name for entry in declared if entry.default is MISSING)
    return {entry.name: hints[entry.name] for entry in declared}, required


def _read(kind: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the type ``kind``, or raise a ``CheckpointError``."""
    origin = get_origin(kind)
    arguments = get_args(kind)

    if kind is Any:
        return value
    if origin is Annotated:
        return _bounded(_read(arguments[0], value, where), arguments[1], where)
    if origin in (Union, UnionType):
        if value is None:
            return None
        # The class docstring allows one type beside None; a second one would fail here.
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _read(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise _refused(where, value, f"one of {', '.join(arguments)}")
        return value
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    # The origin of a plain type is None, which issubclass does not take.
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _refused(where, value, "an object")
        return {
            name: _read(arguments[1], inner, f"{where}.{name}") for name, inner in value.items()
        }
    if issubclass(kind, Entry):
        return kind.from_json(value, where)

    # In Python True is an int, but in JSON true is not a number. The abstract types include NumPy's
    # numbers, which the ``info`` of a user's own adapter may hold.
    allowed = {int: Integral, float: Real}.get(kind, kind)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise _refused(where, value, _NAMES[kind])
    return value if isinstance(value, int | float | str) else kind(value)


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """Return a JSON list as a tuple of any length (``tuple[T, ...]``) or of a fixed length."""
    if not isinstance(value, list | tuple):
        raise _refused(where, value, "a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise _refused(where, value, f"a list of {len(arguments)}")
    return tuple(
        _read(kind, inner, f"{where}[{i}]")
        for i, (kind, inner) in enumerate(zip(arguments, value, strict=True))
    )


def _bounded(value: Any, bounds: Bounds, where: str) -> Any:
    size = value if isinstance(value, int | float) else len(value)
    # The comparison is false for NaN, and for infinite numbers because all bounds are finite.
    if not bounds.least <= size <= bounds.most:
        expected = f"{bounds}" if isinstance(value, int | float) else f"{bounds} long"
        raise _refused(where, value, expected)
    # A line break or an escape sequence would end up in messages and on terminals.
    if isinstance(value, str) and not value.isprintable():
        raise _refused(where, value, "text without control characters")
    return value


def _refused(where: str, value: Any, expected: str) -> CheckpointError:
    rendered = repr(value)
    if len(rendered) > 60:
        rendered = f"{rendered[:60]}…"
    return CheckpointError(f"{shown(where)}: got {rendered}, expected {expected}")


def shown(text: str) -> str:
    """Return a file's text as an error message shows it: printable, one line, shortened."""
    escaped = printable(text)
    return escaped if len(escaped) <= LONGEST_SHOWN else f"{escaped[:LONGEST_SHOWN]}…"


def _written(value: Any) -> Any:
    if isinstance(value, Entry):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _written(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_written(inner) for inner in value]
    return value
