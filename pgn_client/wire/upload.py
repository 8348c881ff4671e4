"""Uploads a checkpoint that runs on the server: once, and again if the server no longer has it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

from pgn_client.errors import CheckpointError, ConfigurationError, InvalidRequestError
from pgn_client.wire.exchange import Exchange
from pgn_client.wire.loaded_adapter import LoadedAdapter
from pgn_client.wire.protocols import PGN, MalformedAnswerError, Protocol, WireResponse
from pgn_client.wire.steps import Steps

A = TypeVar("A")


def hosted_reply(
    exchange: Exchange,
    protocol: Protocol | None,
    checkpoint: LoadedAdapter,
    ask: Callable[[], Steps[A]],
) -> Steps[A]:
    """Send an image to a checkpoint that runs on the server, and return the reply.

    The checkpoint is uploaded first if the server does not have it.

    Args:
        exchange: Exchange with the endpoint.
        protocol: Wire format of the endpoint; None if it is unknown.
        checkpoint: Checkpoint that runs on the server.
        ask: Function that returns the steps of the request with the image.

    Raises:
        ConfigurationError: The endpoint hosts no adapters.
        CheckpointError: The server refuses the checkpoint; the message has its reason.
        EndpointError: A request has failed.
    """

    def upload() -> Steps[None]:
        return _upload(exchange, protocol, checkpoint)

    yield from checkpoint.upload.ensure(upload, exchange.check_deadline)
    uploads_before = checkpoint.upload.times
    # The requests for the upload are no attempts of this image.
    exchange.attempts = 0
    try:
        return (yield from ask())
    except InvalidRequestError as error:
        if error.status != 404:
            raise

    # The server no longer has the checkpoint, for example after a restart.
    checkpoint.upload.undo(uploads_before)
    yield from checkpoint.upload.ensure(upload, exchange.check_deadline)
    exchange.attempts = 0
    return (yield from ask())


def _upload(
    exchange: Exchange, protocol: Protocol | None, checkpoint: LoadedAdapter
) -> Steps[None]:
    """Upload the checkpoint unless the server already has exactly this file.

    The check and the upload are two requests, and each has the full number of retries.
    """
    hosted = checkpoint.hosted
    name = exchange.endpoint.name
    if not isinstance(protocol, PGN) or hosted is None:
        protocol_name = protocol.name if protocol is not None else "an unknown protocol"
        raise _no_host(name, f"uses {protocol_name}")

    exchange.attempts = 0
    response = yield from exchange.fetch(protocol, protocol.card_of(hosted.name))
    if not _holds(response, hosted.data):
        exchange.attempts = 0
        response = yield from exchange.fetch(protocol, protocol.upload(hosted.name, hosted.data))

    if response.status in (400, 413):
        reason = exchange.endpoint.credential.redact(protocol.explain(response))
        raise CheckpointError(f"{name} refuses the checkpoint: {reason}")
    if response.status in (404, 405):
        raise _no_host(name, "has no /v1/adapters")
    if not response.ok:
        raise exchange.refusal(response, protocol)


def _no_host(name: str, reason: str) -> ConfigurationError:
    """Return the error for an endpoint that cannot host the checkpoint."""
    return ConfigurationError(
        f"checkpoint: got an EXPRES checkpoint, which runs where the model runs, for {name}, which "
        f"{reason}; expected a server that hosts adapters (pgn serve), or a checkpoint made by pgn "
        "train that runs on the client"
    )


def _holds(response: WireResponse, data: bytes) -> bool:
    """Whether the server's response shows that it has exactly this checkpoint file.

    Args:
        response: Response with the checkpoint's card, its metadata, which includes a SHA-256.
        data: Content of the checkpoint file.
    """
    try:
        card = response.json() if response.ok else None
    except MalformedAnswerError:
        card = None
    return isinstance(card, dict) and card.get("sha256") == hashlib.sha256(data).hexdigest()
