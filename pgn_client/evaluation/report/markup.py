"""HTML and SVG as strings: whatever is not markup already is escaped, so that no label of a task can become any."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is markup already. Whatever is made of it by other means than these functions is plain text again."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """Return an element with its end tag; plain children and all values of attributes are escaped.

    Attributes are written as in Python: ``class_`` is class, ``stroke_width`` is stroke-width.
    """
    return Markup(f"{_start(name, attributes)}>{join(children)}</{name}>")


def void(name: str, /, **attributes: str | float) -> Markup:
    """Return an element that has no end tag: meta, img."""
    return Markup(_start(name, attributes) + ">")


def join(parts: Iterable[str], between: str = "") -> Markup:
    """Join parts, of which those that are no markup are escaped."""
    return Markup(between.join(part if isinstance(part, Markup) else escape(part) for part in parts))


def _start(name: str, attributes: dict[str, str | float]) -> str:
    written = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:g}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}" + "".join(written)
