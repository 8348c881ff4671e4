"""Local work on images before they are sent: open, adapt, encode.

Each image becomes a ``Job``, or an error of its own that does not stop the others.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.errors import CONCERN_ALL, ConfigurationError, PGNError
from pgn_client.imaging.codecs import PNG, ImageSource, describe, open_image, portions
from pgn_client.types import Adapter, Prepared
from pgn_client.wire.call_options import Weights
from pgn_client.wire.loaded_adapter import LoadedAdapter
from pgn_client.wire.protocols import Payload

T = TypeVar("T")


MAX_BATCH = 16
"""Largest number of images that are adapted (painted with prompts) in one batch."""


KEPT_PIXELS = 2**22
"""Largest number of pixels of an image that is kept decoded until it is sent, 12 MiB."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image after all local work (opened, adapted, encoded), ready to be sent.

    Attributes:
        name: Path of the image or a description of it, for messages.
        payload: Encoded image to send; empty if ``confident``.
        local: (C,) log-probabilities over the C task classes from the local head, the checkpoint's
            own small classifier; None without one.
        confident: Whether the local head answers alone, so that nothing is sent.
        again: Whether to send the image even if its answer is recorded, and to record nothing.
    """

    name: str
    payload: Payload
    local: Floats | None = None
    confident: bool = False
    again: bool = False


class Preparer:
    """Opens, adapts and encodes images; safe to use from several threads.

    Args:
        adapter: Checkpoint of the client.
        weights: Decides whether the local head answers alone.
        profile: The server's resize and crop, if it is known.
    """

    def __init__(self, adapter: LoadedAdapter, weights: Weights, profile: str | None) -> None:
        self._adapter = adapter
        self._weights = weights
        self._profile = profile

    def image(self, source: ImageSource) -> Image.Image:
        """Return one image as it would be sent, in RGB, or raise its error."""
        return raised(self._adapt([source])[0]).image

    def job(self, source: ImageSource, *, always: bool) -> Job:
        """Return one image ready to be sent, or raise its error; see ``jobs``."""
        return raised(self.jobs([source], always=always)[0])

    def _adapt(self, sources: Sequence[ImageSource]) -> list[Prepared | PGNError]:
        """Return each image as it would be sent, in RGB, or the error of that image.

        Raises:
            CheckpointError, ConfigurationError, MissingDependencyError: Every image would fail.
        """
        images = [caught(open_image, source) for source in sources]
        with self._adapter.lock:
            return prepare_each(self._adapter.open(self._profile), images)

    def jobs(self, sources: Sequence[ImageSource], *, always: bool) -> list[Job | PGNError]:
        """Return each image ready to be sent, or its error.

        Args:
            sources: Images.
            always: Whether the endpoint must answer even if the local head, the checkpoint's own
                small classifier, could answer alone.

        Raises:
            CheckpointError, ConfigurationError, MissingDependencyError: Every image would fail.
        """
        jobs: list[Job | PGNError] = []
        # Whole photos take much memory, so only a few large ones are held at the same time.
        for portion in portions(sources, images=MAX_BATCH):
            for source, item in zip(portion, self._adapt(portion), strict=True):
                if isinstance(item, Prepared):
                    jobs.append(self._job(source, item, always=always))
                else:
                    jobs.append(item)
        return jobs

    def _job(self, source: ImageSource, item: Prepared, *, always: bool) -> Job:
        name = describe(source)
        local = item.local_log_probs
        if not always and self._weights.answers_alone(self._adapter.card, local):
            return Job(name, Payload(b"", ""), local, confident=True)

        pixels = item.image.width * item.image.height
        payload = Payload(
            PNG.encode(item.image),
            PNG.media_type,
            pixels,
            # A whole photo takes 200 MB, and several wait to be sent; it is decoded again at need.
            item.image if pixels <= KEPT_PIXELS else None,
            item.hosted,
            None if self._adapter.paints else source,
        )
        return Job(name, payload, local)


def verbatim(data: bytes) -> Job:
    """Return the job that sends the content of a PNG file unchanged and records nothing.

    Raises:
        ImageError: The content is no image.
    """
    image = open_image(data)
    pixels = image.width * image.height
    payload = Payload(data, PNG.media_type, pixels, image, verbatim=True)
    return Job(describe(data), payload, again=True)


def caught(call: Callable[[Any], T], argument: Any) -> T | PGNError:
    """Return the result of a call, or the ``PGNError`` that it raises."""
    try:
        return call(argument)
    except PGNError as error:
        return error


def raised(value: T | PGNError) -> T:
    """Return a value, or raise it if it is an error: the inverse of ``caught``."""
    if isinstance(value, PGNError):
        raise value
    return value


def asks(job: Job | PGNError) -> bool:
    """Whether a job needs the endpoint's answer, new or recorded; False for an error."""
    return isinstance(job, Job) and not job.confident


def chunks(sources: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    """Yield lists of up to ``size`` images.

    Raises:
        ConfigurationError: ``sources`` is a single path or file, whose letters are no images.
    """
    if isinstance(sources, str | bytes | os.PathLike | Image.Image):
        raise ConfigurationError(
            f"images: got {describe(sources)}, expected several, for example a list of paths"
        )
    rest = iter(sources)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


async def chunks_async(
    sources: Iterable[ImageSource] | AsyncIterable[ImageSource], size: int
) -> AsyncIterator[list[ImageSource]]:
    """Yield lists of up to ``size`` images.

    Unlike in ``chunks``, ``sources`` may be an asynchronous iterable.
    """
    if not isinstance(sources, AsyncIterable):
        for chunk in chunks(sources, size):
            yield chunk
        return

    chunk = []
    async for source in sources:
        chunk.append(source)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def prepare_each(
    adapter: Adapter | None, images: Sequence[Image.Image | PGNError]
) -> list[Prepared | PGNError]:
    """Adapt images in one batch; an image that fails does not affect the others.

    Args:
        adapter: Adapter to apply; None leaves the images unchanged.
        images: RGB images; an error stands for an image that failed before.

    Returns:
        One prepared image or error per image, in order.

    Raises:
        CheckpointError, ConfigurationError, MissingDependencyError: Every image would fail.
    """
    if adapter is None:
        return [image if isinstance(image, PGNError) else Prepared(image) for image in images]

    readable = [image for image in images if not isinstance(image, PGNError)]
    try:
        # An adapter may be a user's class, which need not accept an empty batch.
        prepared: Iterator[Prepared | PGNError] = iter(
            adapter.prepare(readable) if readable else []
        )
    except CONCERN_ALL:
        raise
    except PGNError:
        # One bad image fails the whole batch, so each image is tried on its own.
        prepared = iter(
            [caught(lambda image: adapter.prepare([image])[0], image) for image in readable]
        )
    return [image if isinstance(image, PGNError) else next(prepared) for image in images]
