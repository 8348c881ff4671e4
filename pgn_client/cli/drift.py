"""``pgn drift``: check whether the endpoint still returns the scores that a cache recorded."""

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
    """Add the subcommand ``pgn drift``, which checks whether a hosted model has changed."""
    example = "pgn drift --url http://127.0.0.1:8000 --cache answers.sqlite"
    help = (
        "send a few recorded images again and compare the scores; exit status 1 if the model "
        "has changed"
    )
    p = command(commands, "drift", run_drift, help, example)
    add_endpoint_options(p)
    p.add_argument(
        "--images",
        "--pictures",  # the old name of the option, which still works
        dest="images",
        type=int,
        default=8,
        metavar="K",
        help="number of images to send again, at most the 8 that a cache keeps (default 8)",
    )
    p.add_argument("--json", action="store_true", help="print the numbers as JSON on stdout")


def run_drift(args: argparse.Namespace) -> int:
    """Send recorded images again, print how the scores changed, and return the exit status."""
    if args.cache is None or not args.cache.is_file():
        raise ConfigurationError(
            f"--cache: got {args.cache}, expected a file that an earlier run recorded; make one "
            "with pgn predict --cache FILE"
        )
    with connect(args, None) as client:
        drift = client.drift(args.images)
        used = client.usage
    if not drift.pictures:
        raise ConfigurationError(
            f"--cache: got {args.cache}, which holds no image that was sent to this endpoint and "
            "model, expected at least one; send some with pgn predict --cache FILE"
        )

    if args.json:
        tell(to_json(asdict(drift) | {"drifted": drift.drifted}))
    else:
        tell(
            f"{drift.pictures} images sent again: {drift.changed:.0%} have another label; scores "
            f"differ by up to {drift.difference:.2g} from the recorded ones (between two answers "
            f"to the same image now: {drift.noise:.2g})"
        )
    talk(f"{used.images} images sent in {used.requests} requests")
    if drift.drifted:
        talk(
            "warning: the model has changed; record a new --cache, and fit the mapping again "
            "with pgn map"
        )
    return FAILED if drift.drifted else OK
