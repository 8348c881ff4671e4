"""Images that the study sends to an endpoint, and their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgn_client.imaging.codecs import ImageSource
from pgn_client.imaging.dataset import Task
from pgn_client.types import Adapter, Answer
from pgn_client.wire.client import AdaptedClient

Connect = Callable[[Adapter | None], AdaptedClient]
"""Opens a client of the endpoint for an adapter, or for raw images (``None``)."""


@dataclass(frozen=True)
class Query:
    """Images that would be sent, for a dry run to count.

    Attributes:
        part: Part of the evaluation that needs them, such as ``training``.
        images: Images in the order in which they would be sent.
        adapter: Adapter that prepares them; ``None`` where they are sent raw.
        ready: Whether the adapter exists already. An adapter that would be trained first has no
            recorded answers.
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

    def __call__(
        self, images: Sequence[ImageSource], adapter: Adapter | None = None
    ) -> list[Answer]:
        """Return the endpoint's answers in the order of the images.

        Args:
            images: Images to send.
            adapter: Adapter that prepares them; ``None`` sends them raw.
        """
        with self.connect(adapter) as client:
            # All copies of a client share their usage, so only the growth belongs to this call.
            before = client.usage.images
            answers = client.answers(images)
            self.images_sent += client.usage.images - before
        return answers


def of_mapping(adapter: Adapter | None, task: Task) -> list[Query]:
    """Return the images that ``pgn map`` would send to fit a mapping."""
    return [
        Query("training", task.train.paths, adapter),
        Query("validation", task.val.paths, adapter),
    ]
