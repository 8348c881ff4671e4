"""State of the model behind an endpoint: its identity, its protocol and its recorded answers."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace

from pgn_client.errors import (
    ConfigurationError,
    ConnectionFailedError,
    EndpointError,
    NotRecordedError,
    TimedOutError,
)
from pgn_client.types import ModelInfo, Reply
from pgn_client.wire.cache import AnswerCache, cache_key, endpoint_key
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.exchange import Exchange, Steps
from pgn_client.wire.protocols import Payload, Protocol, open_protocol, possible

_log = logging.getLogger("pgn_client")


class Discovery:
    """The endpoint's protocol and model, detected once for a client and all its copies.

    Args:
        endpoint: Endpoint that receives the images.
        cache: Recorded answers, or None.

    Attributes:
        endpoint: The endpoint, with the request limits that its description gives.
        cache: Recorded answers, or None.
        key: Fingerprint of the endpoint in the cache. It includes labels and options, because the
            answers depend on them.
        protocol: Protocol of the endpoint; None until it is detected.
        info: Model description of the endpoint; None if it gives none.
        failure: Error of the last attempt to get the description; None if it succeeded.
        recalled: Model identity from the cache, in use while the endpoint is out of reach or during
            a replay.
        asked: Whether the endpoint has answered the description request.
        closed: Whether the client that owns the connections is closed.
        rates: Latest rate limit headers of the responses.

    Raises:
        ConfigurationError: The cache only replays, and holds no answers of this endpoint.
    """

    def __init__(self, endpoint: Endpoint, cache: AnswerCache | None) -> None:
        self.endpoint = endpoint
        self.cache = cache
        settings = [endpoint.labels, dict(endpoint.options)]
        # Without settings the key is that of earlier versions, whose recordings stay readable.
        settings_json = json.dumps(settings, sort_keys=True) if any(settings) else ""
        self.key = endpoint_key(endpoint.url, endpoint.model, settings_json)
        self.protocol: Protocol | None = None
        self.info: ModelInfo | None = None
        self.failure: EndpointError | None = None
        self.recalled: str | None = None
        self.asked = False
        self.closed = False
        self.rates: dict[str, str] = {}
        # The identity last written to the cache, so that not every image writes it again.
        self._noted: str | None = None

        if cache is not None and cache.replay:
            self.recalled = self.recall()
            if self.recalled is None:
                raise ConfigurationError(
                    f"replay: got {cache.name}, which holds no answer of {endpoint.name} with "
                    "these settings; give the URL, model, protocol, labels and options of the "
                    "recording"
                )

    def is_ready(self, before: EndpointError | None, *, needed: bool, for_info: bool) -> bool:
        """Whether images can be sent now, without first asking the endpoint to describe its model.

        Args:
            before: Value of ``failure`` when this call began. A newer failure is raised in all
                concurrent calls, so that they do not repeat the failing request one by one.
            needed: Whether the caller needs the identity of the model.
            for_info: Whether the caller needs the model description itself.

        Raises:
            EndpointError: The description request of a concurrent call failed.
        """
        if self.cache is not None and self.cache.replay:
            if for_info:
                raise self._not_recorded("the model description is not recorded")
            return True

        if self.endpoint.protocol != "auto":
            self.protocol = self.protocol or open_protocol(self.endpoint)
            if not needed and self.protocol.complete:
                return True
        if self.asked:
            return True

        # No call has failed since this one began, so this one requests the description (again).
        if self.failure is None or self.failure is before:
            return False
        if for_info or self.recalled is None:
            raise self.failure
        return True

    def settle(self, exchange: Exchange, *, for_info: bool) -> Steps[None]:
        """Detect the endpoint's protocol and get its description of the model.

        While the endpoint is out of reach, the recorded answers of the model that was last seen
        there stay usable.

        Args:
            exchange: Exchange that sends the requests.
            for_info: Whether the caller needs the model description itself.

        Raises:
            EndpointError: The endpoint gave no usable description, and no recorded model can
                replace it.
        """
        try:
            described = yield from exchange.discover(*possible(self.endpoint))
        except EndpointError as error:
            # An endpoint that answers with an error is reachable, and the caller must see the
            # error, for example a rejected key.
            unreachable = isinstance(error, ConnectionFailedError | TimedOutError)
            self.failure = error
            self.recalled = self.recall() if unreachable else None
            if for_info or self.recalled is None:
                raise
            return

        # A limit that the description does not give keeps the value of the endpoint file.
        limits = {k: v for k, v in asdict(described.limits).items() if v is not None}
        self.endpoint = replace(self.endpoint, limits=replace(self.endpoint.limits, **limits))
        self.info = described.info
        self.failure = None
        self.recalled = None

        protocol = described.protocol
        _log.info("%s speaks %s", self.endpoint.name, protocol.dialect)
        self.protocol = protocol
        plainer = protocol.plainer()
        while plainer is not None:
            # An earlier run with this cache ended in a plainer dialect, so this run starts in it.
            if self._identity(plainer) == self.recall():
                self.protocol = plainer
            plainer = plainer.plainer()
        self.asked = True

    def ask(self, exchange: Exchange, payload: Payload, *, again: bool = False) -> Steps[Reply]:
        """Send one image, record the endpoint's answer in the cache, and return it.

        Args:
            exchange: Exchange that sends the request.
            payload: Encoded image.
            again: Whether this repeats an earlier image, so that nothing is recorded.
        """
        protocol = self.protocol or open_protocol(self.endpoint)
        answer, answered = yield from exchange.ask(protocol, payload)
        self.rates |= exchange.rates

        if protocol.proven and self.protocol is not protocol:
            # A concurrent call fell back to a plainer dialect. This dialect has worked, so the
            # endpoint refused the other call's image, not the dialect.
            self.protocol = protocol
        elif answered is not protocol and not protocol.proven:
            # The endpoint refused this dialect and answered in a plainer one, which is kept.
            self.protocol = answered

        if self.cache is not None and not again:
            key = self._key(payload, answered)
            self.cache.put(key, answer, exchange.attempts, exchange.request_id)
            # A drift check sends its images to the model itself, so those of a hosted adapter
            # are not kept for it.
            if not payload.hosted:
                self.cache.keep(self.key, key, payload.data)
            self._note(answered)
        return Reply(answer, exchange.attempts, exchange.request_id)

    def recorded(self, payload: Payload) -> Reply | None:
        """Return the endpoint's recorded reply to an image, or None if there is none.

        Raises:
            EndpointError: No reply is recorded, and the endpoint is out of reach or this is a
                replay.
        """
        recorded = None if self.cache is None else self.cache.get(self._key(payload, self.protocol))
        if recorded is not None:
            # A later run resumes from the model last used, also if all its answers were recorded.
            # A recalled identity comes from the cache, so there is nothing to write.
            if self.protocol is not None and self.recalled is None:
                self._note(self.protocol)
            return recorded

        if self.cache is not None and self.cache.replay:
            raise self._not_recorded("no answer to this image is recorded")
        if self.recalled is not None and self.failure is not None:
            raise self.failure
        return None

    def is_recorded(self, payload: Payload) -> bool:
        """Whether the cache has an answer to this image by the model last seen; sends nothing."""
        identity = self.recall()
        return bool(
            identity is not None and self.cache and self.cache.get(self._key_of(payload, identity))
        )

    def recall(self) -> str | None:
        """Return the identity of the model last used at the endpoint, from the cache, or None.

        An identity that was recorded in another protocol than the configured one does not count.
        """
        identity = None if self.cache is None else self.cache.recall(self.key)
        # The identity ends with the dialect, which begins with the protocol's name.
        protocol = json.loads(identity)[-1].split()[0] if identity else None
        return identity if self.endpoint.protocol in ("auto", protocol) else None

    def _note(self, protocol: Protocol) -> None:
        """Record the current model and dialect in the cache, for later runs to start from.

        The dialect is the variant of the protocol that the endpoint accepts.
        """
        identity = self._identity(protocol)
        if self.cache is not None and identity != self._noted:
            self.cache.remember(self.key, identity)
            self._noted = identity

    def _identity(self, protocol: Protocol) -> str:
        """Return a text that identifies the endpoint's model and the protocol dialect in use."""
        info = self.info or ModelInfo("")
        fields = [info.name, info.weights_sha256, info.patch_embedding_sha256, info.profile]
        return json.dumps([*fields, protocol.dialect])

    def _key(self, payload: Payload, protocol: Protocol | None) -> str:
        identity = self.recalled or (self._identity(protocol) if protocol is not None else "")
        return self._key_of(payload, identity)

    def _key_of(self, payload: Payload, identity: str) -> str:
        if payload.hosted:
            identity = json.dumps([identity, payload.hosted])
        return cache_key(self.endpoint.url, self.endpoint.model, identity, payload.data)

    def _not_recorded(self, what: str) -> NotRecordedError:
        name = self.endpoint.name
        file = self.cache.name if self.cache is not None else ""
        text = (
            f"{name}: {what} in {file}, and a replay sends nothing; record it with cache= "
            f"(--cache {file})"
        )
        return NotRecordedError(text, endpoint=name, attempts=0)
