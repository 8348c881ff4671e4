"""``pgn demo`` and ``pgn serve``: what runs the mock server."""

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
    """``pgn demo``."""
    p = command(
        commands,
        "demo",
        run_demo,
        "train, serve and compare on real handwritten digits",
        "pgn demo --out demo",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("demo_out"),
        metavar="DIR",
        help="where results go (demo_out)",
    )
    p.add_argument(
        "--images",
        "--pictures",
        dest="images",
        type=int,
        metavar="N",
        help="use N of the 1,797 digits (all)",
    )
    p.add_argument("--epochs", type=int, default=6, help="of the training (6)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="the report as JSON on stdout")


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
    talk("written: " + ", ".join(str(done.folder / name) for name in names))
    return OK


def add_serve(commands: Subparsers) -> None:
    """``pgn serve``: listed here, parsed by ``mock_server`` itself."""
    command(
        commands,
        "serve",
        lambda _: OK,
        "run the mock server (python -m mock_server)",
        "pgn serve --port 8000",
    )


def run_serve(arguments: Sequence[str]) -> int:
    """Become ``python -m mock_server ARGUMENTS``; the two packages share no code."""
    try:
        require("the mock server", "server", "fastapi", "uvicorn", "torch", "timm")
    except MissingDependencyError as error:
        return complain(error, USAGE)
    os.execv(sys.executable, [sys.executable, "-m", "mock_server", *arguments])
