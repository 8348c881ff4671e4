"""Send the images of an evaluation to an endpoint and count them, or list them for a dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pgn_client.errors import BudgetExceededError, PGNError
from pgn_client.imaging.codecs import ImageSource
from pgn_client.imaging.dataset import Task
from pgn_client.types import Adapter, Answer, ImageFailure
from pgn_client.wire.client import AdaptedClient

Connect = Callable[[Adapter | None], AdaptedClient]
"""Function that opens a client of the endpoint for an adapter, or, given ``None``, for raw images.
"""


@dataclass(frozen=True)
class Query:
    """Images that an evaluation would send to the endpoint, for a dry run to count.

    Attributes:
        part: Part of the evaluation that needs these images, such as ``training``.
        images: Images in the order in which they would be sent.
        adapter: Adapter that prepares the images; ``None`` if they are sent raw or ``ready`` is
            false.
        ready: Whether the adapter exists already. For an adapter that would be trained first, no
            answers can have been recorded.
    """

    part: str
    images: Sequence[ImageSource]
    adapter: Adapter | None = None
    ready: bool = True


class Asker:
    """Send images to the endpoint, and count them.

    Args:
        connect: Opens a client for an adapter.
        allowed: Number of images that may get no answer. Such an image counts as one of which the
            endpoint says nothing: it gets the neutral answer of ``neutral``.

    Attributes:
        images_sent: Number of images sent so far; answers from a cache do not count.
        failures: Images without an answer: name → error.
    """

    def __init__(self, connect: Connect, allowed: int = 0) -> None:
        self._connect = connect
        self._allowed = allowed
        self.images_sent = 0
        self.failures: dict[str, PGNError] = {}
        self._kept: dict[Path, Answer] = {}

    def keeping(self, paths: Sequence[Path]) -> list[Answer]:
        """Return the endpoint's answers to raw files, and keep them: they are sent once only.

        Without a cache, a test on a few of the images would otherwise pay for them twice.
        """
        answers = self(paths)
        self._kept |= dict(zip(paths, answers, strict=True))
        return answers

    def __call__(
        self, images: Sequence[ImageSource], adapter: Adapter | None = None
    ) -> list[Answer]:
        """Return the endpoint's answers in the order of the images.

        Args:
            images: Images to send.
            adapter: Adapter that prepares them; ``None`` sends them raw.

        Raises:
            PGNError: More images got no answer than are allowed, or none got one; the error names
                the image.
        """
        kept = [None if adapter else self._kept_answer(image) for image in images]
        asked = [image for image, answer in zip(images, kept, strict=True) if answer is None]
        with self._connect(adapter) as client:
            # All copies of a client share their usage, so only the growth belongs to this call.
            before = client.usage.images
            results = []
            for result in client.answer_many(asked):
                if isinstance(result, ImageFailure):
                    self._note(result)
                results.append(result)
            self.images_sent += client.usage.images - before

        good = [result for result in results if isinstance(result, Answer)]
        if results and not good:
            raise next(iter(self.failures.values()))
        answers = iter(neutral(good) if isinstance(r, ImageFailure) else r for r in results)
        return [next(answers) if answer is None else answer for answer in kept]

    def _kept_answer(self, image: ImageSource) -> Answer | None:
        return self._kept.get(image) if isinstance(image, Path) else None

    def _note(self, failure: ImageFailure) -> None:
        """Note an image without an answer.

        Raises:
            PGNError: There are too many, or the error would meet every other image.
        """
        error = failure.error
        if not str(error).startswith(failure.image):
            error.args = (f"{failure.image}: {error}",)
        self.failures[failure.image] = error
        if isinstance(error, BudgetExceededError) or len(self.failures) > self._allowed:
            raise error

    def remark(self) -> str:
        """Return which images got no answer, as a sentence; empty if all got one."""
        if not self.failures:
            return ""
        names = ", ".join(list(self.failures)[:3])
        return (
            f"{len(self.failures)} images got no answer and count as ones of which the endpoint "
            f"says nothing ({names})"
        )


def neutral(answers: Sequence[Answer]) -> Answer:
    """Return an answer that says nothing of its image, in the form of other answers.

    Args:
        answers: At least one answer of the endpoint. Its labels get equal scores; an embedding is
            the mean of all of them; a label alone is the one that is returned most often.
    """
    first = answers[0]
    if first.kind == "label":
        [(label, _)] = Counter(answer.labels[0] for answer in answers).most_common(1)
        return Answer((label,), (1.0,), "label")
    if first.kind == "embedding":
        mean = np.mean([answer.scores for answer in answers], axis=0)
        return replace(first, scores=tuple(mean.tolist()))
    share = 0.0 if first.kind == "logits" else 1 / len(first.labels)
    return replace(first, scores=(share,) * len(first.labels))


def of_mapping(adapter: Adapter | None, task: Task) -> list[Query]:
    """Return the training and validation images that ``pgn map`` would send to fit a label mapping.

    Args:
        adapter: Adapter that prepares the images; ``None`` sends them raw.
        task: Training and validation images.
    """
    return [
        Query("training", task.train.paths, adapter),
        Query("validation", task.val.paths, adapter),
    ]
