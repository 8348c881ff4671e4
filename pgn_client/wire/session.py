"""A client's images, from source to prediction, as steps without network I/O.

    source -> prepare (open, adapt, encode) -> recorded? -> endpoint -> prediction

``AdaptedClient`` and ``AsyncAdaptedClient`` own a ``Session`` and carry out its steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, cast

from PIL import Image

from pgn_client.errors import (
    ConfigurationError,
    ConnectionFailedError,
    EndpointError,
    ImageError,
    PGNError,
    TimedOutError,
)
from pgn_client.imaging.codecs import ImageSource, describe
from pgn_client.types import Answer, ImageFailure, ModelInfo, Prediction, Reply
from pgn_client.wire.cache import AnswerCache
from pgn_client.wire.call_options import CallOptions, check_whole
from pgn_client.wire.drift import Drift, differing, judge
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.exchange import Exchange
from pgn_client.wire.ledger import Account
from pgn_client.wire.loaded_adapter import LoadedAdapter
from pgn_client.wire.prediction import predict, verify
from pgn_client.wire.prepare import Job, Preparer, chunks, raised, verbatim
from pgn_client.wire.protocols import open_protocol
from pgn_client.wire.protocols.base import digest
from pgn_client.wire.rate_limit import Pacer
from pgn_client.wire.recordings import Recordings
from pgn_client.wire.remote_model import RemoteModel
from pgn_client.wire.steps import Clocks, Steps, Turn, Work
from pgn_client.wire.upload import hosted_reply
from pgn_client.wire.window import Done

LOCAL = Reply(Answer((), ()))
"""Reply of an image that the local head answers alone; the prediction never reads it."""
OUTAGE = 30.0
"""Seconds for which recorded answers stand in before the endpoint is tried again."""


CLOSED = "this client is closed; make a new one"


class Session:
    """Logic shared by the synchronous and the asynchronous client; no network I/O.

    Args:
        endpoint: Endpoint with its credential.
        adapter: Checkpoint of the client.
        options: Options of each call.
        account: Budget and usage.
        pacer: Client-side rate limits.
        cache: Recorded answers, or None.

    Attributes:
        adapter: Checkpoint of the client.
        options: Options of each call.
        remote: Model behind the endpoint.
        recordings: Recorded answers of the endpoint.
        account: Budget and usage.
        pacer: Client-side rate limits.
        clocks: Clocks, which tests replace.
        closed: Whether the client is closed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        adapter: LoadedAdapter,
        options: CallOptions,
        account: Account,
        pacer: Pacer,
        cache: AnswerCache | None,
    ) -> None:
        # Opened only to raise the error of a wrong name or option now, not at the first image.
        open_protocol(endpoint)
        options.check_checkpoint(adapter.source is not None)
        self.adapter = adapter
        self.options = options
        self.remote = RemoteModel(endpoint)
        self.recordings = Recordings(cache, self.remote)
        self.account = account
        self.pacer = pacer
        self.clocks = Clocks()
        self.closed = False
        # The session from which ``with_options`` copied this one; closing it closes this one too.
        self._original: Session | None = None

    def with_options(self, adapter: LoadedAdapter, options: CallOptions) -> Session:
        """Return a session with another checkpoint and options that shares everything else."""
        options.check_checkpoint(adapter.source is not None)
        session = Session.__new__(Session)
        session.__dict__.update(self.__dict__)
        session.adapter = adapter
        session.options = options
        session._original = self
        return session

    @property
    def endpoint(self) -> Endpoint:
        """The hosted model's address and settings, with the request limits that it describes."""
        return self.remote.endpoint

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that determine predictions, as JSON values without any credential."""
        endpoint = self.endpoint
        protocol = "" if endpoint.protocol == "auto" else endpoint.protocol
        settings = [endpoint.labels, dict(endpoint.options), protocol]
        has_checkpoint = self.adapter.open(endpoint.found.profile) is not None
        # Without settings the key is absent, so that journals of earlier versions stay usable.
        return {
            **({"asked": digest(*settings)} if any(settings) else {}),
            "endpoint": endpoint.mark,
            "model": endpoint.model,
            "checkpoint": (self.adapter.card.fingerprint or "unnamed") if has_checkpoint else None,
            "fusion": self.options.weights.fusion,
            "query_below": self.options.weights.query_below,
        }

    # ---- Calls of one image.

    def classify(self, source: ImageSource) -> Steps[Prediction]:
        """Return the predicted task class of one image."""
        job = yield from self._only_job(source, always=False)
        if job.confident:
            return self._predict(job, LOCAL)
        reply = yield from self._ready_and_reply(job)
        return self._predict(job, reply)

    def answer(self, source: ImageSource, *, as_it_is: bool = False) -> Steps[Answer]:
        """Return the endpoint's own labels and scores for one image."""
        if as_it_is and not isinstance(source, bytes):
            raise ConfigurationError(
                f"as_it_is: got {describe(source)}, expected the content of a PNG file in bytes"
            )
        if as_it_is:
            self.check_open()
            # These bytes must reach the endpoint, so a recorded answer does not count.
            job = verbatim(cast(bytes, source))
        else:
            job = yield from self._only_job(source, always=True)
        reply = yield from self._ready_and_reply(job)
        return reply.answer

    def adapt(self, source: ImageSource) -> Image.Image:
        """Return exactly the RGB image that would be sent; nothing is sent."""
        return self._preparer.image(source)

    def info(self) -> Steps[ModelInfo | None]:
        """Return the endpoint's description of its model, or None if it gives none."""
        yield from self.ready(for_info=True)
        return self.remote.info

    def check(self) -> Steps[ModelInfo | None]:
        """Load the checkpoint, ask for the model's description, and check that they fit."""
        yield Work(lambda: self.adapter.open(self.endpoint.found.profile))
        if self.recordings.replays:
            return None
        info = yield from self.info()
        self._verify()
        protocol = self.remote.accepted.protocol
        if protocol is not None and protocol.describe() is None:
            yield from self._exchange().reach(protocol)
        return info

    def drift(self, k: int) -> Steps[Drift]:
        """Test whether the hosted model has changed, by sending recorded images again."""
        recorded, jobs = yield Work(lambda: self._canaries(k))
        now: list[Answer] = []
        if jobs:
            yield from self.ready()
        for job in jobs:
            now.append((yield from self.reply(job)).answer)
        # Sending the differing images once more shows the model's own noise.
        repeated: dict[int, Answer] = {}
        for i in differing(recorded, now):
            repeated[i] = (yield from self.reply(jobs[i])).answer
        return judge(recorded, now, repeated)

    # ---- Calls of many images: prepared in chunks, then sent one by one.

    def prepare(self, sources: Sequence[ImageSource], *, always: bool) -> list[Job | PGNError]:
        """Do the local work on a chunk of images: return each ready to be sent, or its error."""
        self.check_open()
        refusal = self.account.refusal
        if refusal is not None and self._sends_all():
            # No image could be answered, so preparing them would be wasted work.
            return [refusal for _ in sources]
        return self._preparer.jobs(sources, always=always)

    def attempt(
        self, source: ImageSource, job: Job | PGNError
    ) -> Steps[Done[Prediction | ImageFailure]]:
        """Return the prediction of one prepared image, or the failure of this image."""
        try:
            good = raised(job)
            if good.confident:
                return Done(self._predict(good, LOCAL), False)
            reply = yield from self.reply(good)
            return Done(self._predict(good, reply), not reply.recorded)
        except PGNError as error:
            # During an outage, what is not recorded fails without being sent.
            return Done(ImageFailure(describe(source), error), self.recordings.outage is None)

    def answered(self, source: ImageSource, job: Job | PGNError) -> Steps[Done[Answer]]:
        """Return the endpoint's answer to one prepared image, or raise its error by name."""
        try:
            reply = yield from self.reply(raised(job))
        except (ImageError, EndpointError) as error:
            # One image of many must be named, or nobody can find it.
            name = describe(source)
            if not str(error).startswith(name):
                error.args = (f"{name}: {error}",)
            raise
        return Done(reply.answer, not reply.recorded)

    def tried(self, source: ImageSource, job: Job | PGNError) -> Steps[Done[Answer | ImageFailure]]:
        """Return the endpoint's answer to one prepared image, or the failure of this image."""
        try:
            reply = yield from self.reply(raised(job))
            return Done(reply.answer, not reply.recorded)
        except PGNError as error:
            # During an outage, what is not recorded fails without being sent.
            return Done(ImageFailure(describe(source), error), self.recordings.outage is None)

    # ---- The parts of a call.

    def ready(self, *, for_info: bool = False) -> Steps[None]:
        """Ask for the model's description if it is missing, and check that the checkpoint fits.

        While the endpoint is out of reach, the recorded answers of the model that was last seen
        there stay usable.

        Args:
            for_info: Whether the caller needs the model description itself.

        Raises:
            CheckpointError: The checkpoint was made for another model.
            EndpointError: The endpoint gave no usable description, and no recorded model can
                replace it.
        """
        yield from self._ready(self._exchange(), for_info=for_info)

    def reply(self, job: Job) -> Steps[Reply]:
        """Return the endpoint's reply to a prepared image, new or recorded; see ``ready``."""
        yield Turn()
        return (yield from self._reply(self._exchange(), job))

    def _ready_and_reply(self, job: Job) -> Steps[Reply]:
        # One exchange, so that one deadline covers the description and the image.
        yield Turn()
        exchange = self._exchange()
        yield from self._ready(exchange)
        return (yield from self._reply(exchange, job))

    def _ready(self, exchange: Exchange, *, for_info: bool = False) -> Steps[None]:
        if self.recordings.replays:
            if for_info:
                raise self.recordings.not_recorded("the model description is not recorded")
            return
        # Mapping and recorded answers belong to one model; without them, any model will do.
        needs_model = (
            for_info or self.adapter.source is not None or self.recordings.cache is not None
        )
        if not needs_model and self.remote.sends_undescribed:
            return
        if not self.remote.description.done:
            if not for_info and self.recordings.stands_in(self.clocks.monotonic()):
                return
            try:
                yield from self.remote.describe(exchange)
            # An endpoint that answers with an error is reachable, and the caller must see the
            # error, for example a rejected key.
            except (ConnectionFailedError, TimedOutError) as error:
                until = self.clocks.monotonic() + OUTAGE
                if for_info or not self.recordings.stand_in_for(error, until):
                    raise
                return
            self._resume_dialect()
        if not for_info:
            self._verify()

    def _verify(self) -> None:
        """Check once that the checkpoint was made for the endpoint's model."""
        if self.adapter.source is not None and not self.adapter.verified:
            verify(self.adapter.card, self.remote.info, self.endpoint)
            self.adapter.verified = True

    def _resume_dialect(self) -> None:
        """Start in the dialect in which an earlier run with this cache ended."""
        self.recordings.end_stand_in()
        protocol = self.remote.accepted.protocol
        if protocol is not None:
            self.remote.accepted.protocol = self.recordings.resumed(protocol)

    def _reply(self, exchange: Exchange, job: Job) -> Steps[Reply]:
        """Return the recorded reply to an image, or send the image.

        A checkpoint that runs on the server is uploaded first if the server does not have it.
        """
        send = partial(self.remote.ask, exchange, job.payload)
        if job.payload.hosted:
            protocol = self.remote.accepted.protocol
            send = partial(hosted_reply, exchange, protocol, self.adapter, send)
        try:
            return (yield from self.recordings.reply(job, send))
        except ImageError as error:
            # An error about one image of many must name it.
            raise ImageError(f"{job.name}: {error}") from error

    def _predict(self, job: Job, reply: Reply) -> Prediction:
        return predict(self.adapter, self.options.weights, self.endpoint, job, reply)

    def _only_job(self, source: ImageSource, *, always: bool) -> Steps[Job]:
        self.check_open()
        return cast(Job, (yield Work(partial(self._preparer.job, source, always=always))))

    @property
    def _preparer(self) -> Preparer:
        return Preparer(self.adapter, self.options.weights, self.endpoint.found.profile)

    def _exchange(self) -> Exchange:
        self.check_open()
        return Exchange(
            self.endpoint,
            self.remote.accepted,
            self.options.policy,
            self.account,
            self.pacer,
            self.clocks,
            float(self.options.timeout),
        )

    @property
    def is_closed(self) -> bool:
        """Whether the client, or the one that it was copied from, is closed."""
        original = self._original
        return self.closed or (original is not None and original.is_closed)

    def check_open(self) -> None:
        """Check that the client is open.

        Raises:
            ConfigurationError: The client, or the one that it was copied from, is closed.
        """
        if self.is_closed:
            raise ConfigurationError(CLOSED)

    def _sends_all(self) -> bool:
        """Whether every image needs a request to the endpoint."""
        # A recorded answer may spare any image its request.
        if self.recordings.cache is not None:
            return False
        self.adapter.open(self.endpoint.found.profile)
        return self.options.weights.sends_all(self.adapter.card)

    def recorded(self, images: Iterable[ImageSource], chunk: int) -> int:
        """Return how many images have an answer in the cache; sends nothing.

        Only answers of the model that was last seen at the endpoint count.
        """
        if self.recordings.cache is None:
            return 0

        count = 0
        for sources in chunks(images, chunk):
            for job in self.prepare(sources, always=True):
                if isinstance(job, Job) and self.recordings.is_recorded(job.payload):
                    count += 1
        return count

    def _canaries(self, k: int) -> tuple[list[Answer], list[Job]]:
        """Return the recorded answers to the cache's first images, and jobs that resend these.

        Args:
            k: Largest number of images.

        Raises:
            ConfigurationError: There is no cache, the cache only replays, or the checkpoint runs on
                the server.
        """
        self.check_open()
        cache = self.recordings.cache
        if cache is None or cache.replay:
            raise ConfigurationError(
                "drift: got no cache that records, expected the cache of an earlier run; give it "
                "as cache="
            )
        check_whole("k", k, least=1)
        # ``hosted`` is known only after the adapter is loaded.
        self.adapter.open(self.endpoint.found.profile)
        if self.adapter.hosted is not None:
            raise ConfigurationError(
                "drift: got a checkpoint that runs on the server, expected a prompt or none"
            )
        pairs = cache.canaries(self.recordings.key)[: int(k)]
        return [answer for answer, _ in pairs], [verbatim(data) for _, data in pairs]
