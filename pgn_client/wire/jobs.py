"""Prepares images in chunks for sending; each image becomes a ``Job`` or an error of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.errors import (
    AuthenticationError,
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    PGNError,
)
from pgn_client.imaging.codecs import ImageSource
from pgn_client.types import Adapter, ImageFailure, Prepared
from pgn_client.wire.protocols import Payload

T = TypeVar("T")


MAX_BATCH = 16
"""Largest number of images that are adapted (painted with prompts) in one batch."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image after all local work (opened, adapted, encoded), ready to be sent.

    Attributes:
        payload: Encoded image to send; empty if ``confident``.
        local: (C,) log-probabilities over the C task classes from the local head, the checkpoint's
            own small classifier; None without one.
        confident: Whether the local head answers alone, so that nothing is sent.
        again: Whether to send the image even if its answer is recorded, and to record nothing.
    """

    payload: Payload
    local: Floats | None = None
    confident: bool = False
    again: bool = False


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
    """Yield lists of up to ``size`` images, and an empty list at the end."""
    rest = iter(sources)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk
    # Lets the streams use one loop body both for the images and for the results that remain.
    yield []


async def chunks_async(
    sources: Iterable[ImageSource] | AsyncIterable[ImageSource], size: int
) -> AsyncIterator[list[ImageSource]]:
    """Yield lists of up to ``size`` images, and an empty list at the end.

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
    yield []


def ends_all(result: object) -> PGNError | None:
    """Return the error of a failed image if it would stop every other image too, else None.

    Such errors are a rejected key, a wrong checkpoint or configuration, and a missing package.
    """
    fatal = (AuthenticationError, CheckpointError, ConfigurationError, MissingDependencyError)
    if isinstance(result, ImageFailure) and isinstance(result.error, fatal):
        return result.error
    return None


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
    except (CheckpointError, ConfigurationError, MissingDependencyError):
        raise
    except PGNError:
        # One bad image fails the whole batch, so each image is tried on its own.
        prepared = iter(
            [caught(lambda image: adapter.prepare([image])[0], image) for image in readable]
        )
    return [image if isinstance(image, PGNError) else next(prepared) for image in images]
