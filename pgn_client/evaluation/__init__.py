"""The study: a prompt and its rivals on the same images, and what they say together."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

MOVED = {"Note": "study", "Report": "results", "evaluate": "study"}
"""Names of the module that this package was in version 0.1; found here for one release."""


if not TYPE_CHECKING:  # a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"{__name__}.{name} has moved to {__name__}.{MOVED[name]}; the old path goes with the "
            "next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(f"{__name__}.{MOVED[name]}"), name)
