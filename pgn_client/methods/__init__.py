"""Ways to make a prompt, one file each, one registry. Adding one touches its file and the line below."""

from __future__ import annotations

from pgn_client.errors import ConfigurationError
from pgn_client.methods.input_independent import InputIndependent
from pgn_client.methods.pgn import PGN, Rates

REGISTRY: dict[str, type[PGN]] = {method.name: method for method in (PGN, InputIndependent)}

__all__ = ["PGN", "REGISTRY", "InputIndependent", "Rates", "get"]


def get(name: str) -> type[PGN]:
    """Return a method by name.

    Raises:
        ConfigurationError: unknown.
    """
    if name not in REGISTRY:
        raise ConfigurationError(f"method: got {name!r}, expected one of {', '.join(REGISTRY)}")
    return REGISTRY[name]
