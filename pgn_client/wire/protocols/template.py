"""Templates of request bodies: JSON or a text with placeholders for the image and the model."""

from __future__ import annotations

import base64
from typing import Any

from pgn_client.wire.protocols.base import Payload

PLACEHOLDERS = ("{base64}", "{data_url}")


def fill(template: Any, image: Payload, model: str | None = None) -> Any:
    """Return a copy of a request template with the image and the model's name filled in.

    ``{base64}``, ``{data_url}`` and ``{model}`` are replaced in every text, but not in the keys of
    objects.

    Args:
        template: Template as parsed JSON: an object, a list, a text, or another value.
        image: Image for ``{base64}`` and ``{data_url}``.
        model: Name for ``{model}``; None replaces it by an empty text.
    """
    encoded = base64.b64encode(image.data).decode("ascii")
    values = {
        "{base64}": encoded,
        "{data_url}": f"data:{image.media_type};base64,{encoded}",
        "{model}": model or "",
    }
    return _filled(template, values)


def _filled(part: Any, values: dict[str, str]) -> Any:
    if isinstance(part, dict):
        return {key: _filled(value, values) for key, value in part.items()}
    if isinstance(part, list):
        return [_filled(item, values) for item in part]
    if isinstance(part, str):
        # The order does not matter: base64 has no braces, so no value contains a placeholder.
        for name, value in values.items():
            part = part.replace(name, value)
    return part


def holds_image(template: Any) -> bool:
    """Whether a template has a place for the image: ``{base64}`` or ``{data_url}`` in a text.

    The keys of objects are no such place: ``fill`` leaves them unchanged.
    """
    if isinstance(template, dict):
        return any(holds_image(value) for value in template.values())
    if isinstance(template, list):
        return any(holds_image(item) for item in template)
    return isinstance(template, str) and any(name in template for name in PLACEHOLDERS)
