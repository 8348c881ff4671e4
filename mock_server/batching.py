"""Dynamic batching: images that arrive together share a forward pass."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFullError(Exception):
    """The queue has no room for the submitted items."""


class ClosedError(Exception):
    """The batcher closed before it ran the item."""


@dataclass(frozen=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    since: float  # Time of the submission, in seconds of the event loop's clock.
    answer: asyncio.Future[Answer]


class Batcher(Generic[Item, Answer]):
    """Collect items into batches and run them one batch at a time in a single worker thread.

    A batch starts when it is full, or when its oldest item has waited ``max_wait``. If a batch
    fails, its items run again one by one, so that a bad item does not fail the others.

    Args:
        run: Function that takes a batch of items and returns one answer per item; it runs in the
            worker thread.
        max_batch_size: Largest number of items in one batch.
        max_wait: Longest wait for a full batch, in seconds.
        max_queue: Largest number of items that may wait for a batch.
        on_batch: Function to call with the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        max_batch_size: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._queue: asyncio.Queue[_Waiting[Item, Answer]] = asyncio.Queue()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._collector: asyncio.Task[None] | None = None
        self._batch: list[_Waiting[Item, Answer]] = []

    @property
    def depth(self) -> int:
        """Number of items that wait for a batch."""
        return self._queue.qsize()

    def start(self) -> None:
        """Start to process items; call it inside the running event loop."""
        self._collector = asyncio.create_task(self._collect_forever())

    async def close(self) -> None:
        """Fail all pending items with `ClosedError`, and wait until the worker thread ends."""
        if self._collector is not None:
            self._collector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collector
        self._collector = None

        while not self._queue.empty():
            self._batch.append(self._queue.get_nowait())
        for waiting in self._batch:
            _fail(waiting, ClosedError())

        # `shutdown` blocks until the running batch ends, so a thread keeps the event loop free.
        await asyncio.to_thread(self._worker.shutdown)

    async def submit(self, items: Sequence[Item]) -> list[Answer | Exception]:
        """Return one answer per item, in order; a failed item has its exception in its place.

        If the caller is cancelled, its items are withdrawn; other callers' items are not affected.

        Args:
            items: Items to process.

        Raises:
            QueueFullError: Not all items fit into the queue; the batcher took none of them.
            ClosedError: The batcher is not running.
        """
        if self._collector is None:
            raise ClosedError
        if self.depth + len(items) > self._max_queue:
            raise QueueFullError

        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = []
        for item in items:
            future: asyncio.Future[Answer] = loop.create_future()
            futures.append(future)
            self._queue.put_nowait(_Waiting(item, loop.time(), future))

        # If the caller is cancelled, `gather` cancels the futures; the collector skips these items.
        answers = await asyncio.gather(*futures, return_exceptions=True)
        return [_exception_or_answer(answer) for answer in answers]

    async def _collect_forever(self) -> None:
        while True:
            await self._collect()
            # A future that is done belongs to a caller that was cancelled.
            await self._run_batch([waiting for waiting in self._batch if not waiting.answer.done()])

    async def _collect(self) -> None:
        # The batch is an attribute, so that `close` finds its items after it cancels this task.
        self._batch = []
        self._batch.append(await self._queue.get())

        deadline = self._batch[0].since + self._max_wait
        while len(self._batch) < self._max_batch_size:
            try:
                # Items that are already in the queue are taken even after the deadline, because
                # `get` returns them before the timeout can act.
                async with asyncio.timeout_at(deadline):
                    self._batch.append(await self._queue.get())
            except TimeoutError:
                return

    async def _run_batch(self, batch: list[_Waiting[Item, Answer]]) -> None:
        if not batch:
            return

        self._on_batch(len(batch))
        items = [waiting.item for waiting in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._worker, self._run, items
            )
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for waiting in batch:
                await self._run_batch([waiting])
            return

        for waiting, answer in zip(batch, answers, strict=True):
            # Callers may also be cancelled while their batch runs.
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


def _fail(waiting: _Waiting[Item, Answer], error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _exception_or_answer(answer: Answer | BaseException) -> Answer | Exception:
    # A cancellation or an interrupt is not an item's result: it must reach the caller.
    if isinstance(answer, BaseException) and not isinstance(answer, Exception):
        raise answer
    return answer
