"""Adapt a hosted image classifier that you cannot change, by painting RGB prompts into each image.

    from pgn_client import AdaptedClient

    with AdaptedClient("http://127.0.0.1:8000", "digits.safetensors") as client:
        print(client.classify("seven.png").label)

Names are imported on first use (PEP 562), so importing the package loads neither torch nor httpx.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pgn_client.moved import MovedModules
from pgn_client.version import __version__

if TYPE_CHECKING:
    from pgn_client.errors import (
        AuthenticationError,
        BudgetExceededError,
        CheckpointError,
        ConfigurationError,
        ConnectionFailedError,
        EndpointError,
        ImageError,
        InvalidRequestError,
        MissingDependencyError,
        NotRecordedError,
        PGNError,
        ProtocolMismatchError,
        RateLimitedError,
        ServerError,
        ShapeError,
        StatusError,
        SurrogateMismatchError,
        TimedOutError,
    )
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.types import ImageFailure, Prediction, ServerProfile, Usage
    from pgn_client.wire.client import AdaptedClient, AsyncAdaptedClient

# Public name -> module below the package that defines it. The names stand three times in this file,
# because type checkers and editors need plain imports and a plain `__all__`.
_HOMES = {
    "AdaptedClient": "wire.client",
    "AsyncAdaptedClient": "wire.client",
    "AuthenticationError": "errors",
    "BudgetExceededError": "errors",
    "CheckpointError": "errors",
    "ConfigurationError": "errors",
    "ConnectionFailedError": "errors",
    "EndpointError": "errors",
    "ImageError": "errors",
    "ImageFailure": "types",
    "InvalidRequestError": "errors",
    "MissingDependencyError": "errors",
    "NotRecordedError": "errors",
    "PGNError": "errors",
    "Prediction": "types",
    "PromptAdapter": "prompting.adapter",
    "ProtocolMismatchError": "errors",
    "RateLimitedError": "errors",
    "ServerError": "errors",
    "ServerProfile": "types",
    "ShapeError": "errors",
    "StatusError": "errors",
    "SurrogateMismatchError": "errors",
    "TimedOutError": "errors",
    "Usage": "types",
}

__all__ = [
    "AdaptedClient",
    "AsyncAdaptedClient",
    "AuthenticationError",
    "BudgetExceededError",
    "CheckpointError",
    "ConfigurationError",
    "ConnectionFailedError",
    "EndpointError",
    "ImageError",
    "ImageFailure",
    "InvalidRequestError",
    "MissingDependencyError",
    "NotRecordedError",
    "PGNError",
    "Prediction",
    "PromptAdapter",
    "ProtocolMismatchError",
    "RateLimitedError",
    "ServerError",
    "ServerProfile",
    "ShapeError",
    "StatusError",
    "SurrogateMismatchError",
    "TimedOutError",
    "Usage",
    "__version__",
]

# Reloading the package must not install a second finder.
if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
