"""``pgn inspect``: verify a checkpoint and print its card."""

from __future__ import annotations

import argparse

from pgn_client.cli.console import tell
from pgn_client.cli.options import (
    OK,
    Subparsers,
    command,
    to_json,
)


def add_inspect(commands: Subparsers) -> None:
    """Add ``pgn inspect``."""
    p = command(
        commands,
        "inspect",
        run_inspect,
        "print a checkpoint's card",
        "pgn inspect digits.safetensors",
    )
    p.add_argument("ckpt", metavar="CKPT", help="checkpoint, NAME.safetensors")
    p.add_argument("--json", action="store_true", help="print the whole card as JSON on stdout")


def run_inspect(args: argparse.Namespace) -> int:
    """Verify a checkpoint and print its card; this does not need torch."""
    from pgn_client.checkpoint import read, summary

    card, _ = read(args.ckpt)
    tell(to_json(card) if args.json else summary(card))
    return OK
