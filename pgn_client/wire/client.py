"""``AdaptedClient`` and ``AsyncAdaptedClient``: send images with prompts, return predictions.

A client owns a ``Session``, whose methods are generators of steps, and carries these steps out. The
two clients differ only in how they send and wait. This module does not import torch; the prompt
adapter imports it when it first makes prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from PIL import Image

from pgn_client.errors import ConfigurationError, PGNError
from pgn_client.imaging.codecs import ImageSource
from pgn_client.types import Answer, ImageFailure, ModelInfo, Prediction
from pgn_client.wire.base_client import BaseClient
from pgn_client.wire.cache import CANARIES
from pgn_client.wire.deadline import Leaving
from pgn_client.wire.drift import Drift
from pgn_client.wire.prepare import Job, asks, chunks, chunks_async
from pgn_client.wire.session import CLOSED
from pgn_client.wire.steps import Send, Sleep, Steps, Turn
from pgn_client.wire.transport import AsyncSender, Connect, Sender
from pgn_client.wire.window import Done, Window

T = TypeVar("T")
Act = Callable[[ImageSource, Job | PGNError], Steps[Done[T]]]
"""Steps that turn one prepared image, or its error, into a result."""
TURN = 0.2
"""Seconds between two looks whether the stream of a call that waits for its turn was left."""


class AdaptedClient(BaseClient):
    """Sends adapted images to a hosted model and maps its answers to the classes of your task.

    An adapted image has the checkpoint's prompt painted into it. The constructor does no network
    I/O; ``check`` does, for a service's start-up. The client detects the protocol, and compares the
    checkpoint with the model, when it gets the first image. Safe to use from several threads.

    Args:
        url: URL of the endpoint, path of an endpoint file, or name of a ready one (``pgn
            endpoints`` lists them).
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
        CheckpointError: The checkpoint is missing or unreadable.
        MissingDependencyError: The checkpoint needs torch, which is not installed.
    """

    def _open(self, connect: Connect, transport: Any) -> None:
        # The limit holds for the whole client: several threads and copies may use it at once.
        self._slots = threading.BoundedSemaphore(self.max_concurrency)
        self._sender = Sender(connect, transport, self._session.clocks)
        self._sleep: Callable[[float], object] = self._sender.guard.sleep

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
        return self._drive(self._session.classify(image))

    def classify_many(self, images: Iterable[ImageSource]) -> Iterator[Prediction | ImageFailure]:
        """Yield a prediction or a failure per image, in order; a failed image does not stop others.

        The client reads ahead by at most a few times ``max_concurrency`` images. Images are sent
        one at a time until the endpoint has answered one. Errors that concern every image are
        raised: a checkpoint that does not fit, a wrong option, an endpoint that is out of reach at
        the first image, a refusal because of the key, the account or the URL (401 to 404), and the
        same lasting refusal of three images in a row. The results of the requests under way are
        yielded first. When the budget is spent, the remaining images fail unread.

        If the iterator is left early, also by Ctrl-C, the client aborts the requests under way.
        """
        return self._stream(images, self._session.attempt)

    def answer(self, image: ImageSource, *, as_it_is: bool = False) -> Answer:
        """Return the endpoint's own labels and scores for one adapted image.

        No label mapping and no fusion with the local head is applied.

        Args:
            image: Path, file content in bytes, PIL image, or RGB array, (H, W, 3) uint8.
            as_it_is: Whether to send ``image`` unchanged to the hosted model, even if its answer is
                recorded. ``image`` must then be the content of a PNG file in bytes.
        """
        return self._drive(self._session.answer(image, as_it_is=as_it_is))

    def answers(self, images: Iterable[ImageSource]) -> list[Answer]:
        """Return the endpoint's own labels and scores for each adapted image, in order.

        No label mapping and no fusion with the local head is applied. The first failure is raised;
        the cache keeps the answers recorded until then.
        """
        return list(self._stream(images, self._session.answered, always=True))

    def answer_many(self, images: Iterable[ImageSource]) -> Iterator[Answer | ImageFailure]:
        """Yield the endpoint's own answer or a failure per image, in order.

        This is ``answers`` with the order, the errors and the reading ahead of ``classify_many``.
        """
        return self._stream(images, self._session.tried, always=True)

    def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB image that would be sent; nothing is sent."""
        return self._session.adapt(image)

    def info(self) -> ModelInfo | None:
        """Return the endpoint's description of its model, or None if it gives none."""
        return self._drive(self._session.info())

    def check(self) -> ModelInfo | None:
        """Check before the first image, for example when a service starts, that images can be sent.

        Loads the checkpoint, asks the endpoint for its model's description and compares the two. An
        endpoint whose protocol has no description gets a request without content instead. No image
        is sent, so such an endpoint can still refuse the first image.

        Returns:
            The description; None if the endpoint gives none, or in a replay.

        Raises:
            CheckpointError: The checkpoint is unreadable or was made for another model.
            EndpointError: The endpoint is out of reach, or refuses the key.
        """
        return self._drive(self._session.check())

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
        return self._drive(self._session.drift(k))

    def close(self) -> None:
        """Close the connections, the cache and the ledger that this client opened."""
        self._close()
        if not self._borrows:
            self._sender.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(
        self, sources: Iterable[ImageSource], act: Act[T], *, always: bool = False
    ) -> Iterator[T]:
        """Yield the result of ``act`` for each image, in order.

        Images are adapted in chunks in the calling thread, and sent in other threads.
        """
        window: Window[Future[Done[T]]] = Window(2 * self.max_concurrency)
        leaving = Leaving()
        is_ready = False
        pool = ThreadPoolExecutor(
            max_workers=self.max_concurrency,
            thread_name_prefix="pgn-client",
            initializer=self._sender.guard.heed,
            initargs=(leaving,),
        )

        def end_waiting() -> None:
            """Let the images that are not under way never be sent."""
            for waiting in window.rest():
                waiting.cancel()

        def due(*, last: bool = False) -> Iterator[T]:
            """Yield the results that are done, and wait for others while too many are open."""
            while (future := window.due(last=last)) is not None:
                try:
                    done = future.result()
                except Exception:
                    end_waiting()
                    raise
                window.note(done)
                if window.fatal is not None:
                    end_waiting()
                yield done.result

        try:
            ended: BaseException | None = None
            try:
                for chunk in chunks(sources, self.chunk):
                    jobs = self._session.prepare(chunk, always=always)
                    if not is_ready and any(map(asks, jobs)):
                        self._drive(self._session.ready())
                        is_ready = True
                    for source, job in zip(chunk, jobs, strict=True):
                        window.add(pool.submit(self._drive, act(source, job)))
                        yield from due()
                        if window.fatal is not None:
                            raise window.fatal
            # The caller's source, or the preparation of a later image, failed: what is paid for is
            # yielded first.
            except Exception as error:
                ended = error
            while window.rest():
                try:
                    yield from due(last=True)
                # The first error is the one to raise; the others are those of later images.
                except Exception as error:
                    ended = ended or error
            ended = ended or window.fatal
            if ended is not None:
                raise ended
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
        guard = self._sender.guard
        outcome: Any = None
        with contextlib.ExitStack() as turn, contextlib.closing(steps):
            has_turn = False
            while True:
                # A stream that is left early starts nothing new, but still processes (and so
                # records) a response that has arrived.
                if outcome is None and guard.leaving.flag.is_set():
                    raise CancelledError
                try:
                    step = steps.send(outcome)
                except StopIteration as done:
                    return cast(T, done.value)

                outcome = None
                if isinstance(step, Send):
                    # It may have been closed while this call waited.
                    if self._session.is_closed:
                        raise ConfigurationError(CLOSED)
                    outcome = self._sender.send(step)
                elif isinstance(step, Sleep):
                    self._sleep(step.seconds)
                elif not isinstance(step, Turn):
                    outcome = step.call()
                elif not has_turn:
                    # In short waits, because a stream may be left while another call has all turns.
                    while not self._slots.acquire(timeout=TURN):
                        if guard.leaving.flag.is_set():
                            raise CancelledError
                    turn.callback(self._slots.release)
                    has_turn = True


class AsyncAdaptedClient(BaseClient):
    """``AdaptedClient`` for asyncio, with the same arguments and methods.

    Await the methods, iterate with ``async for``, and close with ``aclose``. Each event loop gets
    its own connections at first use, and its own ``max_concurrency``. Images are adapted in a
    thread.
    """

    def _open(self, connect: Connect, transport: Any) -> None:
        self._connect = connect
        self._transport = transport
        self._sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = (
            weakref.WeakKeyDictionary()
        )

    async def classify(self, image: ImageSource) -> Prediction:
        """Return the predicted task class of one image; see ``AdaptedClient.classify``."""
        return await self._drive(self._session.classify(image))

    def classify_many(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> AsyncIterator[Prediction | ImageFailure]:
        """Yield a prediction or a failure per image; see ``AdaptedClient.classify_many``."""
        return self._stream(images, self._session.attempt)

    async def answer(self, image: ImageSource, *, as_it_is: bool = False) -> Answer:
        """Return the endpoint's labels and scores for one image; see ``AdaptedClient.answer``."""
        return await self._drive(self._session.answer(image, as_it_is=as_it_is))

    async def answers(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> list[Answer]:
        """Return the endpoint's labels and scores per image; see ``AdaptedClient.answers``."""
        answers = self._stream(images, self._session.answered, always=True)
        return [answer async for answer in answers]

    def answer_many(
        self, images: Iterable[ImageSource] | AsyncIterable[ImageSource]
    ) -> AsyncIterator[Answer | ImageFailure]:
        """Yield the endpoint's own answer or a failure per image; see ``AdaptedClient``."""
        return self._stream(images, self._session.tried, always=True)

    async def adapt(self, image: ImageSource) -> Image.Image:
        """Return exactly the RGB image that would be sent; nothing is sent."""
        return await asyncio.to_thread(self._session.adapt, image)

    async def info(self) -> ModelInfo | None:
        """Return the endpoint's description of its model, or None if it gives none."""
        return await self._drive(self._session.info())

    async def check(self) -> ModelInfo | None:
        """Check before the first image that images can be sent; see ``AdaptedClient.check``."""
        return await self._drive(self._session.check())

    async def drift(self, k: int = CANARIES) -> Drift:
        """Test whether the hosted model has changed; see ``AdaptedClient.drift``."""
        return await self._drive(self._session.drift(k))

    async def aclose(self) -> None:
        """Close this event loop's connections, and the cache and ledger that this client opened."""
        self._close()
        if self._borrows:
            return
        # Connections of another event loop can be closed only in that loop.
        loop = self._loops.pop(asyncio.get_running_loop(), None)
        if loop is not None:
            await loop.sender.aclose()

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
        """Return the client's connections and limits for the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            # The connections of a closed loop refer to it, so no weak reference frees them.
            for other in [known for known in self._loops if known.is_closed()]:
                del self._loops[other]
            sender = AsyncSender(self._connect, self._transport, self._session.clocks)
            self._loops[loop] = _Loop(sender, asyncio.Semaphore(self.max_concurrency))
        return self._loops[loop]

    async def _stream(
        self,
        sources: Iterable[ImageSource] | AsyncIterable[ImageSource],
        act: Act[T],
        *,
        always: bool = False,
    ) -> AsyncIterator[T]:
        """Yield the result of ``act`` for each image, in order.

        Images are adapted in chunks in a thread, and sent in asyncio tasks.
        """
        window: Window[asyncio.Future[Done[T]]] = Window(2 * self.max_concurrency)
        ended = asyncio.Event()
        failure: BaseException | None = None
        is_ready = False
        try:
            try:
                async for chunk in chunks_async(sources, self.chunk):
                    jobs = await asyncio.to_thread(self._session.prepare, chunk, always=always)
                    if not is_ready and any(map(asks, jobs)):
                        await self._drive(self._session.ready())
                        is_ready = True
                    for source, job in zip(chunk, jobs, strict=True):
                        steps = act(source, job)
                        window.add(asyncio.ensure_future(self._drive(steps, ended)))
                        while (done := await self._due(window, ended)) is not None:
                            yield done.result
                        if window.fatal is not None:
                            raise window.fatal
            # As in ``AdaptedClient``: what is paid for is yielded first.
            except Exception as error:
                failure = error
            while window.rest():
                try:
                    while (done := await self._due(window, ended, last=True)) is not None:
                        yield done.result
                # The first error is the one to raise; the others are those of later images.
                except Exception as error:
                    failure = failure or error
            failure = failure or window.fatal
            if failure is not None:
                raise failure
        except (GeneratorExit, KeyboardInterrupt, asyncio.CancelledError):
            # As in ``AdaptedClient``: only a consumer that leaves aborts requests.
            for task in window.rest():
                task.cancel()
            raise
        finally:
            # Tasks without a turn end now. The others finish, so that their answers, which may be
            # billed, are recorded; their results and errors have no reader any more.
            ended.set()
            await asyncio.gather(*window.rest(), return_exceptions=True)

    async def _due(
        self, window: Window[asyncio.Future[Done[T]]], ended: asyncio.Event, *, last: bool = False
    ) -> Done[T] | None:
        """Return the next result that is done or must be waited for; None if there is none."""
        while (future := window.due(last=last)) is not None:
            # Not ``await future``, which would cancel the future together with this call.
            await asyncio.wait([future])
            # A task that had no turn yet when the run ended.
            if future.cancelled():
                continue
            try:
                done = future.result()
            except Exception:
                ended.set()
                raise
            window.note(done)
            if window.fatal is not None:
                # Images that are not under way are not sent any more.
                ended.set()
            return done
        return None

    async def _drive(self, steps: Steps[T], ended: asyncio.Event | None = None) -> T:
        """Carry out the steps and return their result.

        Args:
            steps: Steps to carry out.
            ended: Set when the stream that the steps belong to has ended.
        """
        outcome: Any = None
        async with contextlib.AsyncExitStack() as turn:
            turn.enter_context(contextlib.closing(steps))
            has_turn = False
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration as done:
                    return cast(T, done.value)

                outcome = None
                if isinstance(step, Send):
                    # It may have been closed while this call waited.
                    if self._session.is_closed:
                        raise ConfigurationError(CLOSED)
                    outcome = await self._here().sender.send(step)
                elif isinstance(step, Sleep):
                    await self._sleep(step.seconds)
                elif not isinstance(step, Turn):
                    outcome = await asyncio.to_thread(step.call)
                elif not has_turn:
                    await turn.enter_async_context(self._here().slots)
                    has_turn = True
                    if ended is not None and ended.is_set():
                        raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class _Loop:
    """An asynchronous client's connections and limits for one event loop.

    Attributes:
        sender: Connections of the event loop.
        slots: Semaphore that limits the number of simultaneous calls.
    """

    sender: AsyncSender
    slots: asyncio.Semaphore
