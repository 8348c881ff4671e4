"""``pgn evaluate``: compare a checkpoint with its baselines over HTTP."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import talk, tell
from pgn_client.cli.data import add_data, add_failure_rate, look_at, open_data
from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_endpoint_options,
    add_profile_option,
    add_surrogate_options,
    command,
    connect,
    load_adapter,
    load_surrogate,
    make_folder,
    profile_of,
    require,
    to_json,
)
from pgn_client.cli.plan import add_dry_run, tell_plan
from pgn_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.surrogate.backbone import Backbone
    from pgn_client.training import Task


def add_evaluate(commands: Subparsers) -> None:
    """Add the subcommand ``pgn evaluate``, which compares a checkpoint with its baselines."""
    example = (
        "pgn evaluate digits/ --url http://127.0.0.1:8000 --ckpt digits.safetensors --out results/"
    )
    p = command(
        commands,
        "evaluate",
        run_evaluate,
        "compare a prompt with its baselines on the test images",
        example,
    )
    add_data(p)
    add_endpoint_options(p)
    p.add_argument("--ckpt", required=True, metavar="CKPT", help="checkpoint to evaluate")
    add_profile_option(p)
    p.add_argument(
        "--rival",
        metavar="CKPT",
        help="checkpoint of an input-independent prompt to compare with (default one that is "
        "trained here with the recipe of --ckpt)",
    )
    add_surrogate_options(p, None)
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for report.html, report.json, steps.png, the recorded answers and the trained "
        "rival (default none)",
    )
    p.add_argument(
        "--anyway",
        action="store_true",
        help="go on although the endpoint hosts another model than the one that the checkpoint was "
        "trained for",
    )
    add_failure_rate(p, "nothing is sent")
    add_dry_run(p)
    p.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run_evaluate(args: argparse.Namespace) -> int:
    """Compare a prompt with its baselines, print the table, and return the exit status."""
    require("evaluation", "train", "torch", "timm", "jinja2", "scipy")
    from pgn_client.evaluation import report
    from pgn_client.evaluation.fidelity import columns
    from pgn_client.evaluation.study import evaluate, queries
    from pgn_client.training import load_task
    from pgn_client.training.rival import task_of

    if args.out:
        if not args.dry_run:
            make_folder(args.out)
        # Recorded by default, so that a second run into the same folder pays for nothing again.
        args.cache = args.cache or args.out / "answers.sqlite"
    adapter = load_adapter(args.ckpt, profile_of(args))
    data = open_data(args.data, args.max_failure_rate)
    task, same = task_of(adapter, data)
    found = look_at(data, seed=task.seed, without_copies=True)
    # Copies of any training image, whether or not --shots of the checkpoint has drawn it.
    task = replace(task, test=load_task(data, seed=task.seed).without_copies().test)
    surrogate = _matching_surrogate(args, adapter)
    rival, untrained = _rival(args, adapter, task, surrogate, keep=same)

    with connect(args, None) as client:
        if args.dry_run:
            planned = queries(task, adapter, rival=rival, rival_to_train=untrained)
            status = tell_plan(client, planned, args)
            talk(found.summary())
            return status
        result = evaluate(
            task,
            # Copies of one client, because these share its budget, cache and usage.
            lambda prompt: client.with_options(pgn_ckpt=prompt),
            adapter,
            same_data=same,
            rival=rival,
            surrogate=surrogate,
            price_per_image=args.price_per_image,
            anyway=args.anyway,
            max_failure_rate=args.max_failure_rate,
            note=talk,
        )

    result.data = found.to_json()
    # The files are written before anything is printed, so that a failing terminal cannot lose a
    # report that was paid for. It is printed even if a file cannot be written.
    try:
        if args.out:
            # The numbers first: for the other files, test images are opened once more.
            report.write_json(args.out, result)
            report.write(args.out, result, columns(adapter, task.test.paths))
    finally:
        tell(to_json(result.to_json()) if args.json else report.table(result))
    if args.out:
        talk(
            f"saved: {args.out / 'report.html'}, report.json, and steps.png, with what the server "
            "sees at each step"
        )
    talk(found.summary())
    return OK


def _matching_surrogate(args: argparse.Namespace, adapter: PromptAdapter) -> Backbone | None:
    """Load the surrogate, the local model that the checkpoint was trained through.

    Returns:
        The surrogate; ``None``, with a message, if it is not available.

    Raises:
        ConfigurationError: ``--backbone`` or ``--weights`` name a surrogate that cannot be used.
    """
    from pgn_client.training.rival import same_surrogate

    if adapter.mapping.open and not (args.backbone or args.weights):
        talk("no surrogate: the checkpoint's mapping reads labels that only the endpoint has")
        return None
    try:
        surrogate = load_surrogate(args, args.backbone or adapter.backbone.name)
    except ConfigurationError as error:
        # Who names a surrogate expects the rows that need it; otherwise they are left out.
        if args.backbone or args.weights:
            raise
        talk(f"no surrogate: {error}")
        return None
    return same_surrogate(surrogate, adapter)


def _rival(
    args: argparse.Namespace,
    adapter: PromptAdapter,
    task: Task,
    surrogate: Backbone | None,
    *,
    keep: bool,
) -> tuple[PromptAdapter | None, bool]:
    """Load the rival, one prompt for all images, or train it if there is a surrogate.

    Args:
        args: Parsed options; ``--rival`` names a rival, and ``--out`` may hold one from an earlier
            run.
        adapter: Checkpoint to compare with.
        task: Task that the rival learns.
        surrogate: Local model to train through, if any.
        keep: Whether to save the rival in ``--out``, and to load it from there. On other images
            than the checkpoint's, it would differ from the checkpoint in more than the method.

    Returns:
        The rival, if any, and whether a dry run has left out its training.
    """
    from pgn_client.checkpoint import fingerprint_of
    from pgn_client.training.rival import same_but_input_independent, train_rival

    if adapter.card.method != "pgn" or adapter.card.part_of or adapter.card.mapped:
        if args.rival:
            raise ConfigurationError(
                "--rival: got it with another --ckpt than a PGN of one task from pgn train, "
                "expected such a PGN; leave --rival out"
            )
        # No input-independent prompt could be trained in the same way.
        return None, False

    # The fingerprint is that of the file, so that another --profile trains no new rival.
    mark = fingerprint_of(args.ckpt)[:12]
    saved = args.out / f"iip-{mark}.safetensors" if args.out and keep else None
    path = args.rival or (saved if saved and saved.exists() else None)
    if path:
        return same_but_input_independent(load_adapter(path, profile_of(args)), adapter), False
    if surrogate is None:
        return None, False
    if args.dry_run:
        return None, True

    talk("training the input-independent rival with the same recipe")
    rival = train_rival(adapter, task, surrogate, progress=True)
    if saved:
        rival.save(saved)
    return rival, False
