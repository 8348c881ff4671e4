"""Wire formats: how a request is encoded and a response decoded, without I/O.

There is one file per format or family of formats. To add a format: write the class and add it to
``PROTOCOLS``. If ``auto`` can detect the format, add it also to ``TOLD`` (detected by the URL) or
``ASKED`` (detected by a request).
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
"""Wire formats that the protocol ``auto`` recognizes by the URL's path; the first match wins.

``huggingface-features`` comes before ``huggingface``, which matches the same paths and more.
"""
ASKED: tuple[str, ...] = ("pgn", "oip", "kserve-v1", "openai", "torchserve")
"""Wire formats that the protocol ``auto`` tries in this order if the URL shows no format.

Each is tried with one request without an image. If the endpoint answers none of them, ``auto`` uses
Hugging Face's format. ``oip`` comes before ``kserve-v1``: KServe answers both, and ``oip`` changes
an image least.
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
    """Check that a wire format has this name, or that the name is ``auto``.

    Raises:
        ConfigurationError: No wire format has this name; the message lists the valid names.
    """
    if name not in ("auto", *PROTOCOLS):
        raise ConfigurationError(
            f"protocol: got {name!r}, expected auto, {', '.join(sorted(PROTOCOLS))}"
        )


def open_protocol(endpoint: Endpoint) -> Protocol:
    """Return the endpoint's configured wire format; for ``auto``, Hugging Face's without detection.

    Raises:
        ConfigurationError: No wire format has this name, or an option does not fit.
    """
    check_name(endpoint.protocol)
    name = "huggingface" if endpoint.protocol == "auto" else endpoint.protocol
    return PROTOCOLS[name].of(endpoint)


def possible(endpoint: Endpoint) -> tuple[list[Protocol], Protocol]:
    """Return the wire formats to try, and the one to use if the endpoint answers none of them.

    If a format is configured, or the URL's path identifies one, it is the only one to try. The
    caller tries a format by sending its request for the model's description.

    Raises:
        ConfigurationError: No wire format has this name, or an option does not fit.
    """
    if endpoint.protocol != "auto":
        configured = open_protocol(endpoint)
        return [configured], configured

    path = urlsplit(endpoint.url).path
    for name in TOLD:
        if PROTOCOLS[name].recognises(path):
            recognized = PROTOCOLS[name].of(endpoint)
            return [recognized], recognized

    candidates = [PROTOCOLS[name].of(endpoint) for name in ASKED]
    return candidates, open_protocol(endpoint)
