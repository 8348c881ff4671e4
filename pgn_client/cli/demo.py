"""``pgn demo``: train, serve and compare on scikit-learn's digits."""

from __future__ import annotations

import argparse
from pathlib import Path

from pgn_client.cli.console import talk, tell
from pgn_client.cli.options import OK, Subparsers, command, make_folder, require, to_json


def add_demo(commands: Subparsers) -> None:
    """Add the subcommand ``pgn demo``, which trains and compares prompts on handwritten digits."""
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
        "--pictures",  # the old name of the option, which still works
        dest="images",
        type=int,
        metavar="N",
        help="number of handwritten-digit images to use, at most 1,797 (default all)",
    )
    # The number is evaluation.demo.EPOCHS, repeated here because importing that loads torch.
    p.add_argument("--epochs", type=int, default=6, help="epochs of the training (default 6)")
    p.add_argument("--seed", type=int, default=0, help="seed for all random choices (default 0)")
    p.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo, print its table of results, and return the exit status."""
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
