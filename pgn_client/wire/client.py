"""``AdaptedClient`` and ``AsyncAdaptedClient``: an image goes in, the hosted model's opinion about
the task comes out.

The two differ in how they send and sleep; everything else is in ``session`` and ``exchange``. This
is the only module that imports httpx. It imports no torch: the adapter does, when it first makes
prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import httpx
from PIL import Image

from pgn_client.errors import PGNError
from pgn_client.imaging.codecs import ImageSource, describe
from pgn_client.types import Answer, ImageFailure, ModelInfo, Prediction
from pgn_client.wire.cache import CANARIES
from pgn_client.wire.deadline import Leaving, Watch
from pgn_client.wire.drift import Drift, differing, judge
from pgn_client.wire.exchange import Broken, Outcome, Send, Steps
from pgn_client.wire.jobs import Job, asks, chunks, chunks_async, ends_all, raised
from pgn_client.wire.prediction import Reply
from pgn_client.wire.protocols import WireResponse
from pgn_client.wire.session import Session
from pgn_client.wire.transport import FOREIGN, Body, broken_by, connecting

T = TypeVar("T")


class AdaptedClient(Session):
    """Sends adapted images to a hosted model and reads its answers as classes of your task.

    The constructor does no network I/O: the protocol is found, and the checkpoint compared with the
    model, at the first image. Safe to use from several threads.

    Args:
        url: the endpoint.
        pgn_ckpt: a checkpoint's path, a ``PromptAdapter``, or None to send images as they are
            (then the labels are the endpoint's own).
        protocol: ``auto`` (the URL's path or the server's answers to cheap questions tell it),
            ``pgn``, ``huggingface``, ``huggingface-zero-shot``, ``huggingface-features``, ``oip``
            (Open Inference Protocol: Triton, MLServer, KServe v2), ``kserve-v1`` (and TensorFlow
            Serving), ``vertex``, ``sagemaker``, ``torchserve``, ``openai``, ``openai-embeddings``,
            or ``custom``, which an endpoint file describes.
        model: name of the model, for endpoints that serve several; it separates recorded answers.
        api_key: sent as a bearer token; by default ``PGN_API_KEY``. It is in no repr, log or
            exception.
        timeout: seconds for one call in total, retries and slow answers included.
        max_retries: requests beyond the first of a call; see ``RetryPolicy``.
        max_concurrency: requests at the same time.
        requests_per_second: at most so many, evenly spaced; None is no limit.
        bytes_per_second: of request bodies, at most so many; None is no limit. Waiting for either
            limit is not counted against ``timeout``.
        fusion: weight of the local head in [0, 1], ``auto`` for the checkpoint's own, None for
            none. With 1 nothing is sent.
        query_below: images of which the local head is at least this sure are answered locally and
            cost nothing.
        budget: how often an image may be sent, retries included, since the provider may bill each;
            then ``BudgetExceededError``. It never overshoots, whatever is sent at the same time.
        price_per_image: for ``usage.cost``.
        ledger: a file (or ``Ledger``) in which each image is written down before it is sent, by
            endpoint: the budget then holds over all processes that share it, and after a crash and
            a restart. By default it is kept in memory and ends with the client.
        cache: a file (or ``AnswerCache``) that records answers; a recorded one costs nothing. It
            belongs to the model that the endpoint describes, which is asked for first; while the
            endpoint is out of reach, the recorded answers are those of the model that was last seen
            there. With ``AnswerCache(file, replay=True)`` nothing is sent at all. The file also
            holds the first 8 images as they were sent; see ``drift``.
        transport: an ``httpx`` transport, for tests and special networks.
        labels: the S source labels: names for bare numbers, and what is sent along where a protocol
            asks for labels of your choice (``huggingface-zero-shot``, ``openai``).
        http: any of httpx's own ``verify`` (an ``ssl.SSLContext``, or False), ``cert``, ``proxy``,
            ``headers`` and ``auth``. What they hold is in no repr, log or exception. With an
            ``authorization`` or ``auth`` of your own,
            ``PGN_API_KEY`` is not sent.

    Raises:
        ConfigurationError: an argument that cannot work.
    """

    def _open(self) -> None:
        self._slots = threading.BoundedSemaphore(self.max_concurrency)
        self._settling = threading.Lock()
        self._watch = Watch()
        self._sleep: Callable[[float], object] = self._watch.sleep
        transport = cast("httpx.BaseTransport | None", self._transport)
        self._http = connecting(
            lambda **options: httpx.Client(transport=transport, **options),
            self._http_options,
            self.endpoint,
            self.max_concurrency,
        )

    def classify(self, image: ImageSource) -> Prediction:
        """Return the task's answer for one image.

        Args:
            image: a path, a file's bytes, a PIL image, or a uint8 array (H, W, 3).

        Raises:
            ImageError, ShapeError: the image cannot be used.
            CheckpointError: the checkpoint is unreadable, or made for another model.
            BudgetExceededError: the budget is spent.
            EndpointError: the endpoint gave no usable answer.
        """
        job = self._only_job(image, always=False)
        return self._predict(job, self._finish(job, self._ready() if asks(job) else None))

    def classify_many(self, images: Iterable[ImageSource]) -> Iterator[Prediction | ImageFailure]:
        """Yield one result per image, in order; an image that fails does not stop the others.

        At most a few times ``max_concurrency`` images are read ahead. What concerns every image
        is raised: a checkpoint that does not fit, a wrong option, an endpoint that cannot be
        reached at the first image; a refused key, after the results of what was on its way. When
        the budget is spent, the rest fail unread.

        Whatever is on its way when the iterator is left early, also by Ctrl-C, is broken off.
        """
        return self._stream(images, self._attempt)

    def answer(self, image: ImageSource, *, as_it_is: bool = False) -> Answer:
        """Return the endpoint's own answer for what would be sent, before any label mapping or
        fusion.

        With ``as_it_is``, ``image`` is the bytes of a PNG file, which are sent to the model itself,
        recorded or not.
        """
        return self._finish(
            self._only_job(image, always=True, as_it_is=as_it_is), self._ready()
        ).answer

    def answers(self, images: Iterable[ImageSource]) -> list[Answer]:
        """Return the endpoint's own answers in order; the first failure is raised (recorded answers
        are kept).
        """
        return list(
            self._stream(images, lambda _, job: self._finish(raised(job)).answer, always=True)
        )

    def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB image that would be sent; nothing is sent."""
        return self._only_image(image)

    def info(self) -> ModelInfo | None:
        """Return what the endpoint says about its model, or None where it says nothing."""
        self._ready(for_info=True)
        return self._model.info

    def drift(self, k: int = CANARIES) -> Drift:
        """Send the first images that were recorded in the cache again, and compare the answers.

        This costs ``k`` images of the budget, and one more for each answer that is not as it was.
        Nothing is recorded.

        Args:
            k: how many at most; the cache keeps ``CANARIES``.

        Raises:
            ConfigurationError: no cache, or one that only replays.
            BudgetExceededError, EndpointError: as of ``classify``.
        """
        recorded, jobs = self._canaries(k)
        deadline = self._ready() if jobs else None
        now = [self._finish(job, deadline if i == 0 else None).answer for i, job in enumerate(jobs)]
        return judge(
            recorded, now, {i: self._finish(jobs[i]).answer for i in differing(recorded, now)}
        )

    def close(self) -> None:
        """Close the connections, the cache and the ledger that this client opened."""
        self._close()
        if not self._borrows:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _attempt(self, source: ImageSource, job: Job | PGNError) -> Prediction | ImageFailure:
        try:
            good = raised(job)
            return self._predict(good, self._finish(good))
        except PGNError as error:
            return ImageFailure(describe(source), error)

    def _finish(self, job: Job, deadline: float | None = None) -> Reply:
        known = self._known(job)
        if known is not None:
            return known
        with self._slots:
            return self._drive(self._reply(self._exchange(deadline), job))

    def _ready(self, *, for_info: bool = False) -> float | None:
        """Ask about the model if nobody has; returns the deadline that began with that."""
        before = self._model.failure
        with self._settling:
            if self._is_ready(before, for_info=for_info):
                return None
            exchange = self._exchange()
            self._drive(self._settle(exchange, for_info=for_info))
            return exchange.deadline

    def _stream(
        self,
        sources: Iterable[ImageSource],
        act: Callable[[ImageSource, Job | PGNError], T],
        *,
        always: bool = False,
    ) -> Iterator[T]:
        """Prepare in small batches here, wait for the endpoint in threads, give results in
        order.
        """
        window: deque[Future[T]] = deque()
        leaving, settled = Leaving(), False
        pool = ThreadPoolExecutor(self.max_concurrency, "pgn-client", self._watch.heed, (leaving,))
        try:
            for chunk in chunks(sources, self.chunk):
                jobs = self._jobs(chunk, always=always) if chunk else []
                if not settled and any(map(asks, jobs)):
                    self._ready()
                    settled = True
                window.extend(pool.submit(act, *pair) for pair in zip(chunk, jobs, strict=True))
                room, fatal = self.max_concurrency if chunk else 0, None
                while window and (len(window) > room or window[0].done()):
                    result = window.popleft().result()
                    fatal = fatal or ends_all(result)
                    room = 0 if fatal else room
                    yield result
                if fatal:
                    raise fatal
        except (GeneratorExit, KeyboardInterrupt):
            leaving.now()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _drive(self, steps: Steps[T]) -> T:
        outcome: Outcome = None
        while True:
            if outcome is None and self._watch.leaving.flag.is_set():
                raise CancelledError
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return cast(T, done.value)
            outcome = (
                self._send(step)
                if isinstance(step, Send)
                else cast(None, self._sleep(step.seconds))
            )

    def _send(self, step: Send) -> WireResponse | Broken:
        request = step.request
        body = Body(self._clocks.monotonic, step.seconds)
        self._watch.start(step.seconds)
        try:
            with self._http.stream(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.body,
                timeout=step.seconds,
                extensions={"trace": self._watch.trace},
            ) as response:
                for chunk in response.iter_bytes():
                    if not body.take(response, chunk):
                        break
                return body.outcome(response)
        except FOREIGN as error:
            return broken_by(error)


class AsyncAdaptedClient(Session):
    """``AdaptedClient`` for asyncio: the same arguments and methods, awaited; ``aclose`` and
    ``async for``.

    Connections belong to an event loop and are made at the first use in each. Adapting runs in a
    thread.
    """

    def _open(self) -> None:
        self._sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = (
            weakref.WeakKeyDictionary()
        )

    async def classify(self, image: ImageSource) -> Prediction:
        """Return the task's answer for one image; see ``AdaptedClient.classify``."""
        job = await asyncio.to_thread(self._only_job, image, always=False)
        return self._predict(
            job, await self._finish(job, await self._ready() if asks(job) else None)
        )

    def classify_many(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> AsyncIterator[Prediction | ImageFailure]:
        """Yield one result per image, in order; see ``AdaptedClient.classify_many``."""
        return self._stream(images, self._attempt)

    async def answer(self, image: ImageSource, *, as_it_is: bool = False) -> Answer:
        """Return the endpoint's own answer; see ``AdaptedClient.answer``."""
        job = await asyncio.to_thread(self._only_job, image, always=True, as_it_is=as_it_is)
        return (await self._finish(job, await self._ready())).answer

    async def answers(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> list[Answer]:
        """Return the endpoint's own answers in order; see ``AdaptedClient.answers``."""

        async def act(_: ImageSource, job: Job | PGNError) -> Answer:
            return (await self._finish(raised(job))).answer

        return [answer async for answer in self._stream(images, act, always=True)]

    async def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB image that would be sent; nothing is sent."""
        return await asyncio.to_thread(self._only_image, image)

    async def info(self) -> ModelInfo | None:
        """Return what the endpoint says about its model, or None where it says nothing."""
        await self._ready(for_info=True)
        return self._model.info

    async def drift(self, k: int = CANARIES) -> Drift:
        """Send the first images that were recorded in the cache again; see
        ``AdaptedClient.drift``.
        """
        recorded, jobs = await asyncio.to_thread(self._canaries, k)
        deadline = await self._ready() if jobs else None
        now = [
            (await self._finish(job, deadline if i == 0 else None)).answer
            for i, job in enumerate(jobs)
        ]
        repeated = {i: (await self._finish(jobs[i])).answer for i in differing(recorded, now)}
        return judge(recorded, now, repeated)

    async def aclose(self) -> None:
        """Close this event loop's connections, and the cache and the ledger that this client
        opened.
        """
        self._close()
        here = None if self._borrows else self._loops.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _here(self) -> _Loop:
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            transport = cast("httpx.AsyncBaseTransport | None", self._transport)
            http = connecting(
                lambda **options: httpx.AsyncClient(transport=transport, **options),
                self._http_options,
                self.endpoint,
                self.max_concurrency,
            )
            self._loops[loop] = _Loop(http, asyncio.Semaphore(self.max_concurrency), asyncio.Lock())
        return self._loops[loop]

    async def _attempt(self, source: ImageSource, job: Job | PGNError) -> Prediction | ImageFailure:
        try:
            good = raised(job)
            return self._predict(good, await self._finish(good))
        except PGNError as error:
            return ImageFailure(describe(source), error)

    async def _finish(self, job: Job, deadline: float | None = None) -> Reply:
        known = self._known(job)
        if known is not None:
            return known
        async with self._here().slots:
            return await self._drive(self._reply(self._exchange(deadline), job))

    async def _ready(self, *, for_info: bool = False) -> float | None:
        before = self._model.failure
        async with self._here().settling:
            if self._is_ready(before, for_info=for_info):
                return None
            exchange = self._exchange()
            await self._drive(self._settle(exchange, for_info=for_info))
            return exchange.deadline

    async def _stream(
        self,
        sources: Iterable[ImageSource] | AsyncIterable[ImageSource],
        act: Callable[[ImageSource, Job | PGNError], Awaitable[T]],
        *,
        always: bool = False,
    ) -> AsyncIterator[T]:
        window: deque[asyncio.Future[T]] = deque()
        settled = False
        try:
            async for chunk in chunks_async(sources, self.chunk):
                jobs = await asyncio.to_thread(self._jobs, chunk, always=always) if chunk else []
                if not settled and any(map(asks, jobs)):
                    await self._ready()
                    settled = True
                window.extend(
                    asyncio.ensure_future(act(*pair)) for pair in zip(chunk, jobs, strict=True)
                )
                room, fatal = self.max_concurrency if chunk else 0, None
                while window and (len(window) > room or window[0].done()):
                    result = await window.popleft()
                    fatal = fatal or ends_all(result)
                    room = 0 if fatal else room
                    yield result
                if fatal:
                    raise fatal
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
            outcome = (
                await self._send(step)
                if isinstance(step, Send)
                else cast(None, await self._sleep(step.seconds))
            )

    async def _send(self, step: Send) -> WireResponse | Broken:
        request = step.request
        body = Body(self._clocks.monotonic, step.seconds)
        connecting = False

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal connecting
            if event in ("connection.connect_tcp.started", "http11.send_request_headers.started"):
                connecting = event.startswith("connection")

        try:
            async with (
                asyncio.timeout(step.seconds),
                self._here().http.stream(
                    request.method,
                    request.url,
                    headers=dict(request.headers),
                    content=request.body,
                    timeout=None,
                    extensions={"trace": trace},
                ) as response,
                contextlib.aclosing(response.aiter_bytes()) as chunks,  # type: ignore[type-var]
            ):
                async for chunk in chunks:
                    if not body.take(response, chunk):
                        break
                return body.outcome(response)
        except TimeoutError:
            return Broken("unsent" if connecting else "late", "deadline")
        except FOREIGN as error:
            return broken_by(error)


@dataclass(frozen=True, slots=True)
class _Loop:
    """What belongs to one event loop."""

    http: httpx.AsyncClient
    slots: asyncio.Semaphore
    settling: asyncio.Lock
