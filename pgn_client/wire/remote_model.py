"""The model behind an endpoint: its protocol, its description and what it accepts."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace

from pgn_client.types import ModelInfo, Reply
from pgn_client.wire.accepted import Accepted
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.exchange import Exchange
from pgn_client.wire.once import Once
from pgn_client.wire.protocols import Payload, open_protocol, possible
from pgn_client.wire.steps import Steps

_log = logging.getLogger("pgn_client")


class RemoteModel:
    """The endpoint's protocol and model, detected once for a client and all its copies.

    Args:
        endpoint: Endpoint that receives the images.

    Attributes:
        accepted: Requests that the endpoint accepts.
        info: Model description of the endpoint; None if it gives none.
        description: Whether the endpoint has answered the description request.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.accepted = Accepted(endpoint.limits)
        self.info: ModelInfo | None = None
        self.description = Once()
        if endpoint.protocol != "auto":
            self.accepted.protocol = open_protocol(endpoint)

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint, with the request limits that are known now."""
        if self._endpoint.limits != self.accepted.limits:
            self._endpoint = replace(self._endpoint, limits=self.accepted.limits)
        return self._endpoint

    @property
    def sends_undescribed(self) -> bool:
        """Whether images can be sent before the endpoint has described its model."""
        protocol = self.accepted.protocol
        return protocol is not None and protocol.complete

    def describe(self, exchange: Exchange) -> Steps[None]:
        """Detect the endpoint's protocol and get its description of the model, once for all calls.

        Raises:
            EndpointError: The endpoint gave no usable description.
        """
        yield from self.description.ensure(
            lambda: self._describe(exchange), exchange.check_deadline
        )

    def _describe(self, exchange: Exchange) -> Steps[None]:
        described = yield from exchange.discover(*possible(self.endpoint))
        # A limit that the description does not give keeps the value of the endpoint file.
        limits = {k: v for k, v in asdict(described.limits).items() if v is not None}
        self.accepted.limits = replace(self.accepted.limits, **limits)
        self.info = described.info
        self.accepted.protocol = described.protocol
        _log.info("%s uses %s", self.endpoint.name, described.protocol.dialect)
        # The image that follows is a call of its own in the messages.
        exchange.attempts = 0

    def ask(self, exchange: Exchange, payload: Payload) -> Steps[tuple[Reply, Payload]]:
        """Send one image; return the reply and the form of the image that was sent.

        Raises:
            ImageError, EndpointError, BudgetExceededError: See ``Exchange.ask``.
        """
        accepted = self.accepted
        protocol = accepted.protocol or open_protocol(self.endpoint)
        answer, answered = yield from exchange.ask(protocol, payload)

        accepted.proven.add(answered.dialect)
        proven = protocol.proven or protocol.dialect in accepted.proven
        if proven and accepted.protocol is not protocol:
            # A concurrent call fell back to a plainer dialect. This dialect has worked, so the
            # endpoint refused the other call's image, not the dialect.
            accepted.protocol = protocol
        elif answered is not protocol and not proven:
            # The endpoint refused this dialect and answered in a plainer one, which is kept.
            accepted.protocol = answered
        return Reply(answer, exchange.attempts, exchange.request_id), exchange.form or payload
