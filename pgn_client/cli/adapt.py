"""``pgn adapt``: write a folder of prompted images, without any endpoint."""

from __future__ import annotations

import argparse
import json

from pgn_client.cli.console import Failures, talk, tell
from pgn_client.cli.data import add_failure_rate, add_sources, talk_status, talk_summary
from pgn_client.cli.options import (
    Subparsers,
    add_endpoint_file,
    add_profile_option,
    command,
    load_adapter,
    profile_of,
)


def add_adapt(commands: Subparsers) -> None:
    """Add the subcommand ``pgn adapt``, which writes prompted images as files."""
    example = "pgn adapt photos/ adapted/ --ckpt digits.safetensors"
    p = command(
        commands,
        "adapt",
        run_adapt,
        "write the images that would be sent, as PNG files; sends nothing",
        example,
    )
    add_sources(p)
    p.add_argument(
        "target", metavar="OUT", help="folder for the adapted images, in the same folder tree"
    )
    p.add_argument(
        "--ckpt", required=True, metavar="CKPT", help="checkpoint that adapts the images"
    )
    add_profile_option(p)
    add_endpoint_file(p)
    add_failure_rate(p, "the exit status is 1")
    p.add_argument("--json", action="store_true", help="print one JSON line per image on stdout")


def run_adapt(args: argparse.Namespace) -> int:
    """Write adapted images, keep those that exist already, and return the exit status."""
    from pgn_client.imaging.reader import scan
    from pgn_client.wire.folders import adapt_files

    adapter = load_adapter(args.ckpt, profile_of(args))
    found = scan(args.source)
    failures = Failures()
    skipped = 0
    for result in adapt_files(adapter, args.source, args.target, files=found.files):
        skipped += result.skipped
        error = None if result.error is None else str(result.error)
        if result.error is None:
            failures.succeeded += 1
        else:
            failures.add(str(result.source), result.error)
        if args.json:
            line = {"path": str(result.source), "adapted": str(result.target), "error": error}
            tell(json.dumps(line))
        elif error is None:
            tell(str(result.target))
    failures.sum_up()
    talk(
        f"{failures.succeeded} adapted ({skipped} of them by an earlier run), "
        f"{failures.count} failed"
    )
    status = talk_status(failures, len(found.files), args.max_failure_rate)
    talk_summary(found, failures)
    return status
