"""Compare a prompt with rivals, such as raw images or a local classifier, on the same images."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

MOVED = {"Note": "study", "Report": "results", "evaluate": "study"}
"""Name that version 0.1 had in this package → submodule that has it now. The old path works for one
more release.
"""


if not TYPE_CHECKING:  # with a module __getattr__, a type checker would accept any misspelled name

    def __getattr__(name: str) -> Any:
        if name not in MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(
            f"{__name__}.{name} has moved to {__name__}.{MOVED[name]}; the next release removes "
            "the old path",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(f"{__name__}.{MOVED[name]}"), name)
