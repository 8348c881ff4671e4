"""Checkpoints that run on the server: uploaded once, and again where the server has forgotten them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pgn_client.errors import CheckpointError, ConfigurationError, InvalidRequestError
from pgn_client.exchange import Exchange, Steps
from pgn_client.protocols import PGN, MalformedAnswerError, Protocol, WireResponse
from pgn_client.reading import Checkpoint, Reply


def upload(exchange: Exchange, protocol: Protocol | None, checkpoint: Checkpoint) -> Steps[None]:
    """Put a checkpoint's hosted part onto the server, unless it is there already or there is none.

    Raises:
        ConfigurationError: the endpoint hosts no adapters.
        CheckpointError: the server refuses it; the message has its reason.
        EndpointError: as of any request.
    """
    hosted = checkpoint.hosted
    if hosted is None or checkpoint.uploaded:
        return
    if not isinstance(protocol, PGN):
        spoken = protocol.name if protocol is not None else "nothing known"
        raise ConfigurationError(
            f"checkpoint: got one of EXPRES, which runs where the model runs, for {exchange.endpoint.name}, which "
            f"speaks {spoken}; expected a server with /v1/adapters (pgn serve), or a prompt made by pgn train"
        )
    exchange.attempts = 0  # questions of their own, no retries of what was asked before
    found = yield from exchange.fetch(protocol, protocol.card_of(hosted.name))
    if not _holds(found, hosted.data):
        exchange.attempts = 0
        found = yield from exchange.fetch(protocol, protocol.upload(hosted.name, hosted.data))
    if found.status in (400, 413):
        said = exchange.endpoint.credential.redact(protocol.explain(found))
        raise CheckpointError(f"{exchange.endpoint.name} refuses the checkpoint: {said}")
    if not found.ok:
        raise exchange.refusal(found, protocol)
    checkpoint.uploaded = True


def remembered(ask: Callable[[], Steps[Reply]], put: Callable[[], Steps[None]], checkpoint: Checkpoint) -> Steps[Reply]:
    """Ask, and once more after an upload where the server no longer knows the checkpoint, as after a restart."""
    try:
        return (yield from ask())
    except InvalidRequestError as error:
        if error.status != 404 or checkpoint.hosted is None:
            raise
    checkpoint.uploaded = False
    yield from put()
    return (yield from ask())


def _holds(response: WireResponse, data: bytes) -> bool:
    """Whether the server has exactly this file."""
    try:
        card = response.json() if response.ok else None
    except MalformedAnswerError:
        card = None
    return isinstance(card, dict) and card.get("sha256") == hashlib.sha256(data).hexdigest()
