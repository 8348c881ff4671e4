"""``pgn train``: train prompts on labeled images, through a local surrogate."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pgn_client.cli.console import talk, tell
from pgn_client.cli.data import DATA_HELP, add_failure_rate, look_at, open_data
from pgn_client.cli.options import (
    INTERRUPTED,
    OK,
    Subparsers,
    add_checkpoint_out,
    add_endpoint_file,
    add_mapping_option,
    add_surrogate_options,
    command,
    load_surrogate,
    require,
    to_json,
)
from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint, Found

if TYPE_CHECKING:
    from pgn_client.imaging.findings import Findings
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.surrogate.backbone import Backbone
    from pgn_client.training import Recipe, Task


MOST_PROMPT_TOKENS = 128
"""Largest number of EXPRES prompt tokens that a server with hosted adapters accepts."""


def add_train(commands: Subparsers) -> None:
    """Add the subcommand ``pgn train``, which trains a prompt on labeled images."""
    example = "pgn train digits/ --out digits.safetensors"
    p = command(
        commands,
        "train",
        run_train,
        "train a prompt through a local surrogate of the hosted model",
        example,
    )
    p.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help=f"{DATA_HELP}; several train one prompt for all of them",
    )
    add_checkpoint_out(p)
    add_surrogate_options(p, "bundled")
    p.add_argument(
        "--stand-in",
        action="store_true",
        help="record that --backbone only resembles the hosted model, so that pgn evaluate does "
        "not stop if the endpoint hosts another one (default: it is the same model, unless it is "
        "the bundled one)",
    )
    p.add_argument(
        "--method",
        default="pgn",
        help="method to train: pgn, input_independent, padding, masked, low_rank, blend, "
        "no_prompt, grey_frame, or expres, which needs a server that hosts adapters for this "
        "--backbone (default pgn)",
    )
    p.add_argument(
        "--library",
        help="kind of the token library: pixel, smooth, luma, latent or reachable (default pixel, "
        "or smooth if the server in --endpoint re-encodes images)",
    )
    p.add_argument(
        "--inversion",
        default="bounded",
        help="how --library latent becomes pixels: bounded, the nearest valid pixels, or "
        "pseudo_inverse, least squares and then clipped (default "
        "bounded)",
    )
    p.add_argument(
        "--layout",
        help="where prompts and image go: ring, corner, rows:N, full, or "
        "cells:C1,C2,…@TOP,LEFT,HEIGHT,WIDTH, the numbers of the patches that hold prompts and the "
        "image's rectangle in pixels (default the method's)",
    )
    add_endpoint_file(p)
    p.add_argument(
        "--profile",
        help="the server's resize and crop: direct (a resize to its input size alone), "
        "resize_crop:RESIZE:CROP, shortest_edge:SIDE or "
        "letterbox:SIDE (default that of --endpoint, if it has one, otherwise the backbone's own)",
    )
    p.add_argument(
        "--preset",
        default="default",
        help='recipe to start from: default, small or paper (default "default")',
    )
    p.add_argument(
        "--augment",
        help="augmentation that the task allows: none, shift, flip, dihedral or paper (default "
        "shift; paper with --preset paper)",
    )
    p.add_argument(
        "--library-size",
        type=int,
        metavar="L",
        help="number of rows in the token library (default 64; 16 with --preset small, 256 with "
        "paper)",
    )
    p.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="M",
        help="number of EXPRES prompt tokens, at most 128 (default 10)",
    )
    add_mapping_option(p)
    p.add_argument(
        "--epochs",
        type=int,
        help="number of passes over the training images (default 12; 500 with --preset paper)",
    )
    p.add_argument(
        "--batch-size",
        type=int,
        metavar="B",
        help="number of images per step (default 16; 128 with --preset paper)",
    )
    p.add_argument(
        "--shots",
        type=int,
        metavar="N",
        help="largest number of training images per class (default all)",
    )
    p.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="number of labels that the endpoint returns (default that of --endpoint, or all)",
    )
    p.add_argument(
        "--decimals",
        type=int,
        metavar="N",
        help="decimals to which the endpoint rounds probabilities (default those of --endpoint, or "
        "no rounding)",
    )
    p.add_argument(
        "--wire",
        help="changes to images on their way to the model, imitated in the training: uint8, "
        "jpeg:QUALITY:SUBSAMPLING, shift:PIXELS, scale:FRACTION, or several joined by +; not for "
        "--library latent or reachable (default the JPEG of --endpoint, or none)",
    )
    p.add_argument("--seed", type=int, default=0, help="seed for all random choices (default 0)")
    add_failure_rate(p, "nothing is trained")
    p.add_argument("--resume", action="store_true", help="continue an interrupted run")
    p.add_argument(
        "--json", action="store_true", help="print the checkpoint's metadata as JSON on stdout"
    )


def run_train(args: argparse.Namespace) -> int:
    """Train a prompt, save the checkpoint, and return the exit status.

    Ctrl-C saves the best epoch so far.
    """
    require("training", "train", "torch", "timm", "scipy")
    from pgn_client.checkpoint import summary
    from pgn_client.surrogate.degradation import Wire
    from pgn_client.training import TrainingConfig, fit
    from pgn_client.types import ServerProfile
    from pgn_client.wire.protocols.options import meaning

    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ConfigurationError(f"--out: got {args.out}, expected a file in a folder that exists")
    if args.endpoint:
        _apply_endpoint(args)
    numbers = _numbers(args)
    if args.method == "expres":
        return _train_hosted(args, numbers)

    task, found = _task(args)
    surrogate = load_surrogate(args, args.backbone)
    if args.endpoint:
        _check_size(args, surrogate)
    state = args.out.with_name(args.out.name + ".resume")
    if args.resume and not state.exists():
        talk(f"nothing to resume: there is no {state}; the training starts from the beginning")

    config = TrainingConfig(
        method=args.method,
        library=args.library or "pixel",
        inversion=args.inversion,
        layout=args.layout,
        profile=ServerProfile.parse(args.profile) if args.profile else None,
        recipe=numbers,
        mapping=args.mapping,
        top_k=args.top_k,
        decimals=args.decimals,
        wire=None if args.wire is None else Wire.parse(args.wire),
        seed=args.seed,
        surrogate=_claim(args),
    )
    adapter = fit(task, surrogate, config, state=state, resume=args.resume, progress=True)
    if args.endpoint:
        scores = meaning(Endpoint.read(args.endpoint))
        adapter = adapter.with_card(replace(adapter.card, scores=scores))

    _save(adapter, args.out)
    if not adapter.card.interrupted:
        state.unlink(missing_ok=True)
    tell(to_json(adapter.info) if args.json else summary(adapter.card))
    if adapter.card.interrupted:
        talk(f"interrupted: {args.out} holds the best epoch so far; continue with --resume")
    _talk_summaries(found)
    return INTERRUPTED if adapter.card.interrupted else OK


def _claim(args: argparse.Namespace) -> Literal["same", "stand_in"] | None:
    """Return what the user says that the surrogate is to the hosted model.

    Nobody has said anything of the bundled model, the default; a warning says what it is.
    """
    if args.stand_in:
        return "stand_in"
    if args.backbone != "bundled" or args.weights or args.endpoint:
        return "same"
    talk(
        "note: training through the bundled stand-in model, which pgn serve hosts; for another "
        "endpoint name its model with --backbone and --weights, or give --stand-in"
    )
    return None


def _numbers(args: argparse.Namespace) -> Recipe:
    """Return the training recipe of ``--preset``, changed by options such as ``--epochs``."""
    from pgn_client.training import recipe

    if args.prompt_tokens is not None and args.method != "expres":
        raise ConfigurationError(
            f"--prompt-tokens: got it for {args.method}, expected --method expres; leave it out"
        )
    return recipe(
        args.preset,
        epochs=args.epochs,
        batch_size=args.batch_size,
        augment=args.augment,
        library_size=args.library_size,
        prompt_tokens=args.prompt_tokens,
    )


def _train_hosted(args: argparse.Namespace, numbers: Recipe) -> int:
    """Train EXPRES prompt tokens, for a server that hosts the same backbone.

    EXPRES adds the tokens inside the model and changes no image. Ctrl-C saves nothing.

    Returns:
        Exit status.
    """
    from pgn_client.checkpoint import summary
    from pgn_client.training import fit_white_box
    from pgn_client.types import ServerProfile

    # EXPRES changes no image, so these options would be ignored.
    only_in_images = ("library", "layout", "library_size", "top_k", "decimals", "wire", "resume")
    unusable = [name for name in only_in_images if getattr(args, name)]
    # Its default is a value that is true, so the loop above cannot tell whether it was given.
    if args.mapping != "auto":
        unusable.append("mapping")
    if unusable or len(args.data) > 1:
        what = f"--{unusable[0].replace('_', '-')}" if unusable else "several DATA"
        raise ConfigurationError(
            f"--method expres: got {what}, which only prompts in images can use; leave it out"
        )
    if numbers.prompt_tokens > MOST_PROMPT_TOKENS:
        raise ConfigurationError(
            f"--prompt-tokens: got {numbers.prompt_tokens}, expected at most {MOST_PROMPT_TOKENS}, "
            "the most that a server accepts; lower it"
        )

    task, found = _task(args)
    surrogate = load_surrogate(args, args.backbone)
    if args.endpoint:
        _check_size(args, surrogate)
    model = fit_white_box(
        task, surrogate, args.method, recipe=numbers, seed=args.seed, progress=True
    )
    card = model.save(args.out, ServerProfile.parse(args.profile) if args.profile else None)
    tell(to_json(card) if args.json else summary(card))
    _talk_summaries(found)
    return OK


def _talk_summaries(found: list[Findings]) -> None:
    """Print how many files of each ``DATA`` were used and skipped."""
    for findings in found:
        talk(findings.summary())


def _check_size(args: argparse.Namespace, surrogate: Backbone) -> None:
    """Check that the surrogate, the local model, has the endpoint file's input size.

    Raises:
        ConfigurationError: The surrogate has another input size.
    """
    size = Endpoint.read(args.endpoint).found.input_size
    if size is not None and size != surrogate.input_size:
        raise ConfigurationError(
            f"--backbone: got {args.backbone} with an input of {surrogate.input_size} px, expected "
            f"{size} px as in {args.endpoint}; give the --backbone that is hosted there"
        )


def _save(adapter: PromptAdapter, out: Path) -> None:
    """Save a checkpoint; if it is for several tasks, also save one checkpoint for each task."""
    adapter.save(out)
    for name in adapter.card.parts or {}:
        part = out.with_name(f"{out.stem}.{name}{out.suffix}")
        adapter.for_task(name).save(part)
        talk(f"saved: {part}, for {name} alone")


def _apply_endpoint(args: argparse.Namespace) -> None:
    """Set options that were not given to the values in the endpoint file, and print them.

    Raises:
        ConfigurationError: The endpoint returns embeddings.
    """
    found = Endpoint.read(args.endpoint).found
    if found.output == "embedding":
        raise ConfigurationError(
            f"{args.endpoint}: got an endpoint that returns embeddings, expected class scores to "
            "train through; use pgn map"
        )

    jpeg = found.codec if found.codec and found.codec.startswith("jpeg") else None
    settings: dict[str, str | int | None] = {"profile": found.profile}
    # With EXPRES, images are not changed and the endpoint's own scores are not read.
    if args.method != "expres":
        settings |= {
            "wire": jpeg,
            "library": "smooth" if jpeg and _has_library(args.method) else None,
            # In the endpoint file, 0 labels stand for all, and -1 decimals for no rounding; both
            # are what the training assumes without an option. A bare label is a top-1 answer.
            "top_k": 1 if found.output == "label" else found.top_k or None,
            "decimals": None if found.decimals == -1 else found.decimals,
        }
    applied = {
        name: value
        for name, value in settings.items()
        if value is not None and getattr(args, name) is None
    }
    vars(args).update(applied)
    options = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in applied.items())
    talk(f"options from {args.endpoint}: {options or 'none'}")

    unknown = [
        name
        for name, option in (("profile", "profile"), ("codec", "wire"))
        if _is_unknown(found, name, args, option)
    ]
    if unknown:
        talk(
            f"warning: {args.endpoint}: {' and '.join(unknown)} unknown; the training assumes a "
            "server that squashes images and does not re-encode them, unless --profile and --wire "
            "describe it"
        )


def _has_library(method: str) -> bool:
    """Whether a method has a token library, the rows of pixels that it mixes prompts from.

    JPEG preserves more of a library if its rows are smooth (benchmarks/LOG.md, 2026-11-28).
    """
    from pgn_client.prompting.methods import PGN, get

    return issubclass(get(method), PGN)


def _is_unknown(found: Found, name: str, args: argparse.Namespace, option: str) -> bool:
    """Whether neither the endpoint file nor an option says how the server changes images.

    Args:
        found: Values of the endpoint file.
        name: Field of ``found``.
        args: Parsed options.
        option: Name of the option, in ``args``.
    """
    # "lossy" says that the server re-encodes, but not how, so the training cannot imitate it.
    return getattr(found, name) in (None, "lossy") and getattr(args, option) is None


def _task(args: argparse.Namespace) -> tuple[Task, list[Findings]]:
    """Return the task of ``DATA``, or one task for several, and what is worth knowing of each."""
    from pgn_client.training import load_task, union

    tasks: dict[str, Task] = {}
    found: list[Findings] = []
    for source in args.data:
        data = open_data(source, args.max_failure_rate)
        found.append(look_at(data, seed=args.seed))
        # Resolved, because a path such as "." or ".." has no name of its own.
        name = Path(source).resolve().name
        tasks[name] = load_task(data, shots=args.shots, seed=args.seed)
    if len(tasks) < len(args.data):
        raise ConfigurationError(
            "DATA: got two folders with the same name, expected different names; rename one"
        )
    task = union(tasks) if len(tasks) > 1 else next(iter(tasks.values()))
    return task, found
