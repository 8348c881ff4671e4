"""Images on their way: prepared, in chunks, each a job for the endpoint or an error of its own."""

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


MAX_BATCH = 16  # images adapted together


@dataclass(frozen=True, slots=True)
class Job:
    """One image after all local work: what to send, unless the local head is ``confident``.

    With ``again`` it is sent although its answer is recorded, and nothing new is recorded.
    """

    payload: Payload
    local: Floats | None = None
    confident: bool = False
    again: bool = False


def caught(call: Callable[[Any], T], argument: Any) -> T | PGNError:
    """Return what a call returns, or the error of this library that it raises."""
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
    """Whether the endpoint, or what is recorded of it, has to be asked."""
    return isinstance(job, Job) and not job.confident


def chunks(sources: Iterable[ImageSource], size: int) -> Iterator[list[ImageSource]]:
    """Yield lists of ``size`` images, and an empty one at the end."""
    rest = iter(sources)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk
    yield []


async def chunks_async(
    sources: Iterable[ImageSource] | AsyncIterable[ImageSource], size: int
) -> AsyncIterator[list[ImageSource]]:
    """Yield what ``chunks`` does, also of an asynchronous source."""
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
    """Return the error of an image's result that concerns every other image too: a refused key,
    a wrong set-up.
    """
    wrong = (AuthenticationError, CheckpointError, ConfigurationError, MissingDependencyError)
    return (
        result.error
        if isinstance(result, ImageFailure) and isinstance(result.error, wrong)
        else None
    )


def prepare_each(
    adapter: Adapter | None, images: Sequence[Image.Image | PGNError]
) -> list[Prepared | PGNError]:
    """Adapt images together; one that fails, now or before, leaves the others alone.

    Raises:
        CheckpointError, ConfigurationError, MissingDependencyError: what concerns every image.
    """
    if adapter is None:
        return [image if isinstance(image, PGNError) else Prepared(image) for image in images]
    good = [image for image in images if not isinstance(image, PGNError)]
    try:
        ready: Iterator[Prepared | PGNError] = iter(adapter.prepare(good) if good else [])
    except (CheckpointError, ConfigurationError, MissingDependencyError):
        raise
    except PGNError:
        ready = iter([caught(lambda image: adapter.prepare([image])[0], image) for image in good])
    return [image if isinstance(image, PGNError) else next(ready) for image in images]
