"""Ways to make a prompt, one file each, one registry. Adding one touches its file and the line
below.
"""

from __future__ import annotations

from pgn_client.errors import ConfigurationError
from pgn_client.prompting.methods.base import Method, Rates, RGBMethod, Setting, WhiteBox
from pgn_client.prompting.methods.blend import Blend
from pgn_client.prompting.methods.expres import EXPRES
from pgn_client.prompting.methods.fine_tune import FineTune
from pgn_client.prompting.methods.input_independent import InputIndependent
from pgn_client.prompting.methods.low_rank import LowRank
from pgn_client.prompting.methods.masked import Masked
from pgn_client.prompting.methods.no_prompt import GreyFrame, NoPrompt
from pgn_client.prompting.methods.padding import Padding, PublishedPadding
from pgn_client.prompting.methods.pgn import PGN
from pgn_client.prompting.methods.published import PublishedPGN
from pgn_client.prompting.methods.vpt import VPTDeep, VPTShallow

REGISTRY: dict[str, type[Method]] = {
    method.name: method
    for method in (
        PGN,
        InputIndependent,
        Padding,
        Masked,
        LowRank,
        Blend,
        NoPrompt,
        GreyFrame,
        PublishedPadding,
        VPTShallow,
        VPTDeep,
        EXPRES,
        FineTune,
    )
}

__all__ = [
    "PGN",
    "REGISTRY",
    "InputIndependent",
    "Method",
    "RGBMethod",
    "Rates",
    "Setting",
    "WhiteBox",
    "get",
]


def get(name: str) -> type[Method]:
    """Return a method by name.

    Raises:
        ConfigurationError: unknown.
    """
    if name not in REGISTRY:
        raise ConfigurationError(f"method: got {name!r}, expected one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def restorable(name: str) -> type[RGBMethod]:
    """Return a method that checkpoints may hold, by name: those that can be trained and deployed,
    and published PGN.

    Raises:
        ConfigurationError: unknown, or white box.
    """
    return PublishedPGN if name == PublishedPGN.name else deployable(name)


def deployable(name: str) -> type[RGBMethod]:
    """Return a method whose prompts can be sent to an endpoint, by name.

    Raises:
        ConfigurationError: unknown, or white box.
    """
    method = get(name)
    if not issubclass(method, RGBMethod):
        raise ConfigurationError(
            f"method: got {name}, which needs the inside of the model and cannot be sent to an "
            "endpoint, expected one "
            f"of {', '.join(k for k, m in REGISTRY.items() if issubclass(m, RGBMethod))}; pgn "
            "benchmark measures both"
        )
    return method
