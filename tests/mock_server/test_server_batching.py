from __future__ import annotations

import asyncio
import base64
import threading

import pytest

from mock_server.batching import Batcher, ClosedError, QueueFullError
from mock_server.preprocess import Profile

pytestmark = pytest.mark.anyio


class Worker:
    """Doubles numbers, remembers the batches, and can be held before its first one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def __call__(self, items):
        self.entered.set()
        self.go.wait(10)
        self.batches.append(list(items))
        if -1 in items:
            raise ValueError("bad item")
        return [2 * item for item in items]


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def batcher(worker):
    batcher = Batcher(worker, max_batch_size=4, max_wait=0, max_queue=6)
    batcher.start()
    yield batcher
    worker.go.set()
    await batcher.close()


async def until_busy(worker: Worker) -> None:
    assert await asyncio.to_thread(worker.entered.wait, 10)


async def test_answers_come_back_in_order(batcher):
    assert await batcher.submit([3, 1, 2]) == [6, 2, 4]


async def test_items_that_wait_together_share_a_batch_up_to_its_size(batcher, worker):
    await batcher.submit([0, 1, 2, 3, 4, 5])
    assert worker.batches == [[0, 1, 2, 3], [4, 5]]


async def test_callers_share_a_batch(batcher, worker):
    worker.go.clear()
    first = asyncio.create_task(batcher.submit([0]))
    await until_busy(worker)
    others = [asyncio.create_task(batcher.submit([i])) for i in (1, 2)]
    while batcher.depth < 2:
        await asyncio.sleep(0)
    worker.go.set()
    assert [await task for task in (first, *others)] == [[0], [2], [4]]
    assert worker.batches == [[0], [1, 2]]


async def test_a_lone_item_waits_for_company_until_the_deadline(worker):
    batcher = Batcher(worker, max_batch_size=2, max_wait=3600, max_queue=6)
    batcher.start()
    first = asyncio.create_task(batcher.submit([1]))
    await asyncio.sleep(0)
    assert await batcher.submit([2]) == [4]
    assert await first == [2]
    assert worker.batches == [[1, 2]]
    await batcher.close()


async def test_a_bad_item_does_not_hurt_its_neighbours(batcher):
    before, bad, after = await batcher.submit([1, -1, 2])
    assert (before, after) == (2, 4)
    assert isinstance(bad, ValueError)


async def test_a_full_queue_takes_none_of_the_items(batcher, worker):
    worker.go.clear()
    running = asyncio.create_task(batcher.submit([0]))
    await until_busy(worker)
    waiting = asyncio.create_task(batcher.submit([1, 2, 3, 4]))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError):
        await batcher.submit([5, 6, 7])
    assert batcher.depth == 4
    worker.go.set()
    assert await running == [0]
    assert await waiting == [2, 4, 6, 8]


async def test_a_cancelled_caller_withdraws_its_items_only(batcher, worker):
    worker.go.clear()
    running = asyncio.create_task(batcher.submit([0]))
    await until_busy(worker)
    cancelled, waiting = (asyncio.create_task(batcher.submit([i])) for i in (1, 2))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    worker.go.set()
    assert await running == [0]
    assert await waiting == [4]
    assert worker.batches == [[0], [2]]


async def test_cancelling_a_caller_whose_batch_runs_leaves_the_batch_alone(batcher, worker):
    worker.go.clear()
    cancelled, running = (asyncio.create_task(batcher.submit([i])) for i in (1, 2))
    await until_busy(worker)
    cancelled.cancel()
    worker.go.set()
    assert await running == [4]


async def test_closing_answers_everyone_who_waits(worker):
    batcher = Batcher(worker, max_batch_size=4, max_wait=3600, max_queue=6)
    batcher.start()
    waiting = asyncio.create_task(batcher.submit([1, 2]))
    await asyncio.sleep(0)
    await batcher.close()
    assert all(isinstance(answer, ClosedError) for answer in await waiting)


async def test_a_closed_batcher_takes_nothing(batcher):
    await batcher.close()
    with pytest.raises(ClosedError):
        await batcher.submit([1])


async def test_an_overloaded_server_is_503_with_retry_after(open_client, served, png):
    worker = Worker()
    forward = served.network.forward

    def held(x):
        worker.entered.set()
        worker.go.wait(10)
        return forward(x)

    served.network.forward = held
    try:
        async with open_client(max_queue=1, max_batch_size=1) as client:
            worker.entered.clear()
            worker.go.clear()
            running = asyncio.create_task(client.post("/v1/classify", content=png()))
            await until_busy(worker)
            waiting = asyncio.create_task(client.post("/v1/classify", content=png()))
            while "pgn_queue_depth 1.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0)
            refused = await client.post("/v1/classify", content=png())
            worker.go.set()
            assert [(await task).status_code for task in (running, waiting)] == [200, 200]
    finally:
        del served.network.forward
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"


async def test_pictures_of_other_shapes_can_share_a_batch(open_client, make_served, png):
    flexible = make_served(dynamic_img_size=True, dynamic_img_pad=True)
    images = [
        base64.b64encode(png(i, size)).decode()
        for i, size in enumerate([(32, 32), (50, 32), (32, 40)])
    ]
    async with open_client(model=flexible, profile=Profile.parse("shortest_edge:32")) as client:
        together = (await client.post("/v1/classify", json={"images": images})).json()[
            "predictions"
        ]
        alone = [
            (await client.post("/v1/classify", json={"images": [image]})).json()["predictions"][0]
            for image in images
        ]
    for prediction, single in zip(together, alone, strict=True):
        assert prediction["labels"] == single["labels"]
        assert prediction["scores"] == pytest.approx(single["scores"], abs=1e-5)
