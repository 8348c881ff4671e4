"""``pgn retain``: measure what remains of a checkpoint's prompts on their way to a server.

The command needs neither an endpoint nor labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgn_client.cli.console import Failures, talk, tell
from pgn_client.cli.data import add_sources, talk_summary
from pgn_client.cli.options import (
    FAILED,
    Subparsers,
    add_profile_option,
    add_surrogate_options,
    command,
    load_adapter,
    load_surrogate,
    require,
    to_json,
)
from pgn_client.errors import ConfigurationError, PGNError

if TYPE_CHECKING:
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.surrogate.backbone import Backbone


def add_retain(commands: Subparsers) -> None:
    """Add the subcommand ``pgn retain``, which measures what remains of prompts on their way."""
    example = "pgn retain photos/ --ckpt eurosat.safetensors --out steps.png"
    help = (
        "measure what remains of a checkpoint's prompts at each step to the server; needs neither "
        "an endpoint nor labels"
    )
    p = command(commands, "retain", run_retain, help, example)
    add_sources(p)
    p.add_argument(
        "--ckpt", required=True, metavar="CKPT", help="checkpoint whose prompts are measured"
    )
    add_profile_option(p)
    add_surrogate_options(p, None)
    p.add_argument(
        "--out",
        type=Path,
        metavar="PNG",
        help="path of the PNG to write, with four images at each step: sent, received, and "
        "re-encoded as two JPEGs (default none)",
    )
    p.add_argument("--json", action="store_true", help="print the numbers as JSON on stdout")


def run_retain(args: argparse.Namespace) -> int:
    """Print how many images keep their label at each step from the client to the model.

    With ``--out``, also draw what the server sees. Return the exit status.
    """
    require("retention", "train", "torch", "timm")
    import numpy as np

    from pgn_client.evaluation import report
    from pgn_client.evaluation.fidelity import agreement, columns
    from pgn_client.imaging.codecs import PNG
    from pgn_client.imaging.files import write_whole
    from pgn_client.imaging.reader import scan

    if args.out and (
        args.out.is_dir() or not args.out.parent.is_dir() or args.out.suffix != ".png"
    ):
        raise ConfigurationError(
            f"--out: got {args.out}, expected a .png file in a folder that exists"
        )
    found = scan(args.source)
    # Not profile_of(): this command has no endpoint file that could hold a profile.
    adapter = load_adapter(args.ckpt, args.profile)
    surrogate = _surrogate(args, adapter)
    readable: list[Path] = []
    failures = Failures()
    batches = list(_followed(adapter, surrogate, found.files, readable, failures))
    failures.sum_up()
    if not batches:
        talk_summary(found, failures)
        return FAILED

    log_probs: dict[str, Any] = {}
    for stage in batches[0]:
        log_probs[stage] = np.concatenate([batch[stage] for batch in batches])
    shares = agreement(log_probs)
    # Written first, so that a failing terminal loses no file; and printed even if that fails.
    try:
        if args.out:
            shown = columns(adapter, readable)
            sheet = report.sheet([(images, step) for step, images in shown.items()])
            write_whole(args.out, PNG.encode(sheet))
    finally:
        if args.json:
            # The old word in this key stays, because programs read it.
            tell(to_json({"pictures": len(readable), "agreement": shares}))
        else:
            tell(report.retention_table(shares, len(readable)))

    if args.out:
        talk(f"saved: {args.out}, with what the server sees at each step")
    talk_summary(found, failures)
    return failures.status(len(found.files))


def _followed(
    adapter: PromptAdapter,
    surrogate: Backbone,
    paths: Sequence[Path],
    readable: list[Path],
    failures: Failures,
) -> Iterator[dict[str, Any]]:
    """Yield the surrogate's log-probabilities at each step from the client to the model.

    Each batch of images yields one dictionary, step -> log-probabilities. Batches keep a folder of
    any size within memory.

    Args:
        adapter: Adapter that prepares the images.
        surrogate: Surrogate, a local model, that classifies the images.
        paths: Paths of the images.
        readable: Receives the paths of the images that can be read.
        failures: Receives the other paths, with the reason.
    """
    import numpy as np

    from pgn_client.evaluation.fidelity import BATCH, follow
    from pgn_client.imaging.codecs import open_image
    from pgn_client.imaging.compositor import fit_to_canvas

    for start in range(0, len(paths), BATCH):
        fitted = []
        crops = []
        for path in paths[start : start + BATCH]:
            try:
                image = open_image(path)
            except PGNError as error:
                failures.add(str(path), error)
                continue
            # One at a time, because a batch of large images would not fit into memory.
            fitted.append(fit_to_canvas(image, adapter.canvas))
            crop = adapter.looked_at([image])
            if crop is not None:
                crops.append(crop)
            readable.append(path)
            failures.succeeded += 1
        if fitted:
            looked_at = np.concatenate(crops) if crops else None
            yield follow(adapter, surrogate, np.stack(fitted), looked_at=looked_at)


def _surrogate(args: argparse.Namespace, adapter: PromptAdapter) -> Backbone:
    """Load the surrogate, the local model that the checkpoint was made for.

    Raises:
        ConfigurationError: The surrogate's weights are not those that the checkpoint was made for,
            or it has no classification head for the checkpoint's labels.
    """
    from pgn_client.training.rival import same_surrogate

    # The authors of imported checkpoints published no head, so the backbone may lack a fitting one;
    # the check below names the remedy.
    imported = adapter.card.imported is not None
    backbone = load_surrogate(args, args.backbone or adapter.backbone.name, new_head=imported)
    surrogate = same_surrogate(backbone, adapter)
    if imported and surrogate.silent:
        raise ConfigurationError(
            f"surrogate: got {surrogate.name} without a head for the checkpoint's labels, expected "
            "a classifier; import the checkpoint with --weights and --labels of the endpoint's own "
            "classifier"
        )
    return surrogate
