"""``pgn train`` and ``pgn evaluate``: what needs labelled images and a local surrogate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import talk, tell
from pgn_client.cli.options import (
    INTERRUPTED,
    OK,
    Subparsers,
    add_endpoint_file,
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
from pgn_client.wire.endpoint import Endpoint, Found

if TYPE_CHECKING:
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.surrogate.backbone import Backbone
    from pgn_client.training import Recipe, Task


MOST_PROMPT_TOKENS = 128
"""Of an adapter, by its contract."""


def add_train(commands: Subparsers) -> None:
    """``pgn train``."""
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
        help="folder with train/, val/, test/, or one folder per class; several train one prompt "
        "for all of them",
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="CKPT",
        help="checkpoint to write, NAME.safetensors",
    )
    add_surrogate_options(p, "bundled")
    p.add_argument(
        "--method",
        default="pgn",
        help="pgn, input_independent, padding, masked, low_rank, blend, no_prompt, grey_frame; "
        "expres, for a server "
        "that hosts adapters of the very --backbone (pgn)",
    )
    kinds = (
        "pixel, smooth, luma, latent or reachable (pixel; smooth where --endpoint says that "
        "the server re-encodes)"
    )
    p.add_argument("--library", help=kinds)
    p.add_argument(
        "--inversion", default="bounded", help="of latent rows: bounded or pseudo_inverse (bounded)"
    )
    p.add_argument(
        "--layout", help="ring, corner, rows:N, full or cells:… as of import (the method's own)"
    )
    add_endpoint_file(p)
    p.add_argument(
        "--profile",
        help="the server's resize and crop: direct, resize_crop:R:C, … (the backbone's own)",
    )
    p.add_argument("--preset", default="default", help="default, small or paper (default)")
    p.add_argument(
        "--augment", help="none, shift, flip, dihedral or paper: what the task allows (shift)"
    )
    p.add_argument("--library-size", type=int, metavar="L", help="rows of the token library (64)")
    p.add_argument(
        "--prompt-tokens",
        type=int,
        metavar="M",
        help="number of EXPRES prompt tokens, at most 128 (default 10)",
    )
    p.add_argument(
        "--mapping", default="auto", help="auto, identity, flm, ilm, blm, blm+ or linear (auto)"
    )
    p.add_argument("--epochs", type=int, help="passes over the training images (12)")
    p.add_argument("--batch-size", type=int, metavar="B", help="images per step (16)")
    p.add_argument(
        "--shots", type=int, metavar="N", help="at most N training images per class (all)"
    )
    p.add_argument(
        "--top-k", type=int, metavar="N", help="how many labels the endpoint returns (all)"
    )
    p.add_argument(
        "--decimals",
        type=int,
        metavar="N",
        help="how the endpoint rounds probabilities (not at all)",
    )
    p.add_argument(
        "--wire",
        help="what happens to images on their way, for libraries of pixels: uint8, jpeg:75:420, "
        "shift:4, scale:0.05, "
        "or several joined by + (nothing)",
    )
    p.add_argument("--seed", type=int, default=0, help="seed for all random choices (default 0)")
    p.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    p.add_argument("--json", action="store_true", help="the whole card as JSON on stdout")


def run_train(args: argparse.Namespace) -> int:
    """Train and save; on Ctrl-C save the best so far."""
    require("training", "train", "torch", "timm", "scipy")
    from pgn_client.checkpoint import summary
    from pgn_client.surrogate.degradation import Wire
    from pgn_client.training import TrainingConfig, fit
    from pgn_client.types import ServerProfile

    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ConfigurationError(f"--out: got {args.out}, expected a file in a folder that exists")
    if args.endpoint:
        _heed(args)
    numbers = _numbers(args)
    if args.method == "expres":
        return _train_hosted(args, numbers)
    task, surrogate = _task(args), load_surrogate(args, args.backbone)
    if args.endpoint:
        _same_size(args, surrogate)
    state = args.out.with_name(args.out.name + ".resume")
    if args.resume and not state.exists():
        talk(f"nothing to resume: there is no {state}; starting from the beginning")
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
    )
    adapter = fit(task, surrogate, config, state=state, resume=args.resume, progress=True)
    _save(adapter, args.out)
    if not adapter.card.interrupted:
        state.unlink(missing_ok=True)
    tell(to_json(adapter.info) if args.json else summary(adapter.info))
    if adapter.card.interrupted:
        talk(f"interrupted: {args.out} holds the best epoch so far; go on with --resume")
        return INTERRUPTED
    return OK


def _numbers(args: argparse.Namespace) -> Recipe:
    """Return the recipe of the preset and what was given beside it."""
    from pgn_client.training import recipe

    if args.prompt_tokens is not None and args.method != "expres":
        raise ConfigurationError(
            f"--prompt-tokens: got it for {args.method}, expected it for expres; leave it out"
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
    """Train EXPRES, which a server of the same backbone hosts; Ctrl-C leaves nothing."""
    from pgn_client.checkpoint import summary
    from pgn_client.training import fit_white_box
    from pgn_client.types import ServerProfile

    painted = ("library", "layout", "library_size", "top_k", "decimals", "wire", "resume")
    foreign = [name for name in painted if getattr(args, name)]
    foreign += ["mapping"] if args.mapping != "auto" else []
    if foreign or len(args.data) > 1:
        what = f"--{foreign[0].replace('_', '-')}" if foreign else "several DATA"
        raise ConfigurationError(
            f"--method expres: got {what}, which is of prompts in images; leave it out"
        )
    if numbers.prompt_tokens > MOST_PROMPT_TOKENS:
        raise ConfigurationError(
            f"--prompt-tokens: got {numbers.prompt_tokens}, expected at most {MOST_PROMPT_TOKENS}, "
            "as servers take"
        )
    task, surrogate = _task(args), load_surrogate(args, args.backbone)
    if args.endpoint:
        _same_size(args, surrogate)
    model = fit_white_box(
        task, surrogate, args.method, recipe=numbers, seed=args.seed, progress=True
    )
    card = model.save(args.out, ServerProfile.parse(args.profile) if args.profile else None)
    tell(to_json(card) if args.json else summary(card))
    return OK


def _same_size(args: argparse.Namespace, surrogate: Backbone) -> None:
    size = Endpoint.read(args.endpoint).found.input_size
    if size is not None and size != surrogate.input_size:
        raise ConfigurationError(
            f"{args.endpoint}: the model there sees {size} px: got {args.backbone} with "
            f"{surrogate.input_size} px; "
            "give the --backbone that is hosted there"
        )


def _save(adapter: PromptAdapter, out: Path) -> None:
    """Write the checkpoint, and one for each of several tasks."""
    adapter.save(out)
    for name in adapter.card.parts or {}:
        part = out.with_name(f"{out.stem}.{name}{out.suffix}")
        adapter.for_task(name).save(part)
        talk(f"written: {part}, for {name} alone")


def _heed(args: argparse.Namespace) -> None:
    """Take what the endpoint's file tells for every option that was not given, and say so."""
    found = Endpoint.read(args.endpoint).found
    if found.output == "embedding":
        raise ConfigurationError(
            f"{args.endpoint}: got an endpoint of embeddings, expected class scores to train "
            "through; use pgn map"
        )
    jpeg = found.codec if found.codec and found.codec.startswith("jpeg") else None
    told = {
        "profile": found.profile,
        "wire": jpeg,
        "library": "smooth" if jpeg and _mixes(args.method) else None,
        "top_k": 1 if found.output == "label" else found.top_k or None,
        "decimals": None if found.decimals == -1 else found.decimals,
    }
    if args.method == "expres":  # nothing is painted, and no score of the endpoint's is read
        told = {"profile": found.profile}
    taken = {
        name: value
        for name, value in told.items()
        if value is not None and getattr(args, name) is None
    }
    vars(args).update(taken)
    said = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in taken.items())
    talk(f"{args.endpoint}: {said or 'nothing that changes the training'}")
    unknown = [
        name
        for name, wire in (("profile", "profile"), ("codec", "wire"))
        if _is_open(found, name, args, wire)
    ]
    if unknown:
        talk(
            f"warning: {args.endpoint}: {' and '.join(unknown)} unknown; the training takes the "
            "server for one that "
            "squashes images and does not re-encode them, unless --profile and --wire say "
            "otherwise"
        )


def _mixes(method: str) -> bool:
    """Whether a method mixes a token library, of which JPEG leaves more where its rows are smooth
    (log, 2026-11-28).
    """
    from pgn_client.prompting.methods import PGN, get

    return issubclass(get(method), PGN)


def _is_open(found: Found, name: str, args: argparse.Namespace, option: str) -> bool:
    """Whether neither the endpoint's file nor an option says what the server does."""
    return getattr(found, name) in (None, "lossy") and getattr(args, option) is None


def _task(args: argparse.Namespace) -> Task:
    """Read the folder, or several as one task."""
    from pgn_client.training import load_task, union

    tasks = {
        Path(data).resolve().name: load_task(data, shots=args.shots, seed=args.seed)
        for data in args.data
    }
    if len(tasks) < len(args.data):
        raise ConfigurationError(
            "DATA: got two folders of one name, expected names that differ; rename one"
        )
    return union(tasks) if len(tasks) > 1 else next(iter(tasks.values()))


def add_evaluate(commands: Subparsers) -> None:
    """``pgn evaluate``."""
    example = (
        "pgn evaluate digits/ --url http://127.0.0.1:8000 --ckpt digits.safetensors --out results/"
    )
    p = command(
        commands,
        "evaluate",
        run_evaluate,
        "compare a prompt with its rivals on the test split",
        example,
    )
    p.add_argument("data", metavar="DATA", help="the folder that the checkpoint was trained on")
    add_endpoint_options(p)
    p.add_argument("--ckpt", required=True, metavar="CKPT")
    add_profile_option(p)
    p.add_argument(
        "--rival",
        metavar="CKPT",
        help="input-independent checkpoint (trained with the same recipe)",
    )
    add_surrogate_options(p, None)
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="report.html, report.json, steps.png, recorded answers, and the rival",
    )
    add_dry_run(p)
    p.add_argument("--json", action="store_true", help="the report as JSON on stdout")


def run_evaluate(args: argparse.Namespace) -> int:
    """Run the honest comparison and print its table."""
    require("evaluation", "train", "torch", "timm", "jinja2", "scipy")
    from pgn_client.evaluation import report
    from pgn_client.evaluation.fidelity import columns
    from pgn_client.evaluation.study import evaluate, queries
    from pgn_client.training.rival import task_of

    if args.out:
        if not args.dry_run:
            make_folder(args.out)
        args.cache = args.cache or args.out / "answers.sqlite"
    adapter = load_adapter(args.ckpt, profile_of(args))
    task, same = task_of(adapter, args.data)
    surrogate = _matching_surrogate(args, adapter)
    rival, untrained = _rival(args, adapter, task, surrogate, keep=same)
    with connect(args, None) as client:
        if args.dry_run:
            planned = queries(task, adapter, rival=rival, rival_to_train=untrained)
            return tell_plan(client, planned, args.price_per_image)
        found = evaluate(
            task,
            lambda a: client.with_options(pgn_ckpt=a),
            adapter,
            same_data=same,
            rival=rival,
            surrogate=surrogate,
            price_per_image=args.price_per_image,
            note=talk,
        )
    if (
        args.out
    ):  # before anything is printed: a terminal that fails must not cost what was paid for
        report.write(args.out, found, columns(adapter, task.test.paths))
    tell(to_json(found.to_json()) if args.json else report.table(found))
    if args.out:
        talk(
            f"written: {args.out / 'report.html'}, report.json, and steps.png, what the server "
            "sees at each step"
        )
    return OK


def _matching_surrogate(args: argparse.Namespace, adapter: PromptAdapter) -> Backbone | None:
    """Load the backbone of the card if its weights are at hand; say so where they are not."""
    from pgn_client.training.rival import same_surrogate

    if adapter.mapping.open and not (args.backbone or args.weights):
        talk("no surrogate: the mapping reads labels that only the endpoint knows")
        return None
    try:
        surrogate = load_surrogate(args, args.backbone or adapter.backbone.name)
    except ConfigurationError as error:
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
    """Take the rival that was given, or an earlier call has trained; train it where a surrogate is
    at hand.

    On other images than the checkpoint's it is not kept: there it would not be the same in all
    but the method.

    Returns:
        The rival, if any, and whether it would have to be trained but for the dry run.
    """
    from pgn_client.checkpoint import fingerprint_of
    from pgn_client.training.rival import same_but_input_independent, train_rival

    if adapter.card.method != "pgn" or adapter.card.part_of or adapter.card.mapped:
        if args.rival:
            raise ConfigurationError(
                "--rival: expected a PGN of one task, as pgn train wrote it, as --ckpt; "
                "leave it out"
            )
        return None, False  # nothing that is trained alike would compare
    # of the file: another --profile is no reason to train again
    mark = fingerprint_of(args.ckpt)[:12]
    kept = args.out / f"iip-{mark}.safetensors" if args.out and keep else None
    given = args.rival or (kept if kept and kept.exists() else None)
    if given:
        return same_but_input_independent(load_adapter(given, profile_of(args)), adapter), False
    if surrogate is None or args.dry_run:
        return None, surrogate is not None
    talk("training the input-independent rival with the same recipe")
    rival = train_rival(adapter, task, surrogate, progress=True)
    if kept:
        rival.save(kept)
    return rival, False
