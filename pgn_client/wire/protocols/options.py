"""Reading ``Endpoint.options`` and model names: what only one wire format knows, checked before
anything is sent.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import excerpt

FOR_ALL = ("key_header",)  # read by the endpoint itself


def options(
    endpoint: Endpoint, protocol: str, types: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """Return the options of one wire format.

    Args:
        endpoint: where they are; while its protocol is ``auto``, options of other wire formats are
            left out.
        protocol: its name, for messages.
        types: the options that it knows.

    Raises:
        ConfigurationError: an unknown option, or a value of a wrong type.
    """
    given = {key: value for key, value in endpoint.options.items() if key not in FOR_ALL}
    if endpoint.protocol == "auto":
        given = {key: value for key, value in given.items() if key in types}
    for key, value in given.items():
        if key not in types:
            known = ", ".join([*types, *FOR_ALL])
            raise ConfigurationError(f"options of {protocol}: got {key!r}, expected {known}")
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
    """Raise for a value that is none of the known ones; None is not given.

    Raises:
        ConfigurationError: the message lists the known ones.
    """
    if value is not None and value not in known:
        raise ConfigurationError(f"options: {name}: got {value!r}, expected {', '.join(known)}")


def need_labels(endpoint: Endpoint, protocol: str) -> tuple[str, ...]:
    """Return the endpoint's labels, for a wire format that sends them along.

    Raises:
        ConfigurationError: there are none, or fewer than two, or one twice.
    """
    labels = endpoint.labels
    if len(set(labels)) < max(2, len(labels)):
        raise ConfigurationError(
            f"labels: got {len(labels)} of which {len(set(labels))} differ, expected two or more "
            "different ones: "
            f"the protocol {protocol} sends them along; give labels= (--source-labels)"
        )
    return labels


def only_model(endpoint: Endpoint, names: Sequence[str]) -> str:
    """Return the name of the one model that an endpoint hosts.

    Raises:
        ConfigurationError: none or several.
    """
    if len(names) != 1:
        shown = (
            excerpt(", ".join(names), endpoint.credential.redact)
            if names
            else "none that it tells of"
        )
        raise ConfigurationError(
            f"{endpoint.name} hosts {shown}: got model=None, expected the name of the one to ask; "
            "give model= (--model)"
        )
    return names[0]
