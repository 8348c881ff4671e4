"""What a run would send, take and cost: nothing is sent."""

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
    """What a run would take.

    Attributes:
        images: how many would be sent, or answered by the local head.
        already_answered: how many are in the journal or the cache.
        seconds: at least this long: the endpoint's own computing is not known before an image is
            sent.
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
    """Plan a run without sending an image.

    Args:
        client: asks the endpoint for its model card once, which carries no image and is timed.
        files: as for ``predict_files``.
        journal: Journal of an earlier run, if there is one.
        samples: images that are adapted and encoded here, to time the local work.
    """
    known = (
        {r["path"]: r["sha256"] for r in read_journal(Path(journal)) if r["label"]}
        if journal
        else {}
    )
    todo = [file for file in files if str(file) not in known or known[str(file)] != sha256_of(file)]
    each = seconds_each(client, todo[:samples])
    images = len(todo) - client.recorded(todo)
    return Estimate(images, len(files) - images, images * each)


def seconds_each(client: AdaptedClient, samples: Sequence[ImageSource]) -> float:
    """Return the seconds that each image takes at least: local work, a round trip, or the
    client's own limits.

    Args:
        client: asks the endpoint for its model card once, which carries no image and is timed.
        samples: images that are adapted and encoded here.
    """
    # the first one also pays for loading torch and the checkpoint: not a cost of each
    for image in samples[:1]:
        with contextlib.suppress(PGNError):
            client.adapt(image)
    started = time.perf_counter()
    with contextlib.suppress(NotRecordedError):  # a replay asks nobody
        client.info()
    round_trip = time.perf_counter() - started
    started, sizes = time.perf_counter(), [0]
    for image in samples:
        with contextlib.suppress(PGNError):
            sizes.append(len(PNG.encode(client.adapt(image))))
    local = (time.perf_counter() - started) / max(1, len(samples))
    pace = client.pace(sum(sizes) // max(1, len(sizes) - 1))
    return max(local, round_trip / client.max_concurrency, pace)
