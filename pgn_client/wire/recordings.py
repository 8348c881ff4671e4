"""The recorded answers of one endpoint: an image is paid for once per model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace

from pgn_client.errors import ConfigurationError, EndpointError, NotRecordedError
from pgn_client.imaging.codecs import PNG
from pgn_client.types import ModelInfo, Reply
from pgn_client.wire.cache import AnswerCache, cache_key, endpoint_key
from pgn_client.wire.prepare import Job
from pgn_client.wire.protocols import Payload, Protocol
from pgn_client.wire.remote_model import RemoteModel
from pgn_client.wire.steps import Steps


class Recordings:
    """Answers of one endpoint in a cache; without a cache nothing is recorded.

    Args:
        cache: Recorded answers, or None.
        remote: Model behind the endpoint; recorded answers belong to one model.

    Attributes:
        key: Fingerprint of the endpoint in the cache. It includes labels and options, because the
            answers depend on them.
        stand_in: Model identity from the cache, in use while the endpoint is out of reach or during
            a replay.
        outage: Error that the stand-in spares; None during a replay.

    Raises:
        ConfigurationError: The cache only replays, and holds no answers of this endpoint.
    """

    def __init__(self, cache: AnswerCache | None, remote: RemoteModel) -> None:
        self.cache = cache
        self._remote = remote
        endpoint = remote.endpoint
        settings = [endpoint.labels, dict(endpoint.options)]
        # Without settings the key is that of earlier versions, whose recordings stay readable.
        settings_json = json.dumps(settings, sort_keys=True) if any(settings) else ""
        self.key = endpoint_key(endpoint.url, endpoint.model, settings_json)
        self.stand_in: str | None = None
        self.outage: EndpointError | None = None
        self._until = 0.0
        # The identity last written to the cache, so that not every image writes it again.
        self._noted: str | None = None

        if cache is not None and cache.replay:
            self.stand_in = self.recall()
            if self.stand_in is None:
                raise ConfigurationError(
                    f"replay: got {cache.name}, which holds no answer of {endpoint.name} with "
                    "these settings; give the URL, model, protocol, labels and options of the "
                    "recording"
                )

    @property
    def replays(self) -> bool:
        """Whether the cache only replays, so that nothing may be sent."""
        return self.cache is not None and self.cache.replay

    def stand_in_for(self, outage: EndpointError, until: float) -> bool:
        """Use the model last seen while the endpoint is out of reach; return whether there is one.

        Args:
            outage: Error of the request that could not reach the endpoint.
            until: Time on the monotonic clock from which the endpoint is tried again, in seconds.
        """
        # Another call may have got the description meanwhile.
        if self._remote.description.done:
            return True
        self.stand_in = self.recall()
        self.outage = outage
        self._until = until
        return self.stand_in is not None

    def stands_in(self, now: float) -> bool:
        """Whether the model last seen is in use, so that the endpoint is not tried yet."""
        return self.outage is not None and self.stand_in is not None and now < self._until

    def end_stand_in(self) -> None:
        """Go back to the endpoint's own description of its model."""
        self.stand_in = None
        self.outage = None

    def reply(self, job: Job, ask: Callable[[], Steps[tuple[Reply, Payload]]]) -> Steps[Reply]:
        """Return the recorded reply to an image, or send the image and record the reply.

        Args:
            job: Prepared image.
            ask: Function that returns the steps of sending the image; their result is the reply and
                the form of the image that was sent.

        Raises:
            EndpointError: No reply is recorded, and the endpoint is out of reach or this is a
                replay.
        """
        if self.cache is None or job.again:
            reply, _ = yield from ask()
            return reply

        recorded = self._recorded(job.payload)
        if recorded is not None:
            return recorded
        reply, form = yield from ask()
        # The dialect in use, in which the next run looks for it. This image alone may have been
        # answered in a plainer one.
        protocol = self._remote.accepted.protocol
        # An answer to a scaled copy is none to the image itself.
        if protocol is None or form.pixels < job.payload.pixels:
            return reply
        key = self._key(job.payload, protocol)
        self.cache.put(key, reply.answer, reply.attempts, reply.request_id)
        # A drift check sends its images as PNG to the model itself, so those of a hosted adapter
        # are not kept for it.
        if not job.payload.hosted and form.media_type == PNG.media_type:
            self.cache.keep(self.key, key, form.data)
        self._note(protocol)
        return reply

    def _recorded(self, payload: Payload) -> Reply | None:
        if self.cache is None:
            return None
        protocol = self._remote.accepted.protocol
        recorded = self.cache.get(self._key(payload, protocol))
        if recorded is not None:
            # A later run resumes from the model last used, also if all its answers were recorded.
            # An identity that stands in comes from the cache, so there is nothing to write.
            if protocol is not None and self.stand_in is None:
                self._note(protocol)
                self._remote.accepted.proven.add(protocol.dialect)
            return replace(recorded, recorded=True)
        if self.replays:
            raise self.not_recorded("no answer to this image is recorded")
        if self.outage is not None:
            # A copy, because each raise of the same object lengthens its traceback, which keeps the
            # images of all calls in memory.
            raise copy.copy(self.outage).with_traceback(None)
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
        protocol = None if identity is None else _protocol_of(identity)
        return identity if self._remote.endpoint.protocol in ("auto", protocol) else None

    def resumed(self, protocol: Protocol) -> Protocol:
        """Return the dialect in which to start: the plainer one in which an earlier run ended."""
        plainer = protocol.plainer()
        while plainer is not None:
            if self._identity(plainer) == self.recall():
                return plainer
            plainer = plainer.plainer()
        return protocol

    def not_recorded(self, what: str) -> NotRecordedError:
        """Return the error for something that a replay lacks."""
        name = self._remote.endpoint.name
        file = self.cache.name if self.cache is not None else ""
        text = (
            f"{name}: {what} in {file}, and a replay sends nothing; record it with cache= "
            f"(--cache {file})"
        )
        return NotRecordedError(text, endpoint=name, attempts=0)

    def _note(self, protocol: Protocol) -> None:
        """Record the current model and dialect in the cache, for later runs to start from.

        The dialect is the variant of the protocol that the endpoint accepts.
        """
        identity = self._identity(protocol)
        if self.cache is not None and identity != self._noted:
            self.cache.remember(self.key, identity)
            self._noted = identity

    def _identity(self, protocol: Protocol) -> str:
        """Return a text that identifies the endpoint's model and a dialect of the protocol."""
        info = self._remote.info or ModelInfo("")
        fields = [info.name, info.weights_sha256, info.patch_embedding_sha256, info.profile]
        return json.dumps([*fields, protocol.dialect])

    def _key(self, payload: Payload, protocol: Protocol | None) -> str:
        if self.stand_in is not None:
            return self._key_of(payload, self.stand_in)
        return self._key_of(payload, "" if protocol is None else self._identity(protocol))

    def _key_of(self, payload: Payload, identity: str) -> str:
        if payload.hosted:
            identity = json.dumps([identity, payload.hosted])
        endpoint = self._remote.endpoint
        return cache_key(endpoint.url, endpoint.model, identity, payload.data)


def _protocol_of(identity: str) -> str | None:
    """Return the name of the protocol in a model's identity; None if it cannot be read.

    The identity ends with the dialect, which begins with the protocol's name.
    """
    fields = json.loads(identity)
    dialect = fields[-1] if isinstance(fields, list) and fields else None
    words = dialect.split() if isinstance(dialect, str) else []
    return words[0] if words else None
