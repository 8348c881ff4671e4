"""``AdaptedClient`` and ``AsyncAdaptedClient``: send images with prompts, return predictions.

The two clients differ only in how they send and wait. The modules ``session`` and ``exchange`` hold
what they share. Only this module and ``transport`` import httpx. This module does not import torch;
the prompt adapter imports it when it first makes prompts.
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
from pgn_client.types import Answer, ImageFailure, ModelInfo, Prediction, Reply
from pgn_client.wire.cache import CANARIES
from pgn_client.wire.deadline import Leaving, Watch
from pgn_client.wire.drift import Drift, differing, judge
from pgn_client.wire.exchange import Broken, Outcome, Send, Steps
from pgn_client.wire.jobs import Job, asks, chunks, chunks_async, ends_all, raised
from pgn_client.wire.protocols import WireResponse
from pgn_client.wire.session import Session
from pgn_client.wire.transport import FOREIGN, Body, broken_by, connecting

T = TypeVar("T")


class AdaptedClient(Session):
    """Sends adapted images to a hosted model and maps its answers to the classes of your task.

    An adapted image has the checkpoint's prompt painted into it. The constructor does no network
    I/O. The client detects the protocol, and compares the checkpoint with the model, when it gets
    the first image. Safe to use from several threads.

    Args:
        url: URL of the endpoint, or path of an endpoint file.
        pgn_ckpt: Path of a checkpoint, a ``PromptAdapter``, or None to send images unchanged (the
            predicted labels are then the endpoint's own).
        protocol: Protocol of the endpoint: ``auto`` (detected from the URL's path, or by requests
            that carry no image), ``pgn``, ``huggingface``, ``huggingface-zero-shot``,
            ``huggingface-features``, ``oip`` (Open Inference Protocol: Triton, MLServer,
            KServe v2), ``kserve-v1`` (also TensorFlow Serving), ``vertex``, ``sagemaker``,
            ``torchserve``, ``openai``, ``openai-embeddings``, or ``custom``, which an endpoint file
            describes.
        model: Name of the model, for endpoints that serve several. Recorded answers belong to one
            name.
        api_key: API key, sent as a bearer token; default: the environment variable ``PGN_API_KEY``.
            It appears in no repr, log or exception.
        timeout: Time limit for one call in seconds, including retries and slow responses.
        max_retries: Largest number of retries of one call; see ``RetryPolicy``.
        max_concurrency: Largest number of simultaneous requests.
        requests_per_second: Largest number of requests per second, evenly spaced; None for no
            limit.
        bytes_per_second: Largest number of request body bytes per second; None for no limit. The
            time spent waiting for either limit does not count against ``timeout``.
        fusion: Weight in [0, 1] of the local head, the checkpoint's own small classifier, against
            the endpoint; ``auto`` for the weight in the checkpoint, or None for 0. With 1 nothing
            is sent.
        query_below: Confidence threshold in [0, 1]. An image is answered locally, at no cost, if
            the local head's confidence reaches the threshold; None for no threshold.
        budget: Largest number of times that images may be sent, retries included, because the
            provider may bill each; None for no limit. Further images raise
            ``BudgetExceededError``. Concurrent requests never exceed the budget.
        price_per_image: Price of one image in any currency, for ``usage.cost``.
        price_per_hour: Price of one hour of an endpoint that is billed by time, likewise.
        ledger: Database file (or ``Ledger``) that counts each image of an endpoint before it is
            sent. The budget then holds across all processes that share the file, and after a crash
            or restart. By default the count is kept in memory and ends with the client.
        cache: Database file (or ``AnswerCache``) that records answers; a recorded answer costs
            nothing. Answers belong to the model that the endpoint describes, so the client requests
            the description first. While the endpoint is out of reach, the client uses the recorded
            answers of the model that was last seen there. With
            ``AnswerCache(file, replay=True)`` nothing is sent at all. The file also holds the first
            8 images as sent; see ``drift``.
        transport: An ``httpx`` transport, for tests and special networks.
        labels: The S source labels. They name the scores of answers without labels, and are sent
            with each image if the protocol takes labels (``huggingface-zero-shot``, ``openai``).
        http: Options of httpx: any of ``verify`` (an ``ssl.SSLContext``, or False), ``cert``,
            ``proxy``, ``headers`` and ``auth``. Their values appear in no repr, log or exception.
            With an ``authorization`` header or ``auth``, ``PGN_API_KEY`` is not sent.

    Raises:
        ConfigurationError: An argument is invalid.
    """

    def _open(self) -> None:
        # The limit holds for the whole client: several threads and copies may use it at once.
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
        """Return the predicted task class of one image.

        Args:
            image: Path, file content in bytes, PIL image, or RGB array, (H, W, 3) uint8.

        Raises:
            ImageError, ShapeError: The image cannot be used.
            CheckpointError: The checkpoint is unreadable or was made for another model.
            BudgetExceededError: The budget is spent.
            EndpointError: The endpoint gave no usable answer.
        """
        job = self._only_job(image, always=False)
        deadline = self._ready() if asks(job) else None
        return self._predict(job, self._finish(job, deadline))

    def classify_many(self, images: Iterable[ImageSource]) -> Iterator[Prediction | ImageFailure]:
        """Yield a prediction or a failure per image, in order; a failed image does not stop others.

        The client reads ahead by at most a few times ``max_concurrency`` images. It raises errors
        that concern every image: a checkpoint that does not fit, a wrong option, or an endpoint
        that is out of reach at the first image. It raises a rejected key after it has yielded the
        results of the requests under way. When the budget is spent, the remaining images fail
        unread.

        If the iterator is left early, also by Ctrl-C, the client aborts the requests under way.
        """
        return self._stream(images, self._attempt)

    def answer(self, image: ImageSource, *, as_it_is: bool = False) -> Answer:
        """Return the endpoint's own labels and scores for one adapted image.

        No label mapping and no fusion with the local head is applied.

        Args:
            image: Path, file content in bytes, PIL image, or RGB array, (H, W, 3) uint8.
            as_it_is: Whether to send ``image`` unchanged to the hosted model, even if its answer is
                recorded. ``image`` must then be the content of a PNG file in bytes.
        """
        job = self._only_job(image, always=True, as_it_is=as_it_is)
        return self._finish(job, self._ready()).answer

    def answers(self, images: Iterable[ImageSource]) -> list[Answer]:
        """Return the endpoint's own labels and scores for each adapted image, in order.

        No label mapping and no fusion with the local head is applied. The first failure is raised;
        the cache keeps the answers recorded until then.
        """

        def act(_: ImageSource, job: Job | PGNError) -> Answer:
            return self._finish(raised(job)).answer

        return list(self._stream(images, act, always=True))

    def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB image that would be sent; nothing is sent."""
        return self._only_image(image)

    def info(self) -> ModelInfo | None:
        """Return the endpoint's description of its model, or None if it gives none."""
        self._ready(for_info=True)
        return self._model.info

    def drift(self, k: int = CANARIES) -> Drift:
        """Test whether the hosted model has changed: send the first images of the cache again.

        The new answers are compared with the recorded ones, and are not recorded. This costs up to
        ``k`` images of the budget, and one more for each answer that differs.

        Args:
            k: Largest number of images to compare; the cache keeps the first ``CANARIES``.

        Raises:
            ConfigurationError: There is no cache, the cache only replays, or the checkpoint runs on
                the server.
            BudgetExceededError, EndpointError: See ``classify``.
        """
        recorded, jobs = self._canaries(k)
        deadline = self._ready() if jobs else None
        now = []
        for i, job in enumerate(jobs):
            # Only the first image shares the deadline that began with the description request.
            reply = self._finish(job, deadline if i == 0 else None)
            now.append(reply.answer)
        # Sending the differing images once more shows the model's own noise.
        repeated = {i: self._finish(jobs[i]).answer for i in differing(recorded, now)}
        return judge(recorded, now, repeated)

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
        reply = self._reply_without_request(job)
        if reply is not None:
            return reply
        with self._slots:
            return self._drive(self._reply(self._exchange(deadline), job))

    def _ready(self, *, for_info: bool = False) -> float | None:
        """Request the model description if it is missing.

        Returns:
            The deadline of the whole call, which starts with this request; None without a request.
        """
        # Read before the lock: a failure that appears while this call waits belongs to the call
        # that held the lock, and is raised here too instead of repeating the failing request.
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
        """Yield the result of ``act`` for each image, in order.

        Images are adapted in chunks in the calling thread, and sent in other threads.
        """
        window: deque[Future[T]] = deque()
        leaving = Leaving()
        settled = False
        pool = ThreadPoolExecutor(
            max_workers=self.max_concurrency,
            thread_name_prefix="pgn-client",
            initializer=self._watch.heed,
            initargs=(leaving,),
        )
        try:
            for chunk in chunks(sources, self.chunk):
                jobs = self._jobs(chunk, always=always) if chunk else []
                if not settled and any(map(asks, jobs)):
                    self._ready()
                    settled = True
                window.extend(pool.submit(act, *pair) for pair in zip(chunk, jobs, strict=True))

                # The empty chunk at the end waits for all remaining results. Before it, the stream
                # waits only while too many results are open, and yields those that are done.
                room = self.max_concurrency if chunk else 0
                fatal: PGNError | None = None
                while window and (len(window) > room or window[0].done()):
                    result = window.popleft().result()
                    fatal = fatal or ends_all(result)
                    # After a fatal error, the window is emptied before the error is raised.
                    room = 0 if fatal else room
                    yield result
                if fatal:
                    raise fatal
        except (GeneratorExit, KeyboardInterrupt):
            # Only a consumer that leaves aborts requests. After any other error the running ones
            # finish, and their answers, which may be billed, are recorded.
            leaving.now()
            raise
        finally:
            # The shutdown waits for the running threads, which ``leaving`` has stopped if needed.
            pool.shutdown(cancel_futures=True)

    def _drive(self, steps: Steps[T]) -> T:
        """Carry out the steps and return their result."""
        outcome: Outcome = None
        while True:
            # A stream that is left early starts nothing new, but still processes (and so records) a
            # response that has arrived.
            if outcome is None and self._watch.leaving.flag.is_set():
                raise CancelledError
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return cast(T, done.value)

            if isinstance(step, Send):
                outcome = self._send(step)
            else:
                self._sleep(step.seconds)
                outcome = None

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
                # Limits making a connection; ``trace`` replaces the timeout of reads and writes.
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
    """``AdaptedClient`` for asyncio, with the same arguments and methods.

    Await the methods, iterate with ``async for``, and close with ``aclose``. Each event loop gets
    its own connections at first use. Images are adapted in a thread.
    """

    def _open(self) -> None:
        self._sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = (
            weakref.WeakKeyDictionary()
        )

    async def classify(self, image: ImageSource) -> Prediction:
        """Return the predicted task class of one image; see ``AdaptedClient.classify``."""
        job = await asyncio.to_thread(self._only_job, image, always=False)
        deadline = await self._ready() if asks(job) else None
        return self._predict(job, await self._finish(job, deadline))

    def classify_many(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> AsyncIterator[Prediction | ImageFailure]:
        """Yield a prediction or a failure per image; see ``AdaptedClient.classify_many``."""
        return self._stream(images, self._attempt)

    async def answer(self, image: ImageSource, *, as_it_is: bool = False) -> Answer:
        """Return the endpoint's labels and scores for one image; see ``AdaptedClient.answer``."""
        job = await asyncio.to_thread(self._only_job, image, always=True, as_it_is=as_it_is)
        reply = await self._finish(job, await self._ready())
        return reply.answer

    async def answers(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> list[Answer]:
        """Return the endpoint's labels and scores per image; see ``AdaptedClient.answers``."""

        async def act(_: ImageSource, job: Job | PGNError) -> Answer:
            reply = await self._finish(raised(job))
            return reply.answer

        return [answer async for answer in self._stream(images, act, always=True)]

    async def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB image that would be sent; nothing is sent."""
        return await asyncio.to_thread(self._only_image, image)

    async def info(self) -> ModelInfo | None:
        """Return the endpoint's description of its model, or None if it gives none."""
        await self._ready(for_info=True)
        return self._model.info

    async def drift(self, k: int = CANARIES) -> Drift:
        """Test whether the hosted model has changed; see ``AdaptedClient.drift``."""
        recorded, jobs = await asyncio.to_thread(self._canaries, k)
        deadline = await self._ready() if jobs else None
        now = []
        for i, job in enumerate(jobs):
            # Only the first image shares the deadline that began with the description request.
            reply = await self._finish(job, deadline if i == 0 else None)
            now.append(reply.answer)
        # Sending the differing images once more shows the model's own noise.
        repeated = {i: (await self._finish(jobs[i])).answer for i in differing(recorded, now)}
        return judge(recorded, now, repeated)

    async def aclose(self) -> None:
        """Close this event loop's connections, and the cache and ledger that this client opened."""
        self._close()
        if self._borrows:
            return
        # Connections of another event loop can be closed only in that loop.
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        if loop is not None:
            await loop.http.aclose()

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
        """Return the client's connections and locks for the running event loop."""
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
        reply = self._reply_without_request(job)
        if reply is not None:
            return reply
        async with self._here().slots:
            return await self._drive(self._reply(self._exchange(deadline), job))

    async def _ready(self, *, for_info: bool = False) -> float | None:
        """Request the model description if it is missing.

        Returns:
            The deadline of the whole call, which starts with this request; None without a request.
        """
        # Read before the lock, as in ``AdaptedClient``.
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
        """Yield the result of ``act`` for each image, in order.

        Images are adapted in chunks in a thread, and sent in asyncio tasks.
        """
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

                # The empty chunk at the end waits for all remaining results. Before it, the stream
                # waits only while too many results are open, and yields those that are done.
                room = self.max_concurrency if chunk else 0
                fatal: PGNError | None = None
                while window and (len(window) > room or window[0].done()):
                    result = await window.popleft()
                    fatal = fatal or ends_all(result)
                    # After a fatal error, the window is emptied before the error is raised.
                    room = 0 if fatal else room
                    yield result
                if fatal:
                    raise fatal
        finally:
            for task in window:
                task.cancel()
            # Waits until the cancelled tasks have released their connections; their results and
            # errors have no reader any more.
            await asyncio.gather(*window, return_exceptions=True)

    async def _drive(self, steps: Steps[T]) -> T:
        """Carry out the steps and return their result."""
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                return cast(T, done.value)

            if isinstance(step, Send):
                outcome = await self._send(step)
            else:
                await self._sleep(step.seconds)
                outcome = None

    async def _send(self, step: Send) -> WireResponse | Broken:
        request = step.request
        body = Body(self._clocks.monotonic, step.seconds)
        # A timeout refunds the image only while a connection is being made. A reused connection has
        # no such event, and part of the image may have left this machine, so False is the start.
        is_connecting = False

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal is_connecting
            if event in ("connection.connect_tcp.started", "http11.send_request_headers.started"):
                is_connecting = event.startswith("connection")

        try:
            async with (
                asyncio.timeout(step.seconds),
                self._here().http.stream(
                    request.method,
                    request.url,
                    headers=dict(request.headers),
                    content=request.body,
                    # httpx would restart its own timeout at every read and write.
                    timeout=None,
                    extensions={"trace": trace},
                ) as response,
                # A loop that is left by break does not close its generator; without aclosing the
                # event loop would close it later, in another task. httpx's annotation, which is an
                # AsyncIterator, has no aclose, hence the ignored type.
                contextlib.aclosing(response.aiter_bytes()) as chunks,  # type: ignore[type-var]
            ):
                async for chunk in chunks:
                    if not body.take(response, chunk):
                        break
                return body.outcome(response)
        except TimeoutError:
            return Broken("unsent" if is_connecting else "late", "deadline")
        except FOREIGN as error:
            return broken_by(error)


@dataclass(frozen=True, slots=True)
class _Loop:
    """An asynchronous client's connections and locks for one event loop.

    Attributes:
        http: httpx client with the event loop's connections.
        slots: Semaphore that limits the number of simultaneous requests.
        settling: Lock around the request for the model's description.
    """

    http: httpx.AsyncClient
    slots: asyncio.Semaphore
    settling: asyncio.Lock
