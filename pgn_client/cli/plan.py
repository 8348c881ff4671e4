"""``--dry-run``: how many images a command would send, for how long, at what price; nothing is sent
or trained.
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
    """Add ``--dry-run``."""
    help = (
        "send no image and train nothing; say how many images it would take, how long, at "
        "what price"
    )
    parser.add_argument("--dry-run", action="store_true", help=help)


def tell_plan(client: AdaptedClient, queries: Iterable[Query], price: float | None) -> int:
    """Print what queries would take, by part; what the cache holds of the model that was last seen
    costs nothing.

    The endpoint is asked once for its model's description, which carries no image, to time a round
    trip.
    """
    from pgn_client.wire.estimate import seconds_each

    parts: dict[str, dict[str, int]] = {}
    slowest = 0.0
    for query in queries:
        part = parts.setdefault(query.part, {"images": 0, "already_answered": 0})
        asking = client.with_options(pgn_ckpt=query.adapter)
        known = asking.recorded(query.images) if query.ready else 0
        part["images"] += len(query.images) - known
        part["already_answered"] += known
        slowest = slowest or seconds_each(asking, query.images[:4])
    images, known = (
        sum(part[key] for part in parts.values()) for key in ("images", "already_answered")
    )
    tell(json.dumps(plan(images, known, images * slowest, price) | {"parts": parts}))
    return OK


def plan(images: int, already_answered: int, seconds: float, price: float | None) -> dict[str, Any]:
    """Return what every dry run tells."""
    return {
        "images": images,
        "already_answered": already_answered,
        "seconds_at_least": round(seconds, 1),
        "cost": None if price is None else round(images * price, 6),
    }
