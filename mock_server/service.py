"""The path from the bytes of an image to its labels, which all wire formats share."""

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
"""Estimated time in seconds that a loading server reports; Hugging Face's examples have 20 s."""
Pixels = NDArray[np.float32]
"""(3, H, W) in the model's normalized space."""
Answer = NDArray[np.float32]
"""(S,) logits, (D,) embedding or (N, D) tokens. From an adapter: (C,) log-probabilities, or an
(H, W) uint8 mask.
"""

_log = logging.getLogger(__name__)


class Service:
    """One hosted model with its limits, queue and metrics.

    Attributes:
        settings: The server's options.
        model: The hosted model.
        preprocessing: The model's own preprocessing, with the profile and JPEG of the settings.
        metrics: Metrics of this application.
        adapters: Adapters of all tenants.
        ready: Whether the server accepts requests now.
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
        """Start the worker, and warm up the model with one uniform image.

        Raises:
            RuntimeError: The model fails on that image, so the server must not become ready.
        """
        self._batcher.start()

        side = self.preprocessing.input_size
        zeros = np.zeros((3, side, side), np.float32)
        [answer] = await self._batcher.submit([Asked(zeros, self.want)])
        if isinstance(answer, Exception):
            raise RuntimeError(f"the model {self.model.name} failed on its first image") from answer
        self.ready = True

    async def stop(self) -> None:
        """Reject new requests and stop the worker."""
        self.ready = False
        await self._batcher.close()

    @property
    def want(self) -> Want:
        """Model output that the owner's settings select."""
        return "embedding" if self.settings.output == "embedding" else "logits"

    @property
    def function(self) -> Function:
        """Function that turns logits into the scores that the owner selected."""
        return "none" if self.settings.output == "logits" else "softmax"

    @property
    def limited(self) -> bool:
        """Whether the owner's settings hide a part of the scores."""
        return self.settings.top_k is not None or self.settings.output == "label"

    @property
    def labels(self) -> list[str]:
        """Names of the numbers of a complete answer: S classes, or the indices "0" to "D-1"."""
        if self.settings.output == "embedding":
            return [str(index) for index in range(self.model.width)]
        return list(self.model.classes)

    async def ask(
        self,
        images: Sequence[bytes | Pixels | RequestError],
        want: Want = "logits",
        adapter: Adapter | None = None,
    ) -> list[Answer | RequestError]:
        """Return one answer per image, in order; a failed image has its error in its place.

        Args:
            images: Files as bytes, which go through the preprocessing; arrays (3, H, W) float32 in
                the normalized space, which go to the model unchanged; or errors, which stay in
                their place.
            want: Output of the model to return.
            adapter: Adapter that classifies instead of the model's own head, or None.

        Raises:
            RequestError: The server rejects the whole request: too many images, not ready,
                overloaded, or an output that this server does not offer.
        """
        if self.want == "embedding" and want != "embedding":
            raise RequestError(
                "invalid_request", "this server returns only embeddings of whole images"
            )
        if len(images) > self.settings.max_queue:
            raise RequestError(
                "invalid_request",
                f"too many images: a request holds at most {self.settings.max_queue}",
            )
        self.require_ready()

        prepared = await asyncio.gather(
            *(asyncio.to_thread(self._prepare, image) for image in images)
        )
        valid = [
            Asked(item, want, adapter) for item in prepared if not isinstance(item, RequestError)
        ]
        # Only the valid images have answers, in order; each failed one keeps its place.
        answers = iter(await self._submit(valid))
        return [item if isinstance(item, RequestError) else next(answers) for item in prepared]

    async def ask_all(
        self,
        images: Sequence[bytes | Pixels | RequestError],
        want: Want = "logits",
        adapter: Adapter | None = None,
    ) -> list[Answer]:
        """Return one answer per image, like `ask`; one failed image fails the whole request.

        Args:
            images: Images as for `ask`.
            want: Output of the model to return.
            adapter: Adapter that classifies instead of the model's own head, or None.

        Raises:
            RequestError: As for `ask`, or the error of the first image that failed.
        """
        answers = []
        for answer in await self.ask(images, want, adapter):
            if isinstance(answer, RequestError):
                raise answer
            answers.append(answer)
        return answers

    def require_ready(self) -> None:
        """Check that the model is loaded.

        Raises:
            RequestError: ``overloaded`` while the model loads.
        """
        if not self.ready:
            message = f"Model {self.model.name} is currently loading"
            raise RequestError(
                "overloaded", message, headers={"Retry-After": "1"}, estimated_time=LOADING_SECONDS
            )

    def require_complete(self) -> None:
        """Check that the owner's settings allow complete score vectors.

        Raises:
            RequestError: ``invalid_request`` if they do not.
        """
        if self.limited:
            raise RequestError(
                "invalid_request",
                "this server returns its best labels only, never a complete vector",
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
            logits: Logits, (S,) float32.
            function: Function that turns logits into scores.
            top_k: Largest number of labels to return; None is all. The server's own limit holds as
                well.
            among: Indices of the classes that compete; the function ignores all other classes. None
                is all classes.
            classes: Class names in the order of ``logits``; None is the model's names.
        """
        names = self.model.classes if classes is None else classes
        indices = np.arange(len(logits)) if among is None else np.array(among)
        logits = logits[indices]

        if self.settings.output == "label":
            best = indices[int(logits.argmax())]
            # The formats need a score. This one reveals nothing, because it is always the same.
            return [names[best]], [1.0]

        limits = [limit for limit in (top_k, self.settings.top_k) if limit is not None]
        # A stable sort keeps equal scores in the order of the classes. The slice [:None] is all.
        order = np.argsort(-logits, kind="stable")[: min(limits, default=None)]
        # In float64: a rounded float32 would appear in the JSON with further decimals.
        scores = self.rounded(_scores(logits.astype(np.float64), function)[order])
        return [names[indices[i]] for i in order], scores.tolist()

    def complete(self, answer: Answer, function: Function | None = None) -> NDArray[np.float64]:
        """Return all numbers of ``answer``, rounded, in the model's order.

        Args:
            answer: Logits, embedding or tokens from the model.
            function: Function that turns logits into scores; None returns the numbers unchanged.

        Raises:
            RequestError: ``invalid_request`` if the owner's settings hide a part of the scores.
        """
        self.require_complete()
        return self.rounded(_scores(answer.astype(np.float64), function or "none"))

    def rounded(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return ``values`` rounded to the owner's number of decimals."""
        if self.settings.decimals is None:
            return values
        return np.round(values, self.settings.decimals)

    def _prepare(self, image: bytes | Pixels | RequestError) -> Pixels | RequestError:
        if not isinstance(image, bytes):
            return image
        try:
            return self.preprocessing.normalise(decode(image, self.settings.max_pixels))
        except RequestError as error:
            return error
        except Exception as error:
            # For example a codec's own limit, or too little memory. The other images of the
            # request must not fail with this one.
            _log.warning("an image could not be prepared", exc_info=error)
            return RequestError(
                "invalid_image", f"the image cannot be prepared ({type(error).__name__})"
            )

    async def _submit(self, asked: Sequence[Asked]) -> list[Answer | RequestError]:
        try:
            answers = await self._batcher.submit(asked)
        except QueueFullError:
            raise RequestError(
                "overloaded", "the queue is full; try again later", headers={"Retry-After": "1"}
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
        """Return the batcher's answer if it is usable, or else the error for its image."""
        if isinstance(answer, ClosedError):
            return RequestError(
                "overloaded", "the server is stopping", headers={"Retry-After": "1"}
            )
        if isinstance(answer, Exception):
            _log.error("the model failed on an image", exc_info=answer)
            return RequestError("internal", "the model failed on this image")

        finite = np.isfinite(answer).all()
        if not finite and adapter is not None:
            return RequestError(
                "invalid_request", "your adapter returns non-finite numbers for this image"
            )
        if not finite:
            return RequestError("internal", "the model's output is not finite")

        self.metrics.images.inc()
        return answer


def _scores(logits: NDArray[np.float64], function: Function) -> NDArray[np.float64]:
    if function == "none":
        return logits
    if function == "sigmoid":
        # This equals 1 / (1 + exp(-x)), without overflow.
        return np.exp(-np.logaddexp(0, -logits))
    if function == "log_softmax":
        return np.asarray(logits - np.logaddexp.reduce(logits), np.float64)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum(), np.float64)
