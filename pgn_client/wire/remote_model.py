"""What is known of the model behind an endpoint: who it is, how it is spoken to, and what is
recorded of it.
"""

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
from pgn_client.types import ModelInfo
from pgn_client.wire.cache import AnswerCache, cache_key, endpoint_key
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.exchange import Exchange, Steps
from pgn_client.wire.prediction import Reply
from pgn_client.wire.protocols import Payload, Protocol, open_protocol, possible

_log = logging.getLogger("pgn_client")


class Discovery:
    """One endpoint, found out once for a client and all copies of it.

    Args:
        endpoint: where images go.
        cache: recorded answers.

    Attributes:
        endpoint: with the limits that it told.
        key: of what is recorded of it: other labels or options are another question, with other
            answers.
        protocol: what it speaks, once that is known.
        info: what it says about its model.
        asked: Whether the endpoint has answered the description request.
        failure: of the last attempt to ask.
        recalled: what the cache remembers of the model, while the endpoint is out of reach or is
            not to be asked.
        closed: whether the client that owns the connections is.
        rates: headers about limits of rate, as they came last.

    Raises:
        ConfigurationError: recorded answers are to be replayed, and there are none of this
            endpoint.
    """

    def __init__(self, endpoint: Endpoint, cache: AnswerCache | None) -> None:
        self.endpoint, self.cache = endpoint, cache
        told = [endpoint.labels, dict(endpoint.options)]
        asked = json.dumps(told, sort_keys=True) if any(told) else ""
        self.key = endpoint_key(endpoint.url, endpoint.model, asked)
        self._noted: str | None = None
        self.protocol: Protocol | None = None
        self.info: ModelInfo | None = None
        self.failure: EndpointError | None = None
        self.recalled: str | None = None
        self.asked = self.closed = False
        self.rates: dict[str, str] = {}
        if cache is not None and cache.replay:
            self.recalled = self.recall()
            if self.recalled is None:
                raise ConfigurationError(
                    f"replay: got {cache.name}, in which no answer of {endpoint.name} to this "
                    "question is recorded; "
                    "give the URL, model, protocol, labels and options of the recording"
                )

    def is_ready(self, before: EndpointError | None, *, needed: bool, for_info: bool) -> bool:
        """Whether nothing needs to be asked about the model before the first image.

        Args:
            before: the failure that was known when this call began. A newer one is shared by all
                who waited for it: otherwise they would find it out again, one after the other.
            needed: whether somebody wants to know who the model is.
            for_info: whether the model's description is what is wanted.

        Raises:
            EndpointError: asking failed meanwhile.
        """
        if self.cache is not None and self.cache.replay:
            if for_info:
                raise self._not_recorded("what the model says of itself is not recorded")
            return True
        if self.endpoint.protocol != "auto":
            self.protocol = self.protocol or open_protocol(self.endpoint)
            if not needed and self.protocol.complete:
                return True
        if self.asked:
            return True
        if self.failure is None or self.failure is before:
            return False
        if for_info or self.recalled is None:
            raise self.failure
        return True

    def settle(self, exchange: Exchange, *, for_info: bool) -> Steps[None]:
        """Find out what is spoken, and what the model says of itself.

        Where nobody can be reached, recorded answers of the model that was last seen there can
        still be given.
        """
        try:
            found = yield from exchange.discover(*possible(self.endpoint))
        except EndpointError as error:
            away = isinstance(error, ConnectionFailedError | TimedOutError)
            self.failure, self.recalled = error, self.recall() if away else None
            if for_info or self.recalled is None:
                raise
            return
        told = {k: v for k, v in asdict(found.limits).items() if v is not None}
        self.endpoint = replace(self.endpoint, limits=replace(self.endpoint.limits, **told))
        self.info, self.failure, self.recalled = found.info, None, None
        protocol, plainer = found.protocol, found.protocol.plainer()
        _log.info("%s speaks %s", self.endpoint.name, protocol.dialect)
        if plainer is not None and self._identity(plainer) == self.recall():
            protocol = plainer
        self.protocol = protocol
        self.asked = True

    def ask(self, exchange: Exchange, payload: Payload, *, again: bool = False) -> Steps[Reply]:
        """Ask about one image and record the answer, unless it is asked ``again`` to compare."""
        asked = self.protocol or open_protocol(self.endpoint)
        answer, spoken = yield from exchange.ask(asked, payload)
        self.rates |= exchange.rates
        if asked.proven and self.protocol is not asked:
            # another image was refused at the same time, and not for the dialect
            self.protocol = asked
        elif spoken is not asked and not asked.proven:
            self.protocol = spoken
        if self.cache is not None and not again:
            key = self._key(payload, spoken)
            self.cache.put(key, answer, exchange.attempts, exchange.request_id)
            if not payload.hosted:  # a canary is sent to the model itself
                self.cache.keep(self.key, key, payload.data)
            self._note(spoken)
        return Reply(answer, exchange.attempts, exchange.request_id)

    def recorded(self, payload: Payload) -> Reply | None:
        """Return the reply to an image whose answer is recorded.

        Raises:
            EndpointError: it is not, and the endpoint is out of reach, or not to be asked.
        """
        found = None if self.cache is None else self.cache.get(self._key(payload, self.protocol))
        if found is not None:
            if self.protocol is not None and self.recalled is None:
                self._note(self.protocol)
            return Reply(found.answer, found.attempts, found.request_id)
        if self.cache is not None and self.cache.replay:
            raise self._not_recorded("no answer to this image is recorded")
        if self.recalled is not None and self.failure is not None:
            raise self.failure
        return None

    def is_recorded(self, payload: Payload) -> bool:
        """Whether the answer of the model that was last seen there is recorded; nobody is asked who
        is there now.
        """
        identity = self.recall()
        return bool(
            identity is not None and self.cache and self.cache.get(self._key_of(payload, identity))
        )

    def recall(self) -> str | None:
        """Return the identity of the model whose answers were recorded or used last, in the
        protocol that is named.
        """
        found = None if self.cache is None else self.cache.recall(self.key)
        spoken = json.loads(found)[-1].split()[0] if found else None
        return found if self.endpoint.protocol in ("auto", spoken) else None

    def _note(self, protocol: Protocol) -> None:
        """Remember whose answers are used, and the dialect; a later run with the same cache goes on
        in it.
        """
        identity = self._identity(protocol)
        if self.cache is not None and identity != self._noted:
            self.cache.remember(self.key, identity)
            self._noted = identity

    def _identity(self, protocol: Protocol) -> str:
        """Return what tells this model, and the form of its answers, from another behind the same
        URL.
        """
        info = self.info or ModelInfo("")
        told = [info.name, info.weights_sha256, info.patch_embedding_sha256, info.profile]
        return json.dumps([*told, protocol.dialect])

    def _key(self, payload: Payload, protocol: Protocol | None) -> str:
        identity = self.recalled or (self._identity(protocol) if protocol is not None else "")
        return self._key_of(payload, identity)

    def _key_of(self, payload: Payload, identity: str) -> str:
        asked = json.dumps([identity, payload.hosted]) if payload.hosted else identity
        return cache_key(self.endpoint.url, self.endpoint.model, asked, payload.data)

    def _not_recorded(self, what: str) -> NotRecordedError:
        name, file = self.endpoint.name, self.cache.name if self.cache is not None else ""
        text = (
            f"{name}: {what} in {file}, and a replay asks nobody; record it with cache= "
            f"(--cache {file})"
        )
        return NotRecordedError(text, endpoint=name, attempts=0)
