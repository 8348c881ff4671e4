"""One file per wire format; no I/O here. To add one: write the class, add it to ``PROTOCOLS``."""

from __future__ import annotations

from collections.abc import Callable

from pgn_client.errors import ConfigurationError
from pgn_client.protocols.base import MalformedAnswerError, Payload, Protocol, WireRequest, WireResponse
from pgn_client.protocols.huggingface import HuggingFace
from pgn_client.protocols.pgn import PGN

PROTOCOLS: dict[str, Callable[[str], Protocol]] = {"huggingface": HuggingFace, "pgn": PGN}

__all__ = [
    "PGN",
    "PROTOCOLS",
    "HuggingFace",
    "MalformedAnswerError",
    "Payload",
    "Protocol",
    "WireRequest",
    "WireResponse",
    "open_protocol",
]


def open_protocol(name: str, url: str) -> Protocol:
    """Return the wire format of that name, bound to a URL.

    Raises:
        ConfigurationError: there is none; the message lists the known names.
    """
    if name not in PROTOCOLS:
        raise ConfigurationError(f"protocol: got {name!r}, expected auto, {', '.join(sorted(PROTOCOLS))}")
    return PROTOCOLS[name](url)
