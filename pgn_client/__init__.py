"""Adapt a vision API that you cannot touch: per-image RGB prompts for a frozen, hosted ViT.

    from pgn_client import AdaptedClient

    with AdaptedClient("http://127.0.0.1:8000", "digits.safetensors") as client:
        print(client.classify("seven.png").label)

Names are resolved on first use (PEP 562), so importing the package loads neither torch nor httpx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pgn_client.adapter import PromptAdapter
    from pgn_client.client import AdaptedClient, AsyncAdaptedClient
    from pgn_client.errors import PGNError
    from pgn_client.types import ImageFailure, Prediction, ServerProfile, Usage

_HOMES = {
    "AdaptedClient": "client",
    "AsyncAdaptedClient": "client",
    "ImageFailure": "types",
    "PGNError": "errors",
    "Prediction": "types",
    "PromptAdapter": "adapter",
    "ServerProfile": "types",
    "Usage": "types",
}

__all__ = [
    "AdaptedClient",
    "AsyncAdaptedClient",
    "ImageFailure",
    "PGNError",
    "Prediction",
    "PromptAdapter",
    "ServerProfile",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
