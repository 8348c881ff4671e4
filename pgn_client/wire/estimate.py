"""Estimates how many images a run would send and how long it would take, without sending one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pgn_client.errors import NotRecordedError, PGNError
from pgn_client.imaging.codecs import PNG, ImageSource
from pgn_client.imaging.files import PathLike
from pgn_client.wire.client import AdaptedClient
from pgn_client.wire.journal import read_journal, sha256_of


class Estimate(NamedTuple):
    """Expected size and duration of a run that classifies many images.

    Attributes:
        images: Number of images that the endpoint, or the checkpoint's local classifier, would
            classify.
        already_answered: Number of images with an answer in the journal, the file of an earlier
            run's predictions, or in the cache.
        seconds: Lower limit of the duration; the endpoint's own computing time is unknown.
    """

    images: int
    already_answered: int
    seconds: float


def estimate(
    client: AdaptedClient,
    files: Sequence[Path],
    journal: PathLike | None = None,
    *,
    samples: int = 4,
) -> Estimate:
    """Estimate the images and the time of a run of ``predict_files``, without sending an image.

    Args:
        client: Client for the run. It requests the model's description once, which is timed and
            carries no image.
        files: Image files, as for ``predict_files``.
        journal: Path of the journal, the predictions of an earlier run; None without one.
        samples: Number of images to adapt and encode, to time the local work.
    """
    answered: dict[str, str] = {}
    if journal:
        for record in read_journal(Path(journal)):
            # A failed image has no label, and the run sends it again.
            if record["label"] is not None:
                answered[record["path"]] = record["sha256"]
    todo = [
        file
        for file in files
        if str(file) not in answered or answered[str(file)] != sha256_of(file)
    ]

    per_image = seconds_each(client, todo[:samples])
    images = len(todo) - client.recorded(todo)
    return Estimate(images, len(files) - images, images * per_image)


def seconds_each(client: AdaptedClient, samples: Sequence[ImageSource]) -> float:
    """Return the least number of seconds that a run needs per image.

    It is the largest of three times: the local work on an image, the round trip to the endpoint
    divided by the number of simultaneous requests, and the pause that the client's own rate limits
    require.

    Args:
        client: Client for the run. It requests the model's description once, which is timed and
            carries no image.
        samples: Images to adapt and encode.
    """
    # The first image also loads torch and the checkpoint, which later images do not.
    for image in samples[:1]:
        with contextlib.suppress(PGNError):
            client.adapt(image)

    # Only the duration of this request matters, not its result.
    started = time.perf_counter()
    # A replay may have no recorded description, and it has no round trip either.
    with contextlib.suppress(NotRecordedError):
        client.info()
    round_trip = time.perf_counter() - started

    sizes: list[int] = []
    started = time.perf_counter()
    for image in samples:
        # A run reports an unreadable image and goes on; so does the estimate.
        with contextlib.suppress(PGNError):
            sizes.append(len(PNG.encode(client.adapt(image))))
    local = (time.perf_counter() - started) / max(1, len(samples))

    mean_size = sum(sizes) // max(1, len(sizes))
    pace = client.pace(mean_size)
    # The client adapts images one chunk at a time, so concurrency shortens the round trip alone.
    return max(local, round_trip / client.max_concurrency, pace)
