"""Checks of ``Endpoint.options``, labels and model names, made before anything is sent."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pgn_client.errors import ConfigurationError
from pgn_client.types import normal
from pgn_client.wire.endpoint import MEANINGS, Endpoint, Meaning
from pgn_client.wire.protocols.base import excerpt

MEANING: Mapping[str, type | tuple[type, ...]] = {"output": str, "scores": str}
"""Options for the meaning of numbers, for wire formats that use neither name otherwise."""
FOR_ALL = ("key_header",)
"""Names of the options that every wire format has; ``Endpoint`` itself reads them."""


def options(
    endpoint: Endpoint, protocol: str, types: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """Check and return the endpoint's options for one wire format.

    Args:
        endpoint: Endpoint with the options. If its protocol is ``auto``, options of other wire
            formats are left out.
        protocol: Name of the wire format, for messages.
        types: Valid options with the types of their values.

    Raises:
        ConfigurationError: An option is unknown, or its value has another type.
    """
    given = {key: value for key, value in endpoint.options.items() if key not in FOR_ALL}
    if endpoint.protocol == "auto":
        given = {key: value for key, value in given.items() if key in types}

    for key, value in given.items():
        if key not in types:
            valid = ", ".join([*types, *FOR_ALL])
            raise ConfigurationError(f"options of {protocol}: got {key!r}, expected {valid}")
        # A bool is an int in Python, and no option takes one.
        if not isinstance(value, types[key]) or isinstance(value, bool):
            kinds = typing.cast(
                "tuple[type, ...]", types[key] if isinstance(types[key], tuple) else (types[key],)
            )
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ConfigurationError(
                f"options of {protocol}: {key}: got {type(value).__name__}, expected {names}"
            )
    return given


def choice(name: str, value: str | None, known: Sequence[str]) -> None:
    """Check that an option has one of the ``known`` values; None means that it is not given.

    Raises:
        ConfigurationError: The value is invalid; the message lists the valid ones.
    """
    if value is not None and value not in known:
        raise ConfigurationError(f"options: {name}: got {value!r}, expected {', '.join(known)}")


def meaning(endpoint: Endpoint) -> Meaning | None:
    """Return what the endpoint's numbers mean by its options, or else by a probe; None if unknown.

    The option is ``output``. Its other name ``scores`` is free in the wire formats that do not use
    it for the place of the scores (``custom`` and ``oip`` do).

    Raises:
        ConfigurationError: The option is none of ``MEANINGS``, or both names are given.
    """
    given = dict(endpoint.options)
    # With ``auto`` it may name a tensor of ``oip``.
    is_place = endpoint.protocol == "auto" and given.get("scores") not in MEANINGS
    if endpoint.protocol in ("custom", "oip") or is_place:
        given.pop("scores", None)
    names = [name for name in ("output", "scores") if name in given]
    if len(names) > 1:
        raise ConfigurationError("options: got output and scores, expected one of them")
    if not names:
        return MEANINGS.get(endpoint.found.output or "")
    choice(names[0], given[names[0]], tuple(MEANINGS))
    return MEANINGS[given[names[0]]]


def need_labels(endpoint: Endpoint, protocol: str) -> tuple[str, ...]:
    """Check and return the endpoint's labels, for a wire format that sends them to the server.

    Raises:
        ConfigurationError: There are fewer than two labels, or one occurs twice.
    """
    labels = endpoint.labels
    different = len(set(map(normal, labels)))
    if len(labels) < 2 or different < len(labels):
        raise ConfigurationError(
            f"labels: got {len(labels)} of which {different} differ, expected two or more "
            f"different ones, because the protocol {protocol} sends them to the server; give "
            "labels= (--source-labels)"
        )
    return labels


def only_model(endpoint: Endpoint, names: Sequence[str]) -> str:
    """Return the name of the only model that an endpoint hosts.

    Raises:
        ConfigurationError: The endpoint lists no model, or several.
    """
    if len(names) != 1:
        listed = "no model that it lists"
        if names:
            # The names come from the server, which may echo a credential.
            listed = excerpt(", ".join(names), endpoint.credential.redact)
        raise ConfigurationError(
            f"{endpoint.name} hosts {listed}: got model=None, expected the name of one model; give "
            "model= (--model)"
        )
    return names[0]
