"""Logic shared by the synchronous and the asynchronous client, without network I/O.

    image -> adapter (local) -> PNG -> endpoint -> answer -> mapping -> (fusion) -> Prediction

``AdaptedClient`` and ``AsyncAdaptedClient`` inherit ``Session`` and add only sending and waiting.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, cast
from urllib.parse import unquote_plus, urlsplit

import numpy as np
from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.errors import ConfigurationError, EndpointError, PGNError
from pgn_client.imaging.codecs import PNG, ImageSource, describe, open_image
from pgn_client.mapping.fusion import fuse, is_confident
from pgn_client.types import NONE, Adapter, Answer, Prediction, Prepared, Reply, Usage
from pgn_client.wire.cache import AnswerCache, endpoint_key
from pgn_client.wire.endpoint import Credential, Endpoint
from pgn_client.wire.exchange import Clocks, Exchange, Steps
from pgn_client.wire.http_options import HttpOptions
from pgn_client.wire.jobs import MAX_BATCH, Job, caught, chunks, prepare_each, raised
from pgn_client.wire.ledger import Account, Ledger
from pgn_client.wire.prediction import (
    Checkpoint,
    probabilities,
    ranked,
    verify,
    warn_of_few_labels,
)
from pgn_client.wire.protocols import Payload, open_protocol
from pgn_client.wire.protocols.base import digest
from pgn_client.wire.rate_limit import Pacer
from pgn_client.wire.remote_model import Discovery
from pgn_client.wire.retry import RetryPolicy
from pgn_client.wire.upload import hosted_reply

SAME: Any = ...
"""Default of the arguments of ``with_options``: keep the client's current value."""


class Session(ABC):
    """Base of ``AdaptedClient``, which documents the arguments, and ``AsyncAdaptedClient``."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        pgn_ckpt: str | os.PathLike[str] | Adapter | None,
        *,
        protocol: str = "auto",
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 4,
        max_concurrency: int = 8,
        requests_per_second: float | None = None,
        bytes_per_second: float | None = None,
        fusion: float | Literal["auto"] | None = "auto",
        query_below: float | None = None,
        budget: int | None = None,
        price_per_image: float | None = None,
        price_per_hour: float | None = None,
        ledger: str | os.PathLike[str] | Ledger | None = None,
        cache: str | os.PathLike[str] | AnswerCache | None = None,
        transport: Any = None,
        http: Mapping[str, Any] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        _check(
            "max_concurrency",
            max_concurrency,
            "a whole number, 1 or more",
            lambda x: x >= 1 and x == int(x),
        )
        rate_limits = (
            ("requests_per_second", requests_per_second),
            ("bytes_per_second", bytes_per_second),
        )
        for name, limit in rate_limits:
            if limit is not None:
                _check(name, limit, "a number above 0, or None", lambda x: 0 < x < math.inf)
        self._configure(timeout, max_retries, pgn_ckpt, fusion, query_below)

        self._checkpoint = Checkpoint(pgn_ckpt)
        self._http_options = HttpOptions(http)
        self._transport = transport
        endpoint = _endpoint(url, protocol, model, labels)
        endpoint = replace(
            endpoint, credential=_credential(api_key, self._http_options, endpoint.url)
        )
        # Opened only to raise the error of a wrong name or option now, not at the first image.
        open_protocol(endpoint)

        self.max_concurrency = int(max_concurrency)
        self._pacer = Pacer(requests_per_second, bytes_per_second)
        self._clocks = Clocks()
        # One thread at a time adapts images: this loads the checkpoint once, and an adapter, which
        # may be a user's class, need not be thread-safe.
        self._local_work = threading.Lock()
        self._closed = False
        self._borrows = False

        # The stack closes the opened files if a later argument is invalid.
        with contextlib.ExitStack() as opened:
            if not isinstance(ledger, Ledger):
                ledger = opened.enter_context(contextlib.closing(Ledger(ledger)))
            fingerprint = endpoint_key(endpoint.url, endpoint.model)
            self._account = Account(
                ledger, fingerprint, endpoint.name, budget, price_per_image, price_per_hour
            )

            self._cache = cache if isinstance(cache, AnswerCache) else None
            if cache is not None and self._cache is None:
                self._cache = opened.enter_context(
                    contextlib.closing(AnswerCache(cast("str", cache)))
                )
            self._model = Discovery(endpoint, self._cache)
            self._open()
            self._opened = opened.pop_all()

    def _configure(
        self,
        timeout: float,
        max_retries: int,
        pgn_ckpt: str | os.PathLike[str] | Adapter | None,
        fusion: float | Literal["auto"] | None,
        query_below: float | None,
    ) -> None:
        """Check and set the options that ``with_options`` can change.

        Raises:
            ConfigurationError: An option is invalid.
        """
        _check("timeout", timeout, "seconds, above 0", lambda x: 0 < x < math.inf)
        _check(
            "max_retries",
            max_retries,
            "a whole number, 0 or more",
            lambda x: x >= 0 and x == int(x),
        )
        if fusion not in ("auto", None):
            _check("fusion", fusion, '"auto", None, or a number in [0, 1]', lambda x: 0 <= x <= 1)
        if query_below is not None:
            _check(
                "query_below",
                query_below,
                "a probability in [0, 1], or None",
                lambda x: 0 <= x <= 1,
            )
        if pgn_ckpt is None and (query_below is not None or fusion not in ("auto", None, 0)):
            raise ConfigurationError(
                "fusion and query_below need a checkpoint with a local head: got pgn_ckpt=None"
            )

        self.timeout = float(timeout)
        self._policy = RetryPolicy(max_retries=int(max_retries))
        self._fusion = fusion
        self._query_below = query_below

    def with_options(
        self,
        *,
        pgn_ckpt: str | os.PathLike[str] | Adapter | None = SAME,
        timeout: float = SAME,
        max_retries: int = SAME,
        fusion: float | Literal["auto"] | None = SAME,
        query_below: float | None = SAME,
    ) -> Self:
        """Return a copy of this client with other options.

        The copy shares the connections, the rate and concurrency limits, the budget and usage, the
        cache, and the detected protocol and model. Closing the copy closes none of these. Closing
        this client also ends the copy.

        Args:
            pgn_ckpt: Path of a checkpoint, an adapter, or None. Here and below, an omitted option
                keeps this client's value.
            timeout: Time limit for one call in seconds.
            max_retries: Largest number of retries of one call.
            fusion: Weight in [0, 1] of the local head, the checkpoint's own small classifier;
                ``auto`` for the weight in the checkpoint, or None for 0.
            query_below: Confidence in [0, 1] from which the local head answers alone, or None.

        Raises:
            ConfigurationError: An argument is invalid.
        """
        # A shallow copy shares every object that is not replaced below.
        client = copy.copy(self)
        if pgn_ckpt is not SAME:
            client._checkpoint = Checkpoint(pgn_ckpt)
        client._configure(
            self.timeout if timeout is SAME else timeout,
            self._policy.max_retries if max_retries is SAME else max_retries,
            client._checkpoint.source,
            self._fusion if fusion is SAME else fusion,
            self._query_below if query_below is SAME else query_below,
        )
        client._borrows = True
        return client

    @abstractmethod
    def _open(self) -> None:
        """Create what sends and waits, such as connections; the constructor calls it last."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.name!r}, protocol={self.endpoint.protocol!r})"

    @property
    def endpoint(self) -> Endpoint:
        """The hosted model's address and settings, with the request limits that it describes."""
        return self._model.endpoint

    @property
    def usage(self) -> Usage:
        """Images, requests, bytes and cost of this client and its copies so far."""
        return self._account.usage

    def pace(self, size: int) -> float:
        """Return the seconds by which sending ``size`` bytes delays the next request.

        Only the client's own rate limits count.
        """
        return self._pacer.seconds(size)

    def recorded(self, images: Iterable[ImageSource]) -> int:
        """Return how many images have an answer in the cache; sends nothing.

        Only answers of the model that was last seen at the endpoint count.
        """
        if self._cache is None:
            return 0

        count = 0
        for chunk in chunks(images, self.chunk):
            for job in self._jobs(chunk, always=True):
                if isinstance(job, Job) and self._model.is_recorded(job.payload):
                    count += 1
        return count

    @property
    def rate_limits(self) -> dict[str, str]:
        """The latest rate limit headers of the endpoint's responses, names in lower case."""
        return dict(self._model.rates)

    @property
    def protocol(self) -> str | None:
        """Name of the endpoint's protocol and dialect (its variant); None until it is known."""
        protocol = self._model.protocol
        return None if protocol is None else protocol.dialect

    @property
    def chunk(self) -> int:
        """Number of images that are adapted (painted with prompts) in one batch."""
        return min(self.max_concurrency, MAX_BATCH)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that determine predictions, as JSON values without any credential."""
        adapter = self._open_adapter()
        protocol = "" if self.endpoint.protocol == "auto" else self.endpoint.protocol
        settings = [self.endpoint.labels, dict(self.endpoint.options), protocol]
        # Without settings the key is absent, so that journals of earlier versions stay usable.
        return {
            **({"asked": digest(*settings)} if any(settings) else {}),
            "endpoint": self.endpoint.mark,
            "model": self.endpoint.model,
            "checkpoint": (self._checkpoint.card.fingerprint or "unnamed") if adapter else None,
            "fusion": self._fusion,
            "query_below": self._query_below,
        }

    # ---- Local work: open, adapt, encode. It may run torch, so it never runs in an event loop.

    def _open_adapter(self) -> Adapter | None:
        """Return the adapter that prepares images, or None; the first use loads the checkpoint."""
        checkpoint = self._checkpoint
        if checkpoint.adapter is None and isinstance(checkpoint.source, str | os.PathLike):
            # Imported here because it loads torch, which a client without a checkpoint may lack.
            from pgn_client.prompting import adapter

            profile = self.endpoint.found.profile
            checkpoint.adapter = cast(Adapter, adapter.load(checkpoint.source, profile))
        elif checkpoint.adapter is None:
            checkpoint.adapter = cast("Adapter | None", checkpoint.source)
        return checkpoint.adapter

    def _prepare(self, sources: Sequence[ImageSource]) -> list[Prepared | PGNError]:
        images = [caught(open_image, source) for source in sources]
        with self._local_work:
            return prepare_each(self._open_adapter(), images)

    def _job(self, item: Prepared, *, always: bool) -> Job:
        """Return the job of a prepared image: the encoded image to send, or a local answer.

        Args:
            item: Prepared image.
            always: Whether the endpoint must answer even if the local head, the checkpoint's own
                small classifier, could answer alone.
        """
        local = item.local_log_probs
        # With weight 1 the endpoint's answer would not count, so it is not requested.
        confident = self._alpha(local) == 1.0
        if self._query_below is not None and local is not None:
            confident |= bool(is_confident(local[None], self._query_below)[0])
        if confident and not always:
            return Job(Payload(b"", ""), local, confident=True)

        pixels = item.image.width * item.image.height
        return Job(
            Payload(PNG.encode(item.image), PNG.media_type, pixels, item.image, item.hosted), local
        )

    def _jobs(self, sources: Sequence[ImageSource], *, always: bool) -> list[Job | PGNError]:
        self._check_open()
        refusal = self._account.refusal
        if refusal is not None and self._always_asks():
            # No image could be answered, so preparing them would be wasted work.
            return [refusal for _ in sources]
        items = self._prepare(sources)
        return [
            item if isinstance(item, PGNError) else self._job(item, always=always) for item in items
        ]

    def _always_asks(self) -> bool:
        """Whether every image needs a request to the endpoint."""
        # A recorded answer or a confident local head may spare any image its request.
        if self._cache is not None or self._query_below is not None:
            return False
        with self._local_work:
            adapter = self._open_adapter()
        alpha = self._fusion
        if adapter is not None and alpha == "auto":
            alpha = self._checkpoint.card.fusion
        return alpha != 1

    def _only_job(self, source: ImageSource, *, always: bool, as_it_is: bool = False) -> Job:
        if as_it_is:
            if not isinstance(source, bytes):
                raise ConfigurationError(
                    f"as_it_is: got {describe(source)}, expected the content of a PNG file in bytes"
                )
            image = open_image(source)
            payload = Payload(source, PNG.media_type, image.width * image.height, image)
            # These bytes must reach the endpoint, so a recorded answer does not count.
            return Job(payload, again=True)
        return raised(self._jobs([source], always=always)[0])

    def _only_image(self, source: ImageSource) -> Image.Image:
        return raised(self._prepare([source])[0]).image

    def _alpha(self, local: Floats | None) -> float:
        """Return the weight of the local head, the checkpoint's own small classifier, in [0, 1].

        The caller's option counts; with ``auto``, the weight in the checkpoint.

        Args:
            local: (C,) log-probabilities of the C task classes from the local head, or None without
                one.

        Raises:
            ConfigurationError: The caller's options need a local head, and there is none.
        """
        if local is None and self._query_below is not None:
            raise ConfigurationError(
                "query_below needs a checkpoint with a local head: got one without"
            )
        if self._fusion == "auto":
            weight = self._checkpoint.card.fusion
            return float(weight) if weight is not None and local is not None else 0.0

        alpha = float(self._fusion or 0.0)
        if local is None and alpha > 0:
            raise ConfigurationError("fusion needs a checkpoint with a local head: got one without")
        return alpha

    # ---- Logic of the network calls, as steps that the clients carry out.

    def _check_open(self) -> None:
        if self._closed or self._model.closed:
            raise ConfigurationError("this client is closed; make a new one")

    def _exchange(self, deadline: float | None = None) -> Exchange:
        self._check_open()
        return Exchange(
            self.endpoint,
            self._policy,
            self._account,
            self._pacer,
            self._clocks,
            self.timeout,
            deadline,
        )

    def _is_ready(self, before: EndpointError | None, *, for_info: bool = False) -> bool:
        """Whether images can be sent now, without first asking for the model's description.

        ``Discovery.is_ready`` describes the arguments and errors.
        """
        # Mapping and recorded answers belong to one model; without them, any model will do.
        needed = for_info or self._checkpoint.source is not None or self._cache is not None
        ready = self._model.is_ready(before, needed=needed, for_info=for_info)
        self._verify_once()
        return ready

    def _settle(self, exchange: Exchange, *, for_info: bool) -> Steps[None]:
        """Detect the endpoint's protocol, and check that the checkpoint was made for its model."""
        yield from self._model.settle(exchange, for_info=for_info)
        self._verify_once()

    def _verify_once(self) -> None:
        checkpoint = self._checkpoint
        if self._model.asked and checkpoint.adapter is not None and not checkpoint.verified:
            verify(checkpoint.card, self._model.info, self.endpoint)
            checkpoint.verified = True

    def _reply_without_request(self, job: Job) -> Reply | None:
        """Return the reply to an image if it needs no request, because it is local or recorded.

        Returns:
            The reply, or None if the image must be sent.

        Raises:
            EndpointError: The answer is not recorded, and the endpoint is out of reach or this is a
                replay.
        """
        # The prediction of a confident local head never reads the answer.
        if job.confident:
            return Reply(Answer((), ()))
        return None if job.again else self._model.recorded(job.payload)

    def _reply(self, exchange: Exchange, job: Job) -> Steps[Reply]:
        """Send one image and return the reply.

        A checkpoint that runs on the server is uploaded first if the server does not have it.
        """

        def ask() -> Steps[Reply]:
            return self._model.ask(exchange, job.payload, again=job.again)

        if job.payload.hosted:
            return hosted_reply(exchange, self._model.protocol, self._checkpoint, ask)
        return ask()

    def _canaries(self, k: int) -> tuple[list[Answer], list[Job]]:
        """Return the recorded answers to the cache's first images, and jobs that resend these.

        Args:
            k: Largest number of images.

        Raises:
            ConfigurationError: There is no cache, the cache only replays, or the checkpoint runs on
                the server.
        """
        if self._cache is None or self._cache.replay:
            raise ConfigurationError(
                "drift: got no cache that records, expected the cache of an earlier run; give it "
                "as cache="
            )
        _check("k", k, "a whole number, 1 or more", lambda x: x >= 1 and x == int(x))
        # ``hosted`` is known only after the adapter is loaded.
        self._open_adapter()
        if self._checkpoint.hosted is not None:
            raise ConfigurationError(
                "drift: got a checkpoint that runs on the server, expected a prompt or none"
            )

        answers = []
        jobs = []
        for answer, data in self._cache.canaries(self._model.key)[: int(k)]:
            image = open_image(data)
            payload = Payload(data, PNG.media_type, image.width * image.height, image)
            answers.append(answer)
            jobs.append(Job(payload, again=True))
        return answers, jobs

    def _predict(self, job: Job, reply: Reply) -> Prediction:
        """Return the prediction for one image.

        Its label is ``NONE`` if its score is below ``none_below``, a threshold in the checkpoint.
        """
        prediction = self._rank_classes(job, reply)
        none_below = self._checkpoint.card.none_below or 0.0
        return replace(prediction, label=NONE) if prediction.score < none_below else prediction

    def _rank_classes(self, job: Job, reply: Reply) -> Prediction:
        """Return the prediction of the endpoint, the checkpoint's local head, or both fused.

        Raises:
            ConfigurationError: The endpoint returns embeddings, and there is no checkpoint.
        """
        adapter = self._checkpoint.adapter
        if adapter is None:
            if reply.answer.kind == "embedding":
                raise ConfigurationError(
                    f"{self.endpoint.name} returns embeddings, which name no class: got "
                    "pgn_ckpt=None, expected a checkpoint that maps embeddings to classes; make "
                    "one with pgn map"
                )
            return ranked(reply.answer.labels, probabilities(reply.answer), "endpoint", reply)

        mapping = adapter.mapping
        if job.confident and job.local is not None:
            return ranked(mapping.classes, job.local, "local", reply, log=True)

        log_probs = np.asarray(mapping([reply.answer])[0], dtype=np.float64)
        warn_of_few_labels(self._checkpoint, self.endpoint, reply.answer)
        alpha = self._alpha(job.local)
        if alpha == 0.0 or job.local is None:
            return ranked(mapping.classes, log_probs, "endpoint", reply, log=True)

        fused = fuse(log_probs[None], job.local[None], alpha)[0]
        return ranked(mapping.classes, fused, "both", reply, log=True)

    def _close(self) -> None:
        """Close the cache and ledger files that this client opened; a copy has opened none."""
        self._closed = True
        if self._borrows:
            return
        self._model.closed = True
        self._opened.close()


def _endpoint(
    url: str | os.PathLike[str], protocol: str, model: str | None, labels: Sequence[str] | None
) -> Endpoint:
    """Return the endpoint for a URL or an endpoint file; other arguments override the file."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels or ()):
        raise ConfigurationError(f"labels: got {str(labels)[:100]!r}, expected a list of strings")
    # A value of another type goes to ``Endpoint``, whose check of the URL names it in the error.
    endpoint = Endpoint.open(url) if isinstance(url, str | os.PathLike) else Endpoint(url)
    return replace(
        endpoint,
        protocol=endpoint.protocol if protocol == "auto" else protocol,
        model=model or endpoint.model,
        labels=endpoint.labels if labels is None else tuple(labels),
    )


def _credential(api_key: str | None, http: HttpOptions, url: str) -> Credential:
    """Return the secrets that authorize requests: the API key, or the caller's header or ``auth``.

    The credential also hides other secrets in messages: the proxy's password, and the values in the
    URL's query, which may be tokens.

    Raises:
        ConfigurationError: There are two ways to authorize, or the key cannot be sent.
    """
    authorizes = "authorization" in map(str.lower, http.headers) or "auth" in http.arguments()
    if api_key is not None and authorizes:
        raise ConfigurationError(
            "api_key: got a key, and another authorization in http=; give only one of them"
        )
    key = api_key
    if api_key is None and not authorizes:
        key = os.environ.get("PGN_API_KEY") or None
    return Credential(key, http.headers, http.secrets(), (*http.passwords(), *_query_values(url)))


def _query_values(url: str) -> Iterator[str]:
    """Yield the values in a URL's query, both as spelled there and decoded."""
    for part in urlsplit(url).query.split("&"):
        # A part without "=" may be a bare token.
        value = part.partition("=")[2] or part
        # Shorter values are too common to redact, and too short to be a token.
        if len(value) > 3:
            yield value
            yield unquote_plus(value)


def _check(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    # Comparing another type would raise TypeError; a bool is an int in Python, but no number here.
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not fits(value):
        raise ConfigurationError(f"{name}: got {value!r}, expected {expected}")
