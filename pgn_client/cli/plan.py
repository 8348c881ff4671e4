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


def tell_plan(client: AdaptedClient, queries: Iterable[Query], args: argparse.Namespace) -> int:
    """Print how many images a command would send, the time and the cost, without sending them.

    The numbers of images are also printed for each part of the command's work.

    Recorded answers of the model last seen at the endpoint cost nothing. One request without an
    image, for the model's description, measures the round trip.

    Args:
        client: Client of the endpoint.
        queries: Groups of images that the command would send, each with the name of its part.
        args: Parsed options, with the prices.

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
    total = plan(images, already_answered, images * slowest, args)
    tell(json.dumps(total | {"parts": parts}))
    return OK


def plan(
    images: int, already_answered: int, seconds: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the numbers that ``--dry-run`` prints: images, answers on record, time and cost.

    Args:
        images: Number of images that would be sent.
        already_answered: Number of images whose answers are recorded.
        seconds: Lower bound of the duration, in seconds.
        args: Parsed options, with the prices. Without any, the cost is ``None``.
    """
    per_image = args.price_per_image
    per_hour = args.price_per_hour
    cost = images * (per_image or 0.0) + seconds / 3600 * (per_hour or 0.0)
    return {
        "images": images,
        "already_answered": already_answered,
        "seconds_at_least": round(seconds, 1),
        "cost": None if per_image is None and per_hour is None else round(cost, 6),
    }
