"""Logic shared by the sync and async clients; no I/O.

    image -> adapter (local) -> PNG -> endpoint -> answer -> mapping -> (fusion) -> Prediction

``AdaptedClient`` and ``AsyncAdaptedClient`` inherit this and add only sending and sleeping.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, cast
from urllib.parse import unquote_plus, urlsplit

import numpy as np
from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.errors import (
    ConfigurationError,
    EndpointError,
    PGNError,
)
from pgn_client.imaging.codecs import PNG, ImageSource, describe, open_image
from pgn_client.mapping.fusion import fuse, is_confident
from pgn_client.types import NONE, Adapter, Answer, Prediction, Prepared, Usage
from pgn_client.wire.cache import AnswerCache, endpoint_key
from pgn_client.wire.endpoint import Credential, Endpoint
from pgn_client.wire.exchange import Clocks, Exchange, Steps
from pgn_client.wire.http_options import HttpOptions
from pgn_client.wire.jobs import MAX_BATCH, Job, caught, chunks, prepare_each, raised
from pgn_client.wire.ledger import Account, Ledger
from pgn_client.wire.prediction import (
    Checkpoint,
    Reply,
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
"""Sentinel for `with_options`: keep this client's value."""


class Session(ABC):
    """What both clients share; see ``AdaptedClient`` for the arguments."""

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
        for name, limit in (
            ("requests_per_second", requests_per_second),
            ("bytes_per_second", bytes_per_second),
        ):
            if limit is not None:
                _check(name, limit, "a number above 0, or None", lambda x: 0 < x < math.inf)
        self._configure(timeout, max_retries, pgn_ckpt, fusion, query_below)
        self._checkpoint = Checkpoint(pgn_ckpt)
        self._http_options, self._transport = HttpOptions(http), transport
        endpoint = _endpoint(url, protocol, model, labels)
        endpoint = replace(
            endpoint, credential=_credential(api_key, self._http_options, endpoint.url)
        )
        open_protocol(endpoint)  # a wrong name or option is told now, not at the first image
        self.max_concurrency = int(max_concurrency)
        self._pacer = Pacer(requests_per_second, bytes_per_second)
        self._clocks = Clocks()
        self._local_work = threading.Lock()
        self._closed = self._borrows = False
        # nothing stays open where a later argument cannot work
        with contextlib.ExitStack() as opened:
            book = (
                ledger
                if isinstance(ledger, Ledger)
                else opened.enter_context(contextlib.closing(Ledger(ledger)))
            )
            fingerprint = endpoint_key(endpoint.url, endpoint.model)
            self._account = Account(book, fingerprint, endpoint.name, budget, price_per_image)
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
        """Check and keep the options in which copies may differ."""
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
                "fusion and query_below need the local head of a checkpoint: got pgn_ckpt=None"
            )
        self.timeout, self._policy = float(timeout), RetryPolicy(max_retries=int(max_retries))
        self._fusion, self._query_below = fusion, query_below

    def with_options(
        self,
        *,
        pgn_ckpt: str | os.PathLike[str] | Adapter | None = SAME,
        timeout: float = SAME,
        max_retries: int = SAME,
        fusion: float | Literal["auto"] | None = SAME,
        query_below: float | None = SAME,
    ) -> Self:
        """Return a client with other options that shares all else with this one.

        Shared are the connections, the limits of rate and concurrency, budget and usage, the cache,
        and what was found out about the endpoint. Closing the copy closes none of it; closing this
        client ends the copy too.

        Args:
            pgn_ckpt: as of the constructor, like the others; what is left out stays as it is.
            timeout: seconds for one call.
            max_retries: requests beyond the first.
            fusion: weight of the local head.
            query_below: how sure the local head answers alone.

        Raises:
            ConfigurationError: an argument that cannot work.
        """
        made = copy.copy(self)
        if pgn_ckpt is not SAME:
            made._checkpoint = Checkpoint(pgn_ckpt)
        made._configure(
            self.timeout if timeout is SAME else timeout,
            self._policy.max_retries if max_retries is SAME else max_retries,
            made._checkpoint.source,
            self._fusion if fusion is SAME else fusion,
            self._query_below if query_below is SAME else query_below,
        )
        made._borrows = True
        return made

    @abstractmethod
    def _open(self) -> None:
        """Make what sends and waits; the last thing that the constructor does."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.name!r}, protocol={self.endpoint.protocol!r})"

    @property
    def endpoint(self) -> Endpoint:
        """Where images go, with the limits that it told."""
        return self._model.endpoint

    @property
    def usage(self) -> Usage:
        """What this client and its copies have used so far."""
        return self._account.usage

    def pace(self, size: int) -> float:
        """Return for how long one image of ``size`` bytes keeps the next one back, by the
        client's own limits.
        """
        return self._pacer.seconds(size)

    def recorded(self, images: Iterable[ImageSource]) -> int:
        """Return how many of these images the cache could answer for the model that was last
        seen; sends nothing.
        """
        if self._cache is None:
            return 0
        jobs = (
            job for chunk in chunks(images, self.chunk) for job in self._jobs(chunk, always=True)
        )
        return sum(isinstance(job, Job) and self._model.is_recorded(job.payload) for job in jobs)

    @property
    def rate_limits(self) -> dict[str, str]:
        """What the endpoint's last answers said of their limits of rate: headers, names in lower
        case.
        """
        return dict(self._model.rates)

    @property
    def protocol(self) -> str | None:
        """The wire format that is spoken, and its dialect; None before the first question."""
        spoken = self._model.protocol
        return None if spoken is None else spoken.dialect

    @property
    def chunk(self) -> int:
        """How many images are adapted together."""
        return min(self.max_concurrency, MAX_BATCH)

    def fingerprint(self) -> dict[str, Any]:
        """Return what this client's predictions depend on, as JSON; holds no credential."""
        adapter = self._open_adapter()
        named = "" if self.endpoint.protocol == "auto" else self.endpoint.protocol
        told = [self.endpoint.labels, dict(self.endpoint.options), named]
        return {
            **({"asked": digest(*told)} if any(told) else {}),
            "endpoint": self.endpoint.mark,
            "model": self.endpoint.model,
            "checkpoint": (self._checkpoint.card.fingerprint or "unnamed") if adapter else None,
            "fusion": self._fusion,
            "query_below": self._query_below,
        }

    # ---- local work: open, adapt, encode; runs torch, so it never runs in an event loop

    def _open_adapter(self) -> Adapter | None:
        """Return the adapter, loading the checkpoint at the first use."""
        opened = self._checkpoint
        if opened.adapter is None and isinstance(opened.source, str | os.PathLike):
            from pgn_client.prompting import adapter

            opened.adapter = cast(Adapter, adapter.load(opened.source, self.endpoint.found.profile))
        elif opened.adapter is None:
            opened.adapter = cast("Adapter | None", opened.source)
        return opened.adapter

    def _prepare(self, sources: Sequence[ImageSource]) -> list[Prepared | PGNError]:
        images = [caught(open_image, source) for source in sources]
        with self._local_work:
            return prepare_each(self._open_adapter(), images)

    def _job(self, item: Prepared, *, always: bool) -> Job:
        """Decide whether the endpoint is asked at all (``always``: it is)."""
        alpha = self._alpha(item.local_log_probs)
        local = item.local_log_probs
        confident = alpha == 1.0
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
            # none of them could be answered: spare their preparation
            return [refusal for _ in sources]
        items = self._prepare(sources)
        return [
            item if isinstance(item, PGNError) else self._job(item, always=always) for item in items
        ]

    def _always_asks(self) -> bool:
        """Whether no image can be answered without the endpoint."""
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
                    f"as_it_is: got {describe(source)}, expected the bytes of a PNG file"
                )
            image = open_image(source)
            return Job(
                Payload(source, PNG.media_type, image.width * image.height, image), again=True
            )
        return raised(self._jobs([source], always=always)[0])

    def _only_image(self, source: ImageSource) -> Image.Image:
        return raised(self._prepare([source])[0]).image

    def _alpha(self, local: Floats | None) -> float:
        """Return the weight of the local head: the card's, or the caller's."""
        if local is None and self._query_below is not None:
            raise ConfigurationError(
                "query_below needs a checkpoint with a local head: got one without"
            )
        if self._fusion == "auto":
            wish = self._checkpoint.card.fusion
            return float(wish) if wish is not None and local is not None else 0.0
        alpha = float(self._fusion or 0.0)
        if local is None and alpha > 0:
            raise ConfigurationError("fusion needs a checkpoint with a local head: got one without")
        return alpha

    # ---- decisions about the network, as steps for the drivers

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
        """Whether nothing needs to be asked before the first image; see
        ``Discovery.is_ready``.
        """
        needed = for_info or self._checkpoint.source is not None or self._cache is not None
        ready = self._model.is_ready(before, needed=needed, for_info=for_info)
        self._verify_once()
        return ready

    def _settle(self, exchange: Exchange, *, for_info: bool) -> Steps[None]:
        """Find the protocol, and check that the checkpoint was made for this model."""
        yield from self._model.settle(exchange, for_info=for_info)
        self._verify_once()

    def _verify_once(self) -> None:
        opened = self._checkpoint
        if self._model.asked and opened.adapter is not None and not opened.verified:
            verify(opened.card, self._model.info, self.endpoint)
            opened.verified = True

    def _known(self, job: Job) -> Reply | None:
        """Return the reply to an image for which nothing needs to be sent.

        Raises:
            EndpointError: its answer is not recorded, and the endpoint is out of reach.
        """
        if job.confident:
            return Reply(Answer((), ()))
        return None if job.again else self._model.recorded(job.payload)

    def _reply(self, exchange: Exchange, job: Job) -> Steps[Reply]:
        def ask() -> Steps[Reply]:
            return self._model.ask(exchange, job.payload, again=job.again)

        return (
            hosted_reply(exchange, self._model.protocol, self._checkpoint, ask)
            if job.payload.hosted
            else ask()
        )

    def _canaries(self, k: int) -> tuple[list[Answer], list[Job]]:
        """Return the recorded answers to the first images that were sent, and what sends these
        once more.
        """
        if self._cache is None or self._cache.replay:
            raise ConfigurationError(
                "drift: got no cache that records, expected the one of an earlier run as cache="
            )
        _check("k", k, "a whole number, 1 or more", lambda x: x >= 1 and x == int(x))
        self._open_adapter()
        if self._checkpoint.hosted is not None:
            raise ConfigurationError(
                "drift: got a checkpoint that runs on the server, expected a prompt or none"
            )
        kept = self._cache.canaries(self._model.key)[: int(k)]
        images = [(data, open_image(data)) for _, data in kept]
        payloads = (Payload(data, PNG.media_type, i.width * i.height, i) for data, i in images)
        return [answer for answer, _ in kept], [Job(payload, again=True) for payload in payloads]

    def _predict(self, job: Job, reply: Reply) -> Prediction:
        """Turn what is known into a Prediction; an unlikely one is none of the classes, where the
        card says so.
        """
        found = self._likeliest(job, reply)
        none_below = self._checkpoint.card.none_below
        return replace(found, label=NONE) if found.score < none_below else found

    def _likeliest(self, job: Job, reply: Reply) -> Prediction:
        """Rank the classes."""
        adapter = self._checkpoint.adapter
        if adapter is None:
            if reply.answer.kind == "embedding":
                raise ConfigurationError(
                    f"{self.endpoint.name} answers with embeddings, which name no class: got "
                    "pgn_ckpt=None, expected "
                    "a checkpoint that reads them; make one with pgn map"
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
        """Close what this client opened; a copy has opened nothing."""
        self._closed = True
        if self._borrows:
            return
        self._model.closed = True
        self._opened.close()


def _endpoint(
    url: str | os.PathLike[str], protocol: str, model: str | None, labels: Sequence[str] | None
) -> Endpoint:
    """Open a URL, or a file that describes an endpoint; what is said beside the file wins."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels or ()):
        raise ConfigurationError(f"labels: got {str(labels)[:100]!r}, expected a list of texts")
    endpoint = Endpoint.open(url) if isinstance(url, str | os.PathLike) else Endpoint(url)
    return replace(
        endpoint,
        protocol=endpoint.protocol if protocol == "auto" else protocol,
        model=model or endpoint.model,
        labels=endpoint.labels if labels is None else tuple(labels),
    )


def _credential(api_key: str | None, http: HttpOptions, url: str) -> Credential:
    """Return what authorises requests: the key, or a header of the caller's own that says the same.

    A value in the URL's query may be a token too: no message shows it, as none shows the query
    itself.
    """
    own = "authorization" in map(str.lower, http.headers) or "auth" in http.arguments()
    if api_key is not None and own:
        raise ConfigurationError(
            "api_key: got one, and another authorisation in http=; give one of them"
        )
    key = api_key if api_key is not None or own else os.environ.get("PGN_API_KEY") or None
    words = (part.partition("=")[2] or part for part in urlsplit(url).query.split("&"))
    queried = (spelt for word in words if len(word) > 3 for spelt in (word, unquote_plus(word)))
    return Credential(key, http.headers, http.secrets(), (*http.passwords(), *queried))


def _check(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not fits(value):
        raise ConfigurationError(f"{name}: got {value!r}, expected {expected}")
