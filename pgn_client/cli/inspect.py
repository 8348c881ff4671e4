"""``pgn inspect``: verify a checkpoint and print its card, the checkpoint's metadata."""

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
    """Add the subcommand ``pgn inspect``, which prints a checkpoint's metadata."""
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
    """Verify a checkpoint without torch, print its card (its metadata); return the exit status."""
    from pgn_client.checkpoint import read, summary

    card, _ = read(args.ckpt)
    tell(to_json(card) if args.json else summary(card))
    return OK
