"""One file per wire format, or per family of them; no I/O here.

To add one: write the class, add it to ``PROTOCOLS``, and to ``TOLD`` or ``ASKED`` where ``auto``
can find it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import (
    Described,
    MalformedAnswerError,
    Payload,
    Protocol,
    WireRequest,
    WireResponse,
)
from pgn_client.wire.protocols.custom import Custom
from pgn_client.wire.protocols.huggingface import HuggingFace
from pgn_client.wire.protocols.huggingface_tasks import Features, ZeroShot
from pgn_client.wire.protocols.kserve_v1 import V1, Vertex
from pgn_client.wire.protocols.oip import OpenInference
from pgn_client.wire.protocols.openai import Chat, Embeddings
from pgn_client.wire.protocols.pgn import PGN
from pgn_client.wire.protocols.sagemaker import SageMaker
from pgn_client.wire.protocols.torchserve import TorchServe

PROTOCOLS: dict[str, type[Protocol]] = {
    "custom": Custom,
    "huggingface": HuggingFace,
    "huggingface-features": Features,
    "huggingface-zero-shot": ZeroShot,
    "kserve-v1": V1,
    "oip": OpenInference,
    "openai": Chat,
    "openai-embeddings": Embeddings,
    "pgn": PGN,
    "sagemaker": SageMaker,
    "torchserve": TorchServe,
    "vertex": Vertex,
}
TOLD: tuple[str, ...] = (
    "pgn",
    "huggingface-features",
    "huggingface",
    "oip",
    "vertex",
    "kserve-v1",
    "sagemaker",
    "torchserve",
    "openai",
    "openai-embeddings",
)
"""Which formats a URL's path may tell, in this order."""
ASKED: tuple[str, ...] = ("pgn", "oip", "kserve-v1", "openai", "torchserve")
"""Which formats ``auto`` asks for, one cheap question each, in this order; Hugging Face's is what
is left.
"""

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
        raise ConfigurationError(
            f"protocol: got {name!r}, expected auto, {', '.join(sorted(PROTOCOLS))}"
        )


def open_protocol(endpoint: Endpoint) -> Protocol:
    """Return the endpoint's wire format; where it is ``auto``, the one that nobody has to ask for:
    Hugging Face's.
    """
    check_name(endpoint.protocol)
    name = "huggingface" if endpoint.protocol == "auto" else endpoint.protocol
    return PROTOCOLS[name].of(endpoint)


def possible(endpoint: Endpoint) -> tuple[list[Protocol], Protocol]:
    """Return the wire formats to ask for, and what is spoken if none of them is recognised.

    A format that is named, or that the URL's path tells, is asked only about its model.
    """
    path = urlsplit(endpoint.url).path
    told = next((name for name in TOLD if PROTOCOLS[name].recognises(path)), None)
    if endpoint.protocol != "auto" or told:
        known = (
            PROTOCOLS[told].of(endpoint)
            if endpoint.protocol == "auto" and told
            else open_protocol(endpoint)
        )
        return [known], known
    return [PROTOCOLS[name].of(endpoint) for name in ASKED], open_protocol(endpoint)
