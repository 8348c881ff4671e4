"""Methods that make prompts, or serve as their rivals: one file each, and a registry.

A new method needs its own file and one line in ``REGISTRY``.
"""

from __future__ import annotations

from pgn_client.errors import ConfigurationError
from pgn_client.prompting.methods.base import Method, Rates, RGBMethod, Setting, WhiteBox
from pgn_client.prompting.methods.blend import Blend
from pgn_client.prompting.methods.expres import EXPRES
from pgn_client.prompting.methods.fine_tune import FineTune
from pgn_client.prompting.methods.input_independent import InputIndependent
from pgn_client.prompting.methods.low_rank import LowRank
from pgn_client.prompting.methods.masked import MaskedPrompt
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
        MaskedPrompt,
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
    """Return the class of a prompting method by its name, for example ``pgn``.

    Raises:
        ConfigurationError: The name is unknown.
    """
    if name not in REGISTRY:
        raise ConfigurationError(f"method: got {name!r}, expected one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def restorable(name: str) -> type[RGBMethod]:
    """Return the class of a method that a checkpoint can hold, by its name.

    These are all methods that make pixels, and the PGN that was imported from its authors.

    Raises:
        ConfigurationError: The name is unknown, or the method needs the inside of the model.
    """
    # A published PGN is imported and never trained, so the registry, which lists the choices for
    # training, does not have it.
    if name == PublishedPGN.name:
        return PublishedPGN
    return deployable(name)


def deployable(name: str) -> type[RGBMethod]:
    """Return the class of a method whose prompts can be sent to an endpoint, by its name.

    Raises:
        ConfigurationError: The name is unknown, or the method needs the inside of the model.
    """
    method = get(name)
    if not issubclass(method, RGBMethod):
        names = [key for key, rgb in REGISTRY.items() if issubclass(rgb, RGBMethod)]
        raise ConfigurationError(
            f"method: got {name}, which needs the inside of the model and cannot be sent to an "
            f"endpoint, expected one of {', '.join(names)}; pgn benchmark measures both kinds"
        )
    return method
