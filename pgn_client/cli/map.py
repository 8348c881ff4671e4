"""``pgn map``: fit a label mapping to the endpoint's scores, for a checkpoint or for raw images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pgn_client.cli.console import talk, tell
from pgn_client.cli.data import add_data, add_failure_rate, look_at, open_data
from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_checkpoint_out,
    add_endpoint_options,
    add_mapping_option,
    add_profile_option,
    command,
    connect,
    load_adapter,
    profile_of,
    require,
    to_json,
)
from pgn_client.cli.plan import add_dry_run, tell_plan
from pgn_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pgn_client.types import Adapter, Answer


def add_map(commands: Subparsers) -> None:
    """Add the subcommand ``pgn map``, which fits a label mapping to the endpoint's scores."""
    example = (
        "pgn map digits/ --url http://127.0.0.1:8000 --ckpt eurosat.safetensors --out "
        "digits.safetensors"
    )
    help = (
        "fit a label mapping to the endpoint's scores, for a checkpoint (an imported one, or other "
        "classes) or for raw images"
    )
    p = command(commands, "map", run_map, help, example)
    add_data(p)
    add_endpoint_options(p)
    p.add_argument(
        "--ckpt",
        metavar="CKPT",
        help="checkpoint whose prompts are sent (default none: images are sent raw)",
    )
    add_profile_option(p)
    add_checkpoint_out(p)
    add_mapping_option(p)
    p.add_argument(
        "--shots",
        type=int,
        metavar="N",
        help="largest number of training images per class (default all)",
    )
    p.add_argument(
        "--none-of-these",
        type=float,
        metavar="SHARE",
        help='reject an image as "none of these" if its top probability is as low as those of the '
        "lowest SHARE of the validation images; a fraction such as 0.05 (default never)",
    )
    p.add_argument(
        "--seed",
        type=int,
        help="seed for the splits and folds (default the checkpoint's, or 0 without one)",
    )
    add_failure_rate(p, "nothing is sent")
    add_dry_run(p)
    p.add_argument(
        "--json", action="store_true", help="print the checkpoint's metadata as JSON on stdout"
    )


def run_map(args: argparse.Namespace) -> int:
    """Fit a label mapping, from the endpoint's scores to the task's classes, and save it.

    Print the card (the checkpoint's metadata), and return the exit status.
    """
    require("fitting a mapping", "train", "torch", "timm", "scipy")
    from pgn_client.checkpoint import summary
    from pgn_client.evaluation.queries import Asker, of_mapping
    from pgn_client.mapping import label_mapping as labels
    from pgn_client.training import load_task
    from pgn_client.training.fit_mapping import fit_raw, refit
    from pgn_client.wire.protocols.options import meaning

    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ConfigurationError(f"--out: got {args.out}, expected a file in a folder that exists")
    if args.mapping not in ("auto", *labels.KINDS):
        raise ConfigurationError(
            f"--mapping: got {args.mapping!r}, expected auto or one of {', '.join(labels.KINDS)}"
        )
    if args.profile and not args.ckpt:
        raise ConfigurationError(
            "--profile: got it without --ckpt, expected both; raw images need no profile, so leave "
            "it out"
        )
    if args.none_of_these is not None and not 0 <= args.none_of_these < 1:
        raise ConfigurationError(
            f"--none-of-these: got {args.none_of_these}, expected a share of at least 0 and less "
            "than 1"
        )

    prompts = load_adapter(args.ckpt, profile_of(args)) if args.ckpt else None
    seed = args.seed
    if seed is None:
        # The card of an imported checkpoint has no seed.
        seed = (prompts.card.seed or 0) if prompts else 0
    unfinished = None
    if not (args.cache or args.replay):
        # A run that ends early, for example because its budget is spent, has paid for its answers.
        unfinished = args.out.with_name(f"{args.out.name}.answers.sqlite")
        args.cache = unfinished
    kinds = labels.AUTO if args.mapping == "auto" else (args.mapping,)
    options = {"kinds": kinds, "none_below": args.none_of_these}
    with connect(args, None) as client:
        # A prompt scales an image down, so the endpoint's limit concerns raw images alone.
        limit = None if prompts else client.endpoint.limits.pixels
        data = open_data(args.data, args.max_failure_rate, max_pixels=limit)
        task = load_task(data, shots=args.shots, seed=seed)
        found = look_at(data, seed=seed)
        if args.dry_run:
            status = tell_plan(client, of_mapping(prompts, task), args)
            talk(found.summary())
            return status
        allowed = int(args.max_failure_rate * (len(task.train) + len(task.val)))
        asker = Asker(lambda adapter: client.with_options(pgn_ckpt=adapter), allowed)
        kinds_seen: set[str] = set()

        def ask(images: Sequence[Any], adapter: Adapter | None = None) -> list[Answer]:
            answers = asker(images, adapter)
            kinds_seen.update(answer.kind for answer in answers)
            return answers

        adapter = refit(prompts, task, ask, **options) if prompts else fit_raw(task, ask, **options)
        seen = kinds_seen.pop() if len(kinds_seen) == 1 else None
        adapter = adapter.with_card(replace(adapter.card, scores=meaning(client.endpoint) or seen))

    adapter.save(args.out)
    if unfinished:
        for name in ("", "-wal", "-shm", ".ledger.sqlite"):
            unfinished.with_name(unfinished.name + name).unlink(missing_ok=True)
    tell(to_json(adapter.info) if args.json else summary(adapter.card))
    if asker.failures:
        talk(f"warning: {asker.remark()}")
    talk(f"{asker.images_sent} images sent; saved: {args.out}")
    talk(found.summary())
    return OK
