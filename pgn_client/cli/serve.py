"""``pgn demo`` and ``pgn serve``: commands that run the mock server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pgn_client.cli.console import complain, talk, tell
from pgn_client.cli.options import OK, USAGE, Subparsers, command, make_folder, require, to_json
from pgn_client.errors import MissingDependencyError


def add_demo(commands: Subparsers) -> None:
    """Add ``pgn demo``."""
    p = command(
        commands,
        "demo",
        run_demo,
        "train, serve and compare prompts on real handwritten digits",
        "pgn demo --out demo",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("demo_out"),
        metavar="DIR",
        help="folder for the results (default demo_out)",
    )
    p.add_argument(
        "--images",
        "--pictures",
        dest="images",
        type=int,
        metavar="N",
        help="number of digits to use, at most 1,797 (default all)",
    )
    p.add_argument("--epochs", type=int, default=6, help="epochs of the training (default 6)")
    p.add_argument("--seed", type=int, default=0, help="seed for all random choices (default 0)")
    p.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    require("the demo", "all", "torch", "timm", "fastapi", "sklearn")
    from pgn_client.evaluation import demo, report

    make_folder(args.out)
    done = demo.run(
        args.out,
        images=args.images,
        epochs=args.epochs,
        seed=args.seed,
        note=talk,
        progress=True,
    )
    tell(to_json(done.report.to_json()) if args.json else report.table(done.report))
    names = ("report.html", "report.json", "before_after.png", "pgn.safetensors")
    talk("saved: " + ", ".join(str(done.folder / name) for name in names))
    return OK


def add_serve(commands: Subparsers) -> None:
    """Add ``pgn serve`` to the list of commands; ``mock_server`` parses its arguments itself."""
    command(
        commands,
        "serve",
        lambda _: OK,
        "run the mock server (python -m mock_server)",
        "pgn serve --port 8000",
    )


def run_serve(arguments: Sequence[str]) -> int:
    """Replace this process by ``python -m mock_server``; the two packages share no code.

    Args:
        arguments: Arguments of the mock server.

    Returns:
        Exit status, if the server cannot run.
    """
    try:
        require("the mock server", "server", "fastapi", "uvicorn", "torch", "timm")
    except MissingDependencyError as error:
        return complain(error, USAGE)
    os.execv(sys.executable, [sys.executable, "-m", "mock_server", *arguments])
