"""From the bytes of an image to its labels: what every wire format shares."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mock_server.adapters import Adapter, Store
from mock_server.batching import Batcher, ClosedError, QueueFullError
from mock_server.errors import RequestError
from mock_server.metrics import Metrics
from mock_server.model import Asked, ServedModel, Want
from mock_server.preprocess import decode
from mock_server.settings import Settings

Function = Literal["softmax", "sigmoid", "none", "log_softmax"]
LOADING_SECONDS = 20.0
Pixels = NDArray[np.float32]  # (3, H, W) in the model's normalised space
# (S,) logits, (D,) embedding or (N, D) tokens; of an adapter also an (H, W) mask
Answer = NDArray[np.float32]

_log = logging.getLogger(__name__)


class Service:
    """One hosted model with its limits, queue and metrics.

    Attributes:
        settings: The owner's switches.
        model: What is hosted.
        preprocessing: The model's own, or as the settings ask.
        metrics: Of this application.
        adapters: Of the tenants.
        ready: Whether requests can be answered now.
    """

    def __init__(self, settings: Settings, model: ServedModel) -> None:
        self.settings = settings
        self.model = model
        self.preprocessing = model.preprocessing.configured(settings.profile, settings.jpeg)
        self.metrics = Metrics()
        self.adapters = Store(settings.max_adapters)
        self.ready = False
        self._batcher = Batcher(
            model.run,
            max_batch_size=settings.max_batch_size,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
            on_batch=self.metrics.batch_size.observe,
        )
        self.metrics.queue_depth.set_function(lambda: self._batcher.depth)

    async def start(self) -> None:
        """Start the worker and warm the model up with one black image.

        Raises:
            RuntimeError: The model fails on it; the server must not say that it is ready.
        """
        self._batcher.start()
        side = self.preprocessing.input_size
        [answer] = await self._batcher.submit(
            [Asked(np.zeros((3, side, side), np.float32), self.want)]
        )
        if isinstance(answer, Exception):
            raise RuntimeError(f"the model {self.model.name} failed on its first image") from answer
        self.ready = True

    async def stop(self) -> None:
        """Refuse further requests and stop the worker."""
        self.ready = False
        await self._batcher.close()

    @property
    def want(self) -> Want:
        """What the owner lets the model answer by itself."""
        return "embedding" if self.settings.output == "embedding" else "logits"

    @property
    def function(self) -> Function:
        """What turns logits into the owner's scores."""
        return "none" if self.settings.output == "logits" else "softmax"

    @property
    def limited(self) -> bool:
        """Whether the owner keeps a part of the scores back."""
        return self.settings.top_k is not None or self.settings.output == "label"

    @property
    def labels(self) -> list[str]:
        """Names of the numbers of a complete answer: S classes, or the D places of an embedding."""
        if self.settings.output == "embedding":
            return [str(place) for place in range(self.model.width)]
        return list(self.model.classes)

    async def ask(
        self,
        images: Sequence[bytes | Pixels | RequestError],
        want: Want = "logits",
        adapter: Adapter | None = None,
    ) -> list[Answer | RequestError]:
        """Return one answer per image, in order; an image that failed has its error in its
        place.

        Args:
            images: Encoded ones go through the preprocessing; arrays are what the model sees.
            want: What to ask the model.
            adapter: Who answers instead of the model itself.

        Raises:
            RequestError: The whole request is refused: too many images, not ready, overloaded, or
                not what this server answers.
        """
        if self.want == "embedding" and want != "embedding":
            raise RequestError(
                "invalid_request", "this server answers embeddings only, of whole images"
            )
        if len(images) > self.settings.max_queue:
            raise RequestError(
                "invalid_request",
                f"at most {self.settings.max_queue} images fit into one request",
            )
        self.require_ready()
        prepared = await asyncio.gather(
            *(asyncio.to_thread(self._prepare, image) for image in images)
        )
        fine = [
            Asked(item, want, adapter) for item in prepared if not isinstance(item, RequestError)
        ]
        answers = iter(await self._submit(fine))
        return [item if isinstance(item, RequestError) else next(answers) for item in prepared]

    async def ask_all(
        self,
        images: Sequence[bytes | Pixels | RequestError],
        want: Want = "logits",
        adapter: Adapter | None = None,
    ) -> list[Answer]:
        """Return one answer per image, as `ask`, where one that fails refuses the whole
        request.
        """
        answers = []
        for answer in await self.ask(images, want, adapter):
            if isinstance(answer, RequestError):
                raise answer
            answers.append(answer)
        return answers

    def require_ready(self) -> None:
        """Refuse while the model loads.

        Raises:
            RequestError: ``overloaded``.
        """
        if not self.ready:
            message = f"Model {self.model.name} is currently loading"
            raise RequestError(
                "overloaded", message, headers={"Retry-After": "1"}, estimated_time=LOADING_SECONDS
            )

    def require_complete(self) -> None:
        """Refuse what holds every number of an answer where the owner keeps a part back.

        Raises:
            RequestError: ``invalid_request``.
        """
        if self.limited:
            raise RequestError(
                "invalid_request",
                "this server answers its best labels only, never a complete vector",
            )

    def rank(
        self,
        logits: Answer,
        function: Function,
        *,
        top_k: int | None = None,
        among: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> tuple[list[str], list[float]]:
        """Return labels, best first, and their scores.

        Args:
            logits: (S,).
            function: What turns logits into scores.
            top_k: The most labels wanted; the server's own limit holds as well. None is all.
            among: The classes that compete, by their place in the model; the others are as if they
                did not exist. None is all.
            classes: Their names; None are the model's.
        """
        names = self.model.classes if classes is None else classes
        places = np.arange(len(logits)) if among is None else np.array(among)
        logits = logits[places]
        if self.settings.output == "label":
            return [names[places[int(logits.argmax())]]], [1.0]
        limits = [limit for limit in (top_k, self.settings.top_k) if limit is not None]
        order = np.argsort(-logits, kind="stable")[: min(limits, default=None)]
        scores = self.rounded(_scores(logits.astype(np.float64), function)[order])
        return [names[places[i]] for i in order], scores.tolist()

    def complete(self, answer: Answer, function: Function | None = None) -> NDArray[np.float64]:
        """Return every number of ``answer`` in the model's order: the scores (S,), or the features
        as they are.

        Args:
            answer: Of the model.
            function: What turns logits into scores; None leaves the answer as it is.

        Raises:
            RequestError: ``invalid_request`` if the owner keeps a part back.
        """
        self.require_complete()
        return self.rounded(_scores(answer.astype(np.float64), function or "none"))

    def rounded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``values`` with the owner's number of decimals."""
        return (
            values if self.settings.decimals is None else np.round(values, self.settings.decimals)
        )

    def _prepare(self, image: bytes | Pixels | RequestError) -> Pixels | RequestError:
        if not isinstance(image, bytes):
            return image
        try:
            return self.preprocessing.normalise(decode(image, self.settings.max_pixels))
        except RequestError as error:
            return error
        except Exception as error:  # a codec's own limits, memory: never its neighbours' problem
            _log.warning("an image could not be prepared", exc_info=error)
            return RequestError(
                "invalid_image", f"the image cannot be prepared ({type(error).__name__})"
            )

    async def _submit(self, asked: Sequence[Asked]) -> list[Answer | RequestError]:
        try:
            answers = await self._batcher.submit(asked)
        except QueueFullError:
            raise RequestError(
                "overloaded", "too many images wait already", headers={"Retry-After": "1"}
            ) from None
        except ClosedError:
            raise RequestError(
                "overloaded", "the server is stopping", headers={"Retry-After": "1"}
            ) from None
        return [
            self._checked(answer, one.adapter) for answer, one in zip(answers, asked, strict=True)
        ]

    def _checked(
        self, answer: Answer | Exception, adapter: Adapter | None
    ) -> Answer | RequestError:
        if isinstance(answer, ClosedError):
            return RequestError(
                "overloaded", "the server is stopping", headers={"Retry-After": "1"}
            )
        if isinstance(answer, Exception):
            _log.error("the model failed on an image", exc_info=answer)
            return RequestError("internal", "the model failed on this image")
        if not np.isfinite(answer).all() and adapter is not None:
            return RequestError(
                "invalid_request", "your adapter makes numbers of this image that are not finite"
            )
        if not np.isfinite(answer).all():
            return RequestError("internal", "the model's output is not finite")
        self.metrics.images.inc()
        return answer


def _scores(logits: NDArray[np.float64], function: Function) -> NDArray[np.float64]:
    if function == "none":
        return logits
    if function == "sigmoid":
        return np.exp(-np.logaddexp(0, -logits))  # 1 / (1 + exp(-x)) without overflow
    if function == "log_softmax":
        return np.asarray(logits - np.logaddexp.reduce(logits), np.float64)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), np.float64)
