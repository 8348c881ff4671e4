"""``--dry-run``: print the number of images that a command would send, the time, and the price.

A dry run sends no image and trains nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pgn_client.cli.console import tell
from pgn_client.cli.options import OK

if TYPE_CHECKING:
    from pgn_client.evaluation.queries import Query
    from pgn_client.wire.client import AdaptedClient


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add ``--dry-run``, which prints what a command would send and cost, and sends no image."""
    help = (
        "send no image and train nothing; print the number of images that would be sent, the time "
        "and the price"
    )
    parser.add_argument("--dry-run", action="store_true", help=help)


def tell_plan(client: AdaptedClient, queries: Iterable[Query], price: float | None) -> int:
    """Print how many images a command would send, the time and the cost, without sending them.

    The numbers of images are also printed for each part of the command's work.

    Recorded answers of the model last seen at the endpoint cost nothing. One request without an
    image, for the model's description, measures the round trip.

    Args:
        client: Client of the endpoint.
        queries: Groups of images that the command would send, each with the name of its part.
        price: Price of one image; ``None`` if it is unknown.

    Returns:
        Exit status.
    """
    from pgn_client.wire.estimate import seconds_each

    parts: dict[str, dict[str, int]] = {}
    slowest = 0.0
    for query in queries:
        part = parts.setdefault(query.part, {"images": 0, "already_answered": 0})
        adapted = client.with_options(pgn_ckpt=query.adapter)
        recorded = adapted.recorded(query.images) if query.ready else 0
        part["images"] += len(query.images) - recorded
        part["already_answered"] += recorded
        # Only the first part is timed, with a few images: a lower bound is enough, and another part
        # would take the time for its local work again.
        slowest = slowest or seconds_each(adapted, query.images[:4])

    images = sum(part["images"] for part in parts.values())
    already_answered = sum(part["already_answered"] for part in parts.values())
    total = plan(images, already_answered, images * slowest, price)
    tell(json.dumps(total | {"parts": parts}))
    return OK


def plan(images: int, already_answered: int, seconds: float, price: float | None) -> dict[str, Any]:
    """Return the numbers that ``--dry-run`` prints: images, answers on record, time and cost.

    Args:
        images: Number of images that would be sent.
        already_answered: Number of images whose answers are recorded.
        seconds: Lower bound of the duration, in seconds.
        price: Price of one image; ``None`` if it is unknown.
    """
    return {
        "images": images,
        "already_answered": already_answered,
        "seconds_at_least": round(seconds, 1),
        "cost": None if price is None else round(images * price, 6),
    }
