"""From the bytes of a picture to its labels: what every wire format shares."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mock_server.batching import Batcher, ClosedError, QueueFullError
from mock_server.errors import RequestError
from mock_server.metrics import Metrics
from mock_server.model import ServedModel
from mock_server.preprocess import decode
from mock_server.settings import Settings

Function = Literal["softmax", "sigmoid", "none"]
FUNCTIONS: tuple[Function, ...] = ("softmax", "sigmoid", "none")
LOADING_SECONDS = 20.0

_log = logging.getLogger(__name__)


class Service:
    """One hosted model with its limits, queue and metrics.

    Attributes:
        settings: The owner's switches.
        model: What is hosted.
        preprocessing: The model's own, or as the settings ask.
        metrics: Of this application.
        ready: Whether requests can be answered now.
    """

    def __init__(self, settings: Settings, model: ServedModel) -> None:
        self.settings = settings
        self.model = model
        self.preprocessing = model.preprocessing.configured(settings.profile, settings.jpeg)
        self.metrics = Metrics()
        self.ready = False
        self._batcher = Batcher(
            model.logits,
            max_batch_size=settings.max_batch_size,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
            on_batch=self.metrics.batch_size.observe,
        )
        self.metrics.queue_depth.set_function(lambda: self._batcher.depth)

    async def start(self) -> None:
        """Start the worker and warm the model up with one black picture.

        Raises:
            RuntimeError: The model fails on it; the server must not say that it is ready.
        """
        self._batcher.start()
        side = self.preprocessing.input_size
        [answer] = await self._batcher.submit([np.zeros((3, side, side), np.float32)])
        if isinstance(answer, Exception):
            raise RuntimeError(f"the model {self.model.name} failed on its first picture") from answer
        self.ready = True

    async def stop(self) -> None:
        """Refuse further requests and stop the worker."""
        self.ready = False
        await self._batcher.close()

    async def logits(self, pictures: Sequence[bytes | RequestError]) -> list[NDArray[np.float32] | RequestError]:
        """Return (S,) logits per encoded picture, in order; a picture that failed has its error in its place.

        Raises:
            RequestError: The whole request is refused: too many pictures, not ready, or overloaded.
        """
        if len(pictures) > self.settings.max_queue:
            raise RequestError("invalid_request", f"at most {self.settings.max_queue} pictures fit into one request")
        if not self.ready:
            message = f"Model {self.model.name} is currently loading"
            raise RequestError("overloaded", message, headers={"Retry-After": "1"}, estimated_time=LOADING_SECONDS)
        prepared = await asyncio.gather(*(asyncio.to_thread(self._prepare, picture) for picture in pictures))
        answers = iter(await self._ask([item for item in prepared if not isinstance(item, RequestError)]))
        return [item if isinstance(item, RequestError) else next(answers) for item in prepared]

    def rank(
        self, logits: NDArray[np.float32], function: Function, *, top_k: int | None = None
    ) -> tuple[list[str], list[float]]:
        """Return labels, best first, and their scores.

        Args:
            logits: (S,).
            function: What turns logits into scores.
            top_k: The most labels wanted; the server's own limit holds as well. None is all.
        """
        if self.settings.output == "label":
            return [self.model.classes[int(logits.argmax())]], [1.0]
        limits = [limit for limit in (top_k, self.settings.top_k) if limit is not None]
        order = np.argsort(-logits, kind="stable")[: min(limits, default=None)]
        scores = [float(score) for score in _scores(logits.astype(np.float64), function)[order]]
        if self.settings.decimals is not None:
            scores = [round(score, self.settings.decimals) for score in scores]
        return [self.model.classes[i] for i in order], scores

    def _prepare(self, picture: bytes | RequestError) -> NDArray[np.float32] | RequestError:
        if isinstance(picture, RequestError):
            return picture
        try:
            return self.preprocessing.normalise(decode(picture, self.settings.max_pixels))
        except RequestError as error:
            return error
        except Exception as error:  # a codec's own limits, memory: never its neighbours' problem
            _log.warning("a picture could not be prepared", exc_info=error)
            return RequestError("invalid_image", f"the picture cannot be prepared ({type(error).__name__})")

    async def _ask(self, pictures: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32] | RequestError]:
        try:
            answers = await self._batcher.submit(pictures)
        except QueueFullError:
            raise RequestError("overloaded", "too many pictures wait already", headers={"Retry-After": "1"}) from None
        except ClosedError:
            raise RequestError("overloaded", "the server is stopping", headers={"Retry-After": "1"}) from None
        return [self._checked(answer) for answer in answers]

    def _checked(self, answer: NDArray[np.float32] | Exception) -> NDArray[np.float32] | RequestError:
        if isinstance(answer, ClosedError):
            return RequestError("overloaded", "the server is stopping", headers={"Retry-After": "1"})
        if isinstance(answer, Exception):
            _log.error("the model failed on a picture", exc_info=answer)
            return RequestError("internal", "the model failed on this picture")
        if not np.isfinite(answer).all():
            return RequestError("internal", "the model's output is not finite")
        self.metrics.images.inc()
        return answer


def _scores(logits: NDArray[np.float64], function: Function) -> NDArray[np.float64]:
    if function == "none":
        return logits
    if function == "sigmoid":
        return np.exp(-np.logaddexp(0, -logits))  # 1 / (1 + exp(-x)) without overflow
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), np.float64)
