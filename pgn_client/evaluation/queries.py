"""Send the images of an evaluation to an endpoint and count them, or list them for a dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgn_client.imaging.codecs import ImageSource
from pgn_client.imaging.dataset import Task
from pgn_client.types import Adapter, Answer
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

    Attributes:
        connect: Opens a client for an adapter.
        images_sent: Number of images sent so far; answers from a cache do not count.
    """

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.images_sent = 0
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
        """
        kept = {} if adapter is not None else self._kept
        asked = [image for image in images if not (isinstance(image, Path) and image in kept)]
        with self.connect(adapter) as client:
            # All copies of a client share their usage, so only the growth belongs to this call.
            before = client.usage.images
            answers = iter(client.answers(asked))
            self.images_sent += client.usage.images - before
        return [
            kept[image] if isinstance(image, Path) and image in kept else next(answers)
            for image in images
        ]


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
