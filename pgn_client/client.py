"""``AdaptedClient`` and ``AsyncAdaptedClient``: a picture goes in, the hosted model's opinion about the task comes out.

    picture -> adapter (local) -> PNG -> endpoint -> answer -> label mapping -> (fusion) -> Prediction

Everything but the waiting is shared: ``_Client`` decides, and the two classes at the end send and sleep. This is the
only module that imports httpx; it imports no torch, the adapter does when a checkpoint is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgn_client.cache import AnswerCache, cache_key
from pgn_client.codecs import PNG, ImageSource, describe, open_image
from pgn_client.endpoint import Credential, Endpoint, Limits
from pgn_client.errors import CheckpointError, ConfigurationError, ImageError, PGNError
from pgn_client.exchange import Broken, Clocks, Exchange, Outcome, Pacer, Send, Steps
from pgn_client.ledger import Ledger
from pgn_client.protocols import Payload, Protocol, WireResponse, open_protocol
from pgn_client.retry import RetryPolicy
from pgn_client.types import Adapter, Answer, ImageFailure, ModelInfo, Prediction, Prepared, Usage

T = TypeVar("T")
LogProbs = NDArray[np.float64]

MAX_BATCH = 16  # pictures adapted together
MAX_ANSWER_BYTES = 64 * 2**20
MAX_ERROR_BYTES = 64 * 2**10
KEEPALIVE_EXPIRY = 4.0  # seconds; uvicorn closes idle connections after 5, and httpx would keep them just as long

_log = logging.getLogger("pgn_client")


@dataclass(frozen=True, slots=True)
class _Job:
    """One picture after all local work: what to send, or the answer where nothing needs to be sent."""

    payload: Payload
    local: LogProbs | None = None
    confident: bool = False
    recorded: Answer | None = None

    @property
    def sends(self) -> bool:
        return not self.confident and self.recorded is None


@dataclass(frozen=True, slots=True)
class _Reply:
    answer: Answer
    attempts: int = 0
    request_id: str | None = None


class _Client:
    """What both clients share; see ``AdaptedClient`` for the arguments."""

    def __init__(
        self,
        url: str,
        pgn_ckpt: str | os.PathLike[str] | Adapter | None,
        *,
        protocol: str = "auto",
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 4,
        max_concurrency: int = 8,
        requests_per_second: float | None = None,
        fusion: float | Literal["auto"] | None = "auto",
        query_below: float | None = None,
        budget: int | None = None,
        price_per_image: float | None = None,
        cache: str | os.PathLike[str] | AnswerCache | None = None,
        transport: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None,
    ) -> None:
        _check("timeout", timeout, "seconds, above 0", lambda x: 0 < x < math.inf)
        _check("max_retries", max_retries, "a whole number, 0 or more", lambda x: x >= 0 and x == int(x))
        _check("max_concurrency", max_concurrency, "a whole number, 1 or more", lambda x: x >= 1 and x == int(x))
        if requests_per_second is not None:
            _check("requests_per_second", requests_per_second, "a number above 0, or None", lambda x: 0 < x < math.inf)
        if fusion not in ("auto", None):
            _check("fusion", fusion, '"auto", None, or a number in [0, 1]', lambda x: 0 <= x <= 1)
        if query_below is not None:
            _check("query_below", query_below, "a probability in [0, 1], or None", lambda x: 0 <= x <= 1)
        if pgn_ckpt is None and (query_below is not None or fusion not in ("auto", None, 0)):
            raise ConfigurationError("fusion and query_below need the local head of a checkpoint: got pgn_ckpt=None")
        key = api_key if api_key is not None else os.environ.get("PGN_API_KEY") or None
        self.endpoint = Endpoint(url, protocol, model, price_per_image=price_per_image, credential=Credential(key))
        if protocol != "auto":
            open_protocol(protocol, url)
        self.timeout, self.max_concurrency = float(timeout), int(max_concurrency)
        self._checkpoint, self._fusion, self._query_below = pgn_ckpt, fusion, query_below
        self._policy = RetryPolicy(max_retries=int(max_retries))
        self._ledger = Ledger(budget, price_per_image)
        self._pacer = Pacer(requests_per_second)
        self._clocks = Clocks()
        self._cache = cache if isinstance(cache, AnswerCache) else None if cache is None else AnswerCache(cache)
        self._owns_cache = self._cache is not cache
        self._transport = transport
        self._local_work = threading.Lock()
        self._adapter: Adapter | None = None
        self._protocol: Protocol | None = None
        self._info: ModelInfo | None = None
        self._asked_model = self._verified = self._closed = False
        self._open()

    def _open(self) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.name!r}, protocol={self.endpoint.protocol!r})"

    @property
    def usage(self) -> Usage:
        """What this client has used so far."""
        return self._ledger.usage

    # ---- local work: open, adapt, encode; runs torch, so it never runs in an event loop

    def _open_adapter(self) -> Adapter | None:
        """Return the adapter, loading the checkpoint at the first use."""
        if self._adapter is None and self._checkpoint is not None:
            if isinstance(self._checkpoint, str | os.PathLike):
                from pgn_client.adapter import PromptAdapter

                self._adapter = cast(Adapter, PromptAdapter.load(self._checkpoint))
            else:
                self._adapter = self._checkpoint
        return self._adapter

    def _prepare(self, sources: Sequence[ImageSource]) -> list[Prepared | PGNError]:
        """Open and adapt pictures together; one that fails leaves the others alone."""
        images = [_caught(open_image, source) for source in sources]
        with self._local_work:
            adapter = self._open_adapter()
            if adapter is None:
                return [image if isinstance(image, PGNError) else Prepared(image) for image in images]
            good = [image for image in images if not isinstance(image, PGNError)]
            try:
                ready = iter(adapter.prepare(good)) if good else iter(())
            except PGNError:
                alone = (_caught(lambda image: adapter.prepare([image])[0], image) for image in good)
                ready = cast("Iterator[Prepared]", alone)
            return [image if isinstance(image, PGNError) else next(ready) for image in images]

    def _job(self, item: Prepared, *, always: bool) -> _Job:
        """Decide whether this picture is sent at all (``always``: it is, unless its answer is recorded)."""
        alpha = self._alpha(item.local_log_probs)
        local = item.local_log_probs
        confident = alpha == 1.0
        if self._query_below is not None and local is not None:
            confident |= bool(math.exp(float(local.max())) >= self._query_below)
        if confident and not always:
            return _Job(Payload(b"", ""), local, confident=True)
        payload = Payload(PNG.encode(item.image), PNG.media_type)
        recorded = self._cache.get(self._key(payload)) if self._cache else None
        return _Job(payload, local, recorded=recorded)

    def _jobs(self, sources: Sequence[ImageSource], *, always: bool) -> list[_Job | PGNError]:
        items = self._prepare(sources)
        return [item if isinstance(item, PGNError) else self._job(item, always=always) for item in items]

    def _only_job(self, source: ImageSource, *, always: bool) -> _Job:
        return _raised(self._jobs([source], always=always)[0])

    def _only_picture(self, source: ImageSource) -> Image.Image:
        return _raised(self._prepare([source])[0]).image

    def _alpha(self, local: LogProbs | None) -> float:
        """Return the weight of the local head: the card's, or the caller's."""
        if self._fusion == "auto":
            wish = self._adapter.info.get("fusion") if self._adapter is not None else None
            return float(wish) if wish is not None and local is not None else 0.0
        alpha = float(self._fusion or 0.0)
        if local is None and (alpha > 0 or self._query_below is not None):
            raise ConfigurationError("fusion and query_below need a checkpoint with a local head: got one without")
        return alpha

    # ---- decisions about the network, as steps for the drivers

    def _exchange(self, deadline: float | None = None) -> Exchange:
        if self._closed:
            raise ConfigurationError("this client is closed; make a new one")
        return Exchange(self.endpoint, self._policy, self._ledger, self._pacer, self._clocks, self.timeout, deadline)

    def _is_ready(self, *, for_info: bool = False) -> bool:
        """Whether nothing needs to be asked about the model before the first picture."""
        named = self.endpoint.protocol != "auto"
        if named and self._protocol is None:
            self._protocol = open_protocol(self.endpoint.protocol, self.endpoint.url)
        if named and self._checkpoint is None and not for_info:
            return True
        if self._asked_model:
            self._verify_once()
        return self._asked_model

    def _settle(self, exchange: Exchange) -> Steps[None]:
        """Find the protocol, and check that the checkpoint was made for this model."""
        info, limits = None, Limits()
        protocol = self._protocol
        if self.endpoint.protocol in ("auto", "pgn"):
            found, info, limits = yield from exchange.discover()
            protocol = protocol or found
        self.endpoint = replace(self.endpoint, limits=limits)
        self._protocol, self._info, self._asked_model = protocol, info, True
        self._verify_once()

    def _verify_once(self) -> None:
        if self._adapter is not None and not self._verified:
            _verify(self._adapter.info, self._info, self.endpoint.name)
            self._verified = True

    def _reply(self, exchange: Exchange, payload: Payload) -> Steps[_Reply]:
        limit = self.endpoint.limits.body_bytes
        if limit is not None and len(payload.data) > limit:
            raise ImageError(f"the picture is too large: got {len(payload.data):,} bytes, the endpoint takes {limit:,}")
        asked = self._protocol or open_protocol("huggingface", self.endpoint.url)
        answer, spoken = yield from exchange.ask(asked, payload)
        if spoken is not asked:
            self._protocol = spoken  # a plainer dialect that worked: stay with it
        if self._cache:
            self._cache.put(self._key(payload), answer)
        return _Reply(answer, exchange.attempts, exchange.request_id)

    def _key(self, payload: Payload) -> str:
        return cache_key(self.endpoint.url, self.endpoint.model, payload.data)

    def _predict(self, job: _Job, reply: _Reply) -> Prediction:
        """Turn what is known into a Prediction.

        Fusion is a weighted geometric mean: log p = (1 - alpha) log p_endpoint + alpha log p_local, normalised.
        """
        if self._adapter is None:
            return _ranked(reply.answer.labels, _probabilities(reply.answer), "endpoint", reply)
        mapping = self._adapter.mapping
        if job.confident and job.local is not None:
            return _ranked(mapping.classes, np.exp(job.local), "local", reply)
        log_probs = np.asarray(mapping([reply.answer])[0], dtype=np.float64)
        alpha = self._alpha(job.local)
        if alpha == 0.0 or job.local is None:
            return _ranked(mapping.classes, np.exp(log_probs), "endpoint", reply)
        fused = (1 - alpha) * np.maximum(log_probs, -700.0) + alpha * np.maximum(job.local, -700.0)
        return _ranked(mapping.classes, np.exp(fused - np.logaddexp.reduce(fused)), "both", reply)

    def _close(self) -> None:
        self._closed = True
        if self._owns_cache and self._cache is not None:
            self._cache.close()


class AdaptedClient(_Client):
    """Sends adapted pictures to a hosted model and reads its answers as classes of your task.

    The constructor does no network I/O: the protocol is found, and the checkpoint compared with the model, at the
    first picture. Safe to use from several threads.

    Args:
        url: the endpoint.
        pgn_ckpt: a checkpoint's path, a ``PromptAdapter``, or None to send pictures as they are (then the labels are
            the endpoint's own).
        protocol: ``auto``, ``pgn`` or ``huggingface``.
        model: name of the model, for endpoints that serve several; it separates recorded answers.
        api_key: sent as a bearer token; by default ``PGN_API_KEY``. It is in no repr, log or exception.
        timeout: seconds for one call in total, retries and slow answers included.
        max_retries: requests beyond the first of a call; see ``RetryPolicy``.
        max_concurrency: requests at the same time.
        requests_per_second: at most so many, evenly spaced; None is no limit.
        fusion: weight of the local head in [0, 1], ``auto`` for the checkpoint's own, None for none. With 1 nothing
            is sent.
        query_below: pictures of which the local head is at least this sure are answered locally and cost nothing.
        budget: number of images that may be sent; then ``BudgetExceededError``.
        price_per_image: for ``usage.cost``.
        cache: a file (or ``AnswerCache``) that records answers; a recorded one costs nothing.
        transport: an ``httpx`` transport, for tests and special networks.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    def _open(self) -> None:
        self._sleep: Callable[[float], object] = time.sleep
        self._slots = threading.BoundedSemaphore(self.max_concurrency)
        self._settling = threading.Lock()
        transport = cast("httpx.BaseTransport | None", self._transport)
        self._http = httpx.Client(transport=transport, limits=_limits(self.max_concurrency))

    def classify(self, image: ImageSource) -> Prediction:
        """Return the task's answer for one picture.

        Args:
            image: a path, a file's bytes, a PIL picture, or a uint8 array (H, W, 3).

        Raises:
            ImageError, ShapeError: the picture cannot be used.
            CheckpointError: the checkpoint is unreadable, or made for another model.
            BudgetExceededError: the budget is spent.
            EndpointError: the endpoint gave no usable answer.
        """
        job = self._only_job(image, always=False)
        return self._predict(job, self._finish(job))

    def classify_many(self, images: Iterable[ImageSource]) -> Iterator[Prediction | ImageFailure]:
        """Yield one result per picture, in order; a picture that fails does not stop the others.

        At most a few times ``max_concurrency`` pictures are read ahead. What concerns every picture is raised: a
        checkpoint that does not fit, a wrong option, an endpoint that cannot be reached at the first picture.
        """
        return self._stream(images, self._attempt)

    def answer(self, image: ImageSource) -> Answer:
        """Return the endpoint's own answer for what would be sent, before any label mapping or fusion."""
        return self._finish(self._only_job(image, always=True)).answer

    def answers(self, images: Iterable[ImageSource]) -> list[Answer]:
        """Return the endpoint's own answers in order; the first failure is raised (recorded answers are kept)."""
        return list(self._stream(images, lambda _, job: self._finish(_raised(job)).answer, always=True))

    def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB picture that would be sent; nothing is sent."""
        return self._only_picture(image)

    def info(self) -> ModelInfo | None:
        """Return what the endpoint says about its model, or None where it says nothing."""
        self._ready(for_info=True)
        return self._info

    def close(self) -> None:
        """Close the connections and the cache that this client opened."""
        self._close()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _attempt(self, source: ImageSource, job: _Job | PGNError) -> Prediction | ImageFailure:
        deadline = None if isinstance(job, PGNError) or not job.sends else self._ready()
        try:
            good = _raised(job)
            return self._predict(good, self._finish(good, deadline))
        except PGNError as error:
            return ImageFailure(describe(source), error)

    def _finish(self, job: _Job, deadline: float | None = None) -> _Reply:
        if not job.sends:
            return _known(job)
        with self._slots:
            deadline = deadline or self._ready()
            return self._drive(self._reply(self._exchange(deadline), job.payload))

    def _ready(self, *, for_info: bool = False) -> float | None:
        """Ask about the model if nobody has; returns the deadline that began with that."""
        with self._settling:
            if self._is_ready(for_info=for_info):
                return None
            exchange = self._exchange()
            self._drive(self._settle(exchange))
            return exchange.deadline

    def _stream(
        self,
        sources: Iterable[ImageSource],
        act: Callable[[ImageSource, _Job | PGNError], T],
        *,
        always: bool = False,
    ) -> Iterator[T]:
        """Prepare in small batches here, wait for the endpoint in threads, give results in order."""
        window: deque[Future[T]] = deque()
        pool = ThreadPoolExecutor(self.max_concurrency, thread_name_prefix="pgn-client")
        rest = iter(sources)
        try:
            while chunk := list(itertools.islice(rest, min(self.max_concurrency, MAX_BATCH))):
                for source, job in zip(chunk, self._jobs(chunk, always=always), strict=True):
                    window.append(pool.submit(act, source, job))
                while window and (len(window) > self.max_concurrency or window[0].done()):
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _drive(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return cast(T, done.value)
            outcome = self._send(step) if isinstance(step, Send) else cast(None, self._sleep(step.seconds))

    def _send(self, step: Send) -> WireResponse | Broken:
        request = step.request
        body = _Body(self._clocks.monotonic, step.seconds)
        try:
            with self._http.stream(
                request.method, request.url, headers=dict(request.headers), content=request.body, timeout=step.seconds
            ) as response:
                for chunk in response.iter_bytes():
                    if not body.take(response, chunk):
                        break
                return body.outcome(response)
        except FOREIGN as error:
            return _broken(error)


class AsyncAdaptedClient(_Client):
    """``AdaptedClient`` for asyncio: the same arguments and methods, awaited; ``aclose`` and ``async for``.

    Connections belong to an event loop and are made at the first use in each. Adapting runs in a thread.
    """

    def _open(self) -> None:
        self._sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()

    async def classify(self, image: ImageSource) -> Prediction:
        """Return the task's answer for one picture; see ``AdaptedClient.classify``."""
        job = await asyncio.to_thread(self._only_job, image, always=False)
        return self._predict(job, await self._finish(job))

    def classify_many(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> AsyncIterator[Prediction | ImageFailure]:
        """Yield one result per picture, in order; see ``AdaptedClient.classify_many``."""
        return self._stream(images, self._attempt)

    async def answer(self, image: ImageSource) -> Answer:
        """Return the endpoint's own answer; see ``AdaptedClient.answer``."""
        return (await self._finish(await asyncio.to_thread(self._only_job, image, always=True))).answer

    async def answers(self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]) -> list[Answer]:
        """Return the endpoint's own answers in order; see ``AdaptedClient.answers``."""

        async def act(_: ImageSource, job: _Job | PGNError) -> Answer:
            return (await self._finish(_raised(job))).answer

        return [answer async for answer in self._stream(images, act, always=True)]

    async def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB picture that would be sent; nothing is sent."""
        return await asyncio.to_thread(self._only_picture, image)

    async def info(self) -> ModelInfo | None:
        """Return what the endpoint says about its model, or None where it says nothing."""
        await self._ready(for_info=True)
        return self._info

    async def aclose(self) -> None:
        """Close this event loop's connections, and the cache that this client opened."""
        self._close()
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            transport = cast("httpx.AsyncBaseTransport | None", self._transport)
            http = httpx.AsyncClient(transport=transport, limits=_limits(self.max_concurrency))
            self._loops[loop] = _Loop(http, asyncio.Semaphore(self.max_concurrency), asyncio.Lock())
        return self._loops[loop]

    async def _attempt(self, source: ImageSource, job: _Job | PGNError) -> Prediction | ImageFailure:
        deadline = None if isinstance(job, PGNError) or not job.sends else await self._ready()
        try:
            good = _raised(job)
            return self._predict(good, await self._finish(good, deadline))
        except PGNError as error:
            return ImageFailure(describe(source), error)

    async def _finish(self, job: _Job, deadline: float | None = None) -> _Reply:
        if not job.sends:
            return _known(job)
        async with self._here().slots:
            deadline = deadline or await self._ready()
            return await self._drive(self._reply(self._exchange(deadline), job.payload))

    async def _ready(self, *, for_info: bool = False) -> float | None:
        async with self._here().settling:
            if self._is_ready(for_info=for_info):
                return None
            exchange = self._exchange()
            await self._drive(self._settle(exchange))
            return exchange.deadline

    async def _stream(
        self,
        sources: Iterable[ImageSource] | AsyncIterable[ImageSource],
        act: Callable[[ImageSource, _Job | PGNError], Awaitable[T]],
        *,
        always: bool = False,
    ) -> AsyncIterator[T]:
        window: deque[asyncio.Future[T]] = deque()
        try:
            async for chunk in _chunks(sources, min(self.max_concurrency, MAX_BATCH)):
                jobs = await asyncio.to_thread(self._jobs, chunk, always=always)
                window.extend(asyncio.ensure_future(act(*pair)) for pair in zip(chunk, jobs, strict=True))
                while window and (len(window) > self.max_concurrency or window[0].done()):
                    yield await window.popleft()
            while window:
                yield await window.popleft()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def _drive(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return cast(T, done.value)
            outcome = await self._send(step) if isinstance(step, Send) else cast(None, await self._sleep(step.seconds))

    async def _send(self, step: Send) -> WireResponse | Broken:
        request = step.request
        body = _Body(self._clocks.monotonic, step.seconds)
        try:
            async with (
                asyncio.timeout(step.seconds),
                self._here().http.stream(
                    request.method, request.url, headers=dict(request.headers), content=request.body, timeout=None
                ) as response,
                contextlib.aclosing(response.aiter_bytes()) as chunks,  # type: ignore[type-var]
            ):
                async for chunk in chunks:
                    if not body.take(response, chunk):
                        break
                return body.outcome(response)
        except TimeoutError:
            return Broken("late", "deadline")
        except FOREIGN as error:
            return _broken(error)


@dataclass(frozen=True, slots=True)
class _Loop:
    """What belongs to one event loop."""

    http: httpx.AsyncClient
    slots: asyncio.Semaphore
    settling: asyncio.Lock


class _Body:
    """Collects a response's body up to the limits of size and time."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock, self._deadline = clock, clock() + seconds
        self._chunks: list[bytes] = []
        self._size = 0
        self._broken: Broken | None = None

    def take(self, response: httpx.Response, chunk: bytes) -> bool:
        """Keep a chunk; returns whether to read on."""
        limit = MAX_ANSWER_BYTES if response.is_success else MAX_ERROR_BYTES
        self._chunks.append(chunk[: limit - self._size])
        self._size += len(chunk)
        if self._size > limit and response.is_success:
            self._broken = Broken("garbled", f"more than {limit // 2**20} MiB")
        elif self._clock() >= self._deadline:
            self._broken = Broken("late", "deadline")
        return self._broken is None and self._size <= limit

    def outcome(self, response: httpx.Response) -> WireResponse | Broken:
        """Return the whole response, or why there is none."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        return self._broken or WireResponse(response.status_code, headers, b"".join(self._chunks))


# Every exception of httpx that a call may meet, most special first.
FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)
_KINDS: tuple[tuple[type[Exception], Literal["late", "unreached", "cut", "refused", "garbled"]], ...] = (
    (httpx.TimeoutException, "late"),
    (httpx.ConnectError, "unreached"),
    (httpx.ProxyError, "unreached"),
    (httpx.NetworkError, "cut"),
    (httpx.RemoteProtocolError, "cut"),
    (httpx.DecodingError, "garbled"),
    (Exception, "refused"),  # a URL, scheme or header that can never work
)


def _broken(error: Exception) -> Broken:
    """Translate httpx's exceptions; the only place that does."""
    kind = next(kind for foreign, kind in _KINDS if isinstance(error, foreign))
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        kind = "refused"
    return Broken(kind, " ".join(str(error).split())[:200] or type(error).__name__)


def _limits(connections: int) -> httpx.Limits:
    return httpx.Limits(
        max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=KEEPALIVE_EXPIRY
    )


async def _chunks(
    sources: Iterable[ImageSource] | AsyncIterable[ImageSource], size: int
) -> AsyncIterator[list[ImageSource]]:
    if not isinstance(sources, AsyncIterable):
        rest = iter(sources)
        while chunk := list(itertools.islice(rest, size)):
            yield chunk
        return
    chunk = []
    async for source in sources:
        chunk.append(source)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _caught(call: Callable[[Any], T], argument: Any) -> T | PGNError:
    try:
        return call(argument)
    except PGNError as error:
        return error


def _raised(value: T | PGNError) -> T:
    if isinstance(value, PGNError):
        raise value
    return value


def _known(job: _Job) -> _Reply:
    """Return the reply to a picture that is not sent: recorded, or not needed at all."""
    return _Reply(job.recorded or Answer((), ()))


def _check(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not fits(value):
        raise ConfigurationError(f"{name}: got {value!r}, expected {expected}")


def _probabilities(answer: Answer) -> NDArray[np.float64]:
    """Return an answer's scores as probabilities: the softmax of logits, anything else as it is."""
    scores = np.asarray(answer.scores, dtype=np.float64)
    return np.exp(scores - np.logaddexp.reduce(scores)) if answer.kind == "logits" else scores


def _ranked(
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    source: Literal["endpoint", "local", "both"],
    reply: _Reply,
) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")
    scores = {classes[i]: float(probabilities[i]) for i in order}
    label = next(iter(scores))
    return Prediction(label, scores[label], scores, source, reply.attempts, reply.request_id)


def _verify(card: Mapping[str, Any], info: ModelInfo | None, endpoint: str) -> None:
    """Compare a checkpoint's card with what the endpoint says; warn where it says nothing.

    Raises:
        CheckpointError: made for another backbone, input size or preprocessing.
    """
    backbone: Mapping[str, Any] = card.get("backbone") or {}
    made_for = (
        ("patch embedding", backbone.get("patch_embedding_sha256"), info and info.patch_embedding_sha256),
        ("input size", backbone.get("input_size"), info and info.input_size),
        ("profile", card.get("profile"), info and info.profile),
    )
    for what, expected, got in made_for:
        if expected is not None and got is not None and str(expected) != str(got):
            remedy = f"--profile {got}" if what == "profile" else f"--backbone {info.name if info else got}"
            raise CheckpointError(
                f"the checkpoint was made for another model: {what} of {endpoint}: got {got}, expected {expected} "
                f"(checkpoint for {backbone.get('name', 'an unnamed backbone')}); train again with {remedy}"
            )
    if made_for[0][1] is None or made_for[0][2] is None:
        _log.warning("%s does not tell its patch embedding: that the checkpoint fits is unverified", endpoint)
