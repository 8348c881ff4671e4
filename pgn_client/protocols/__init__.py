"""One file per wire format; no I/O here. To add one: write the class, add it to ``PROTOCOLS``."""

from __future__ import annotations

from urllib.parse import urlsplit

from pgn_client.endpoint import Endpoint
from pgn_client.errors import ConfigurationError
from pgn_client.protocols.base import Described, MalformedAnswerError, Payload, Protocol, WireRequest, WireResponse
from pgn_client.protocols.huggingface import HuggingFace
from pgn_client.protocols.pgn import PGN

PROTOCOLS: dict[str, type[Protocol]] = {"huggingface": HuggingFace, "pgn": PGN}
ASKED: tuple[str, ...] = ("pgn",)
"""Which formats ``auto`` asks for, one cheap question each, in this order; Hugging Face's is what is left."""

__all__ = [
    "PGN",
    "PROTOCOLS",
    "Described",
    "HuggingFace",
    "MalformedAnswerError",
    "Payload",
    "Protocol",
    "WireRequest",
    "WireResponse",
    "check_name",
    "open_protocol",
    "possible",
]


def check_name(name: str) -> None:
    """Raise for a name that is no wire format's.

    Raises:
        ConfigurationError: there is none; the message lists the known names.
    """
    if name not in ("auto", *PROTOCOLS):
        raise ConfigurationError(f"protocol: got {name!r}, expected auto, {', '.join(sorted(PROTOCOLS))}")


def open_protocol(endpoint: Endpoint) -> Protocol:
    """Return the endpoint's wire format; where it is ``auto``, the one that nobody has to ask for: Hugging Face's."""
    check_name(endpoint.protocol)
    name = "huggingface" if endpoint.protocol == "auto" else endpoint.protocol
    return PROTOCOLS[name].of(endpoint)


def possible(endpoint: Endpoint) -> tuple[list[Protocol], Protocol]:
    """Return the wire formats to ask for, and what is spoken if none of them is recognised.

    A format that is named, or that the URL's path tells, is asked only about its model.
    """
    path = urlsplit(endpoint.url).path
    told = [kind.of(endpoint) for kind in PROTOCOLS.values() if endpoint.protocol == "auto" and kind.recognises(path)]
    if endpoint.protocol != "auto" or told:
        known = told[0] if told else open_protocol(endpoint)
        return [known], known
    return [PROTOCOLS[name].of(endpoint) for name in ASKED], open_protocol(endpoint)
