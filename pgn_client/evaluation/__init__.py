"""The study: a prompt and its rivals on the same images, and what they say together."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Find the names of the module that this package was in version 0.1, for one release."""
    study = "pgn_client.evaluation.study"
    if name.startswith("_") or not hasattr(import_module(study), name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__}.{name} has moved to {study}; the old path goes with the next release",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(import_module(study), name)
