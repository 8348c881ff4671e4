"""Checkpoints that run on the server: uploaded once, and again where the server has forgotten
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pgn_client.errors import CheckpointError, ConfigurationError, InvalidRequestError, PGNError
from pgn_client.wire.exchange import Exchange, Sleep, Steps
from pgn_client.wire.prediction import Checkpoint, Reply
from pgn_client.wire.protocols import PGN, MalformedAnswerError, Protocol, WireResponse

PAUSE = 0.02  # seconds between looks at what another one uploads


def hosted_reply(
    exchange: Exchange,
    protocol: Protocol | None,
    checkpoint: Checkpoint,
    ask: Callable[[], Steps[Reply]],
) -> Steps[Reply]:
    """Ask what runs on the server; upload it before where it is not there, or no longer, as after a
    restart.

    Raises:
        ConfigurationError: the endpoint hosts no adapters.
        CheckpointError: the server refuses this one; the message has its reason.
        EndpointError: as of any request.
    """
    yield from _ensured(exchange, protocol, checkpoint)
    seen = checkpoint.upload.done
    exchange.attempts = 0  # what was asked about the upload was no try of this
    try:
        return (yield from ask())
    except InvalidRequestError as error:
        if error.status != 404:
            raise
    checkpoint.upload.forgotten(seen)
    yield from _ensured(exchange, protocol, checkpoint)
    exchange.attempts = 0
    return (yield from ask())


def _ensured(exchange: Exchange, protocol: Protocol | None, checkpoint: Checkpoint) -> Steps[None]:
    """Upload, or wait for the one who does; who waited for a failure shares it."""
    upload, before = checkpoint.upload, checkpoint.upload.failure
    while not upload.there:
        if upload.failure is not None and upload.failure is not before:
            raise upload.failure
        if not upload.busy.acquire(blocking=False):
            exchange.check_deadline()
            yield Sleep(PAUSE)
            continue
        try:
            if not upload.there:
                yield from _upload(exchange, protocol, checkpoint)
                upload.there, upload.failure, upload.done = True, None, upload.done + 1
        except PGNError as error:
            upload.failure = error
            raise
        finally:
            upload.busy.release()


def _upload(exchange: Exchange, protocol: Protocol | None, checkpoint: Checkpoint) -> Steps[None]:
    hosted, name = checkpoint.hosted, exchange.endpoint.name
    if not isinstance(protocol, PGN) or hosted is None:
        spoken = protocol.name if protocol is not None else "nothing known"
        raise _no_host(name, f"speaks {spoken}")
    exchange.attempts = 0
    found = yield from exchange.fetch(protocol, protocol.card_of(hosted.name))
    if not _holds(found, hosted.data):
        exchange.attempts = 0
        found = yield from exchange.fetch(protocol, protocol.upload(hosted.name, hosted.data))
    if found.status in (400, 413):
        said = exchange.endpoint.credential.redact(protocol.explain(found))
        raise CheckpointError(f"{name} refuses the checkpoint: {said}")
    if found.status in (404, 405):
        raise _no_host(name, "has no /v1/adapters")
    if not found.ok:
        raise exchange.refusal(found, protocol)


def _no_host(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"checkpoint: got one of EXPRES, which runs where the model runs, for {name}, which {why}; "
        "expected a server "
        "that hosts adapters (pgn serve), or a prompt made by pgn train"
    )


def _holds(response: WireResponse, data: bytes) -> bool:
    """Whether the server has exactly this file."""
    try:
        card = response.json() if response.ok else None
    except MalformedAnswerError:
        card = None
    return isinstance(card, dict) and card.get("sha256") == hashlib.sha256(data).hexdigest()
