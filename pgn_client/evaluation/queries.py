"""What the study asks an endpoint, and how many images that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pgn_client.imaging.codecs import ImageSource
from pgn_client.imaging.dataset import Task
from pgn_client.types import Adapter, Answer
from pgn_client.wire.client import AdaptedClient

Connect = Callable[[Adapter | None], AdaptedClient]


@dataclass(frozen=True)
class Query:
    """Images that would be sent: what a dry run counts.

    Attributes:
        part: what they are for.
        images: in order.
        adapter: what they are sent through; ``None`` as they are.
        ready: whether the adapter is there already; one that would be trained first can have no
            recorded answers.
    """

    part: str
    images: Sequence[ImageSource]
    adapter: Adapter | None = None
    ready: bool = True


class Asker:
    """Asks the endpoint for its own answers, and counts what that takes."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.images_sent = 0

    def __call__(
        self, images: Sequence[ImageSource], adapter: Adapter | None = None
    ) -> list[Answer]:
        """Return the answers to images as they are, or as ``adapter`` makes them, in order."""
        with self.connect(adapter) as client:
            before = client.usage.images  # of all copies of a client
            answers = client.answers(images)
            self.images_sent += client.usage.images - before
        return answers


def of_mapping(adapter: Adapter | None, task: Task) -> list[Query]:
    """Return what ``pgn map`` would send to fit a mapping."""
    return [
        Query("training", task.train.paths, adapter),
        Query("validation", task.val.paths, adapter),
    ]
