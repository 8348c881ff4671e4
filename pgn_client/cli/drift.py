"""``pgn drift``: does the endpoint still answer as it did when a cache was recorded?"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pgn_client.cli.console import talk, tell
from pgn_client.cli.options import (
    FAILED,
    OK,
    Subparsers,
    add_endpoint_options,
    command,
    connect,
    to_json,
)
from pgn_client.errors import ConfigurationError


def add_drift(commands: Subparsers) -> None:
    """``pgn drift``."""
    example = "pgn drift --url http://127.0.0.1:8000 --cache answers.sqlite"
    help = (
        "send a few recorded images again and compare the answers; exit 1 where the model "
        "has changed"
    )
    p = command(commands, "drift", run_drift, help, example)
    add_endpoint_options(p)
    p.add_argument(
        "--images",
        "--pictures",
        dest="images",
        type=int,
        default=8,
        metavar="K",
        help="how many, of the 8 that a cache keeps (8)",
    )
    p.add_argument("--json", action="store_true", help="the numbers as JSON on stdout")


def run_drift(args: argparse.Namespace) -> int:
    """Send, compare, and say what to do."""
    if args.cache is None or not args.cache.is_file():
        raise ConfigurationError(
            f"--cache: got {args.cache}, expected the file that an earlier run has recorded"
        )
    with connect(args, None) as client:
        found = client.drift(args.images)
        used = client.usage
    if not found.pictures:
        raise ConfigurationError(
            f"{args.cache}: holds no image that was sent to this endpoint and model; record one "
            "with --cache"
        )
    told = (
        f"{found.pictures} images sent again: {found.changed:.0%} have another label; scores "
        "differ by up to "
        f"{found.difference:.2g} (between two answers of now: {found.noise:.2g})"
    )
    tell(to_json(asdict(found) | {"drifted": found.drifted}) if args.json else told)
    talk(f"{used.images} images sent in {used.requests} requests")
    if found.drifted:
        talk(
            "warning: the model has changed; record anew with another --cache, and fit the "
            "mapping again (pgn map)"
        )
    return FAILED if found.drifted else OK
