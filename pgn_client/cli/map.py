"""``pgn map``: a checkpoint's label mapping, fitted to what an endpoint answers."""

from __future__ import annotations

import argparse
from pathlib import Path

from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_endpoint_options,
    add_profile_option,
    command,
    connect,
    load_adapter,
    require,
    to_json,
)
from pgn_client.cli.plan import add_dry_run, tell_plan
from pgn_client.console import talk, tell
from pgn_client.errors import ConfigurationError


def add_map(commands: Subparsers) -> None:
    """``pgn map``."""
    example = "pgn map digits/ --url http://127.0.0.1:8000 --ckpt eurosat.safetensors --out digits.safetensors"
    help = "fit a checkpoint's label mapping to the endpoint's own answers; for imports, other classes, new endpoints"
    p = command(commands, "map", run_map, help, example)
    p.add_argument("data", metavar="DATA", help="folder with train/, val/, test/, or one folder per class")
    add_endpoint_options(p)
    p.add_argument("--ckpt", required=True, metavar="CKPT", help="whose prompts are sent")
    add_profile_option(p)
    p.add_argument("--out", type=Path, required=True, metavar="CKPT", help="checkpoint to write, NAME.safetensors")
    p.add_argument("--mapping", default="auto", help="auto, identity, flm, ilm, blm, blm+ or linear (auto)")
    p.add_argument("--shots", type=int, metavar="N", help="at most N training pictures per class (all)")
    p.add_argument("--seed", type=int, help="of the splits and folds (the checkpoint's)")
    add_dry_run(p)
    p.add_argument("--json", action="store_true", help="the whole card as JSON on stdout")


def run_map(args: argparse.Namespace) -> int:
    """Fit, save, and print the card."""
    require("fitting a mapping", "train", "torch", "timm", "scipy")
    from pgn_client import labels
    from pgn_client.candidates import Asker
    from pgn_client.checkpoint import summary
    from pgn_client.refit import queries, refit
    from pgn_client.training import load_task

    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ConfigurationError(f"--out: got {args.out}, expected a file in a folder that exists")
    if args.mapping not in ("auto", *labels.KINDS):
        raise ConfigurationError(f"--mapping: got {args.mapping!r}, expected auto or one of {', '.join(labels.KINDS)}")
    kinds = labels.AUTO if args.mapping == "auto" else (args.mapping,)
    prompts = load_adapter(args.ckpt, args.profile)
    seed = prompts.info.get("seed", 0) if args.seed is None else args.seed
    task = load_task(args.data, shots=args.shots, seed=seed)
    with connect(args, None) as client:
        if args.dry_run:
            return tell_plan(client, queries(prompts, task), args.price_per_image)
        asker = Asker(lambda adapter: client.with_options(pgn_ckpt=adapter))
        adapter = refit(prompts, task, asker, kinds=kinds)
    adapter.save(args.out)
    tell(to_json(adapter.info) if args.json else summary(adapter.info))
    talk(f"{asker.images_sent} images sent; written: {args.out}")
    return OK
