"""The command ``pgn``: one ``add_`` and one ``run_`` per subcommand; heavy imports only inside ``run_``.

stdout is data, stderr is talk and progress. Exit 0 all fine, 1 some items failed or the endpoint did, 2 usage or
configuration, 130 interrupted (journals and the best checkpoint so far are kept).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgn_client import __version__
from pgn_client.console import complain, show_warnings, talk, tell, tell_records
from pgn_client.errors import ConfigurationError, EndpointError, ImageError, MissingDependencyError, PGNError

if TYPE_CHECKING:
    from pgn_client.adapter import PromptAdapter
    from pgn_client.backbone import Backbone
    from pgn_client.batch import Record
    from pgn_client.client import AdaptedClient
    from pgn_client.training import Task

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_Subparsers = Any  # argparse gives its type no public name


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pgn`` with arguments (default: the process's); return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        return run_serve(arguments[1:])
    args = build_parser().parse_args(arguments)
    show_warnings()
    try:
        status: int = args.run(args)
        return status
    except (EndpointError, ImageError) as error:
        return complain(error, FAILED)
    except PGNError as error:
        return complain(error, USAGE)
    except KeyboardInterrupt:
        talk("interrupted; what was written before is kept")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="pgn", description="Adapt a vision API that you cannot touch: prompts made here, answers made there."
    )
    parser.add_argument("--version", action="version", version=f"pgn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (add_demo, add_serve, add_train, add_adapt, add_predict, add_evaluate, add_inspect):
        add(commands)
    return parser


def _command(
    commands: _Subparsers, name: str, run: Callable[[argparse.Namespace], int], help: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    return parser


def add_demo(commands: _Subparsers) -> None:
    """``pgn demo``."""
    p = _command(
        commands, "demo", run_demo, "train, serve and compare on real handwritten digits", "pgn demo --out demo"
    )
    p.add_argument("--out", type=Path, default=Path("demo_out"), metavar="DIR", help="where results go (demo_out)")
    p.add_argument("--pictures", type=int, metavar="N", help="use N of the 1,797 digits (all)")
    p.add_argument("--epochs", type=int, default=6, help="of the training (6)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true", help="the report as JSON on stdout")


def run_demo(args: argparse.Namespace) -> int:
    """Run the demo and print its table."""
    _require("the demo", "all", "torch", "timm", "fastapi", "sklearn")
    from pgn_client import demo, report

    _make_folder(args.out)
    done = demo.run(args.out, pictures=args.pictures, epochs=args.epochs, seed=args.seed, note=talk, progress=True)
    tell(_json(done.report.to_json()) if args.json else report.table(done.report))
    names = ("report.json", "before_after.png", "pgn.safetensors")
    talk("written: " + ", ".join(str(done.folder / name) for name in names))
    return OK


def add_serve(commands: _Subparsers) -> None:
    """``pgn serve``: listed here, parsed by ``mock_server`` itself."""
    _command(commands, "serve", lambda _: OK, "run the mock server (python -m mock_server)", "pgn serve --port 8000")


def run_serve(arguments: Sequence[str]) -> int:
    """Become ``python -m mock_server ARGUMENTS``; the two packages share no code."""
    try:
        _require("the mock server", "server", "fastapi", "uvicorn", "torch", "timm")
    except MissingDependencyError as error:
        return complain(error, USAGE)
    os.execv(sys.executable, [sys.executable, "-m", "mock_server", *arguments])


def add_train(commands: _Subparsers) -> None:
    """``pgn train``."""
    example = "pgn train digits/ --out digits.safetensors"
    p = _command(commands, "train", run_train, "train a prompt through a local surrogate of the hosted model", example)
    p.add_argument("data", metavar="DATA", help="folder with train/, val/, test/, or one folder per class")
    p.add_argument("--out", type=Path, required=True, metavar="CKPT", help="checkpoint to write")
    _add_surrogate(p, "bundled")
    p.add_argument("--method", default="pgn", help="pgn or input_independent (pgn)")
    p.add_argument("--library", default="pixel", help="pixel or latent (pixel: it deploys exactly)")
    p.add_argument("--inversion", default="bounded", help="of a latent library: bounded or pseudo_inverse (bounded)")
    p.add_argument("--layout", default="ring", help="ring, corner or rows:N (ring)")
    p.add_argument("--profile", help="the server's resize and crop: direct, resize_crop:R:C, … (the backbone's own)")
    p.add_argument("--preset", default="default", help="default or paper (default)")
    p.add_argument("--augment", help="none, shift, flip, dihedral or paper: what the task allows (shift)")
    p.add_argument("--library-size", type=int, metavar="L", help="rows of the token library (64)")
    p.add_argument("--mapping", default="auto", help="auto, identity, blm+ or linear (auto)")
    p.add_argument("--epochs", type=int, help="passes over the training pictures (12)")
    p.add_argument("--batch-size", type=int, metavar="B", help="pictures per step (16)")
    p.add_argument("--shots", type=int, metavar="N", help="at most N training pictures per class (all)")
    p.add_argument("--top-k", type=int, metavar="N", help="how many labels the endpoint returns (all)")
    p.add_argument("--decimals", type=int, metavar="N", help="how the endpoint rounds probabilities (not at all)")
    p.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    p.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    p.add_argument("--json", action="store_true", help="the whole card as JSON on stdout")


def run_train(args: argparse.Namespace) -> int:
    """Train and save; on Ctrl-C save the best so far."""
    _require("training", "train", "torch", "timm")
    from pgn_client.checkpoint import summary
    from pgn_client.training import fit, load_task, recipe
    from pgn_client.types import ServerProfile

    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ConfigurationError(f"--out: got {args.out}, expected a file in a folder that exists")
    numbers = recipe(
        args.preset,
        epochs=args.epochs,
        batch_size=args.batch_size,
        augment=args.augment,
        library_size=args.library_size,
    )
    task = load_task(args.data, shots=args.shots, seed=args.seed)
    state = args.out.with_name(args.out.name + ".resume")
    if args.resume and not state.exists():
        talk(f"nothing to resume: there is no {state}; starting from the beginning")
    adapter = fit(
        task,
        _surrogate(args, args.backbone),
        method=args.method,
        library=args.library,
        inversion=args.inversion,
        layout=args.layout,
        profile=ServerProfile.parse(args.profile) if args.profile else None,
        recipe=numbers,
        mapping=args.mapping,
        top_k=args.top_k,
        decimals=args.decimals,
        seed=args.seed,
        state=state,
        resume=args.resume,
        progress=True,
    )
    adapter.save(args.out)
    if not adapter.info["interrupted"]:
        state.unlink(missing_ok=True)
    tell(_json(adapter.info) if args.json else summary(adapter.info))
    if adapter.info["interrupted"]:
        talk(f"interrupted: {args.out} holds the best epoch so far; go on with --resume")
        return INTERRUPTED
    return OK


def _add_surrogate(parser: argparse.ArgumentParser, default: str | None) -> None:
    shown = default or "the checkpoint's"
    parser.add_argument("--backbone", default=default, metavar="bundled|TIMM_NAME", help=f"the surrogate ({shown})")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="its safetensors file (timm's published weights)")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="JSON list of its class names")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _surrogate(args: argparse.Namespace, name: str) -> Backbone:
    import torch

    from pgn_client import backbone

    device = args.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device: got cuda, but torch finds none; use cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return backbone.load(name, weights=args.weights, labels=args.labels, device=device)


def add_adapt(commands: _Subparsers) -> None:
    """``pgn adapt``."""
    example = "pgn adapt photos/ adapted/ --ckpt digits.safetensors"
    p = _command(commands, "adapt", run_adapt, "write the pictures that would be sent, as PNG; no network", example)
    p.add_argument("source", metavar="IN", help="folder, picture, list file, or - for a list on stdin")
    p.add_argument("target", metavar="OUT", help="folder for the adapted pictures; the tree is mirrored")
    p.add_argument("--ckpt", required=True, metavar="CKPT")
    _add_profile(p)
    p.add_argument("--json", action="store_true", help="one JSON line per picture on stdout")


def _add_profile(parser: argparse.ArgumentParser) -> None:
    help = "the server's resize and crop, where it is not the one of the training (the checkpoint's)"
    parser.add_argument("--profile", metavar="P", help=help)


def _adapter(path: str | Path, profile: str | None) -> PromptAdapter:
    from pgn_client.adapter import PromptAdapter
    from pgn_client.types import ServerProfile

    adapter = PromptAdapter.load(path)
    return adapter.with_profile(ServerProfile.parse(profile)) if profile else adapter


def run_adapt(args: argparse.Namespace) -> int:
    """Adapt a folder; what is there already is left alone."""
    from pgn_client.batch import adapt_files

    adapter = _adapter(args.ckpt, args.profile)
    done = failed = skipped = 0
    for result in adapt_files(adapter, args.source, args.target):
        done, skipped, failed = done + 1, skipped + result.skipped, failed + (result.error is not None)
        error = None if result.error is None else str(result.error)
        if error is not None:
            talk(f"error: {result.source}: {error}")
        if args.json:
            tell(json.dumps({"path": str(result.source), "adapted": str(result.target), "error": error}))
        elif error is None:
            tell(str(result.target))
    talk(f"{done - failed} adapted ({skipped} of them before), {failed} failed")
    return FAILED if failed else OK


def add_predict(commands: _Subparsers) -> None:
    """``pgn predict``."""
    example = "pgn predict photos/ --url http://127.0.0.1:8000 --ckpt digits.safetensors --out predictions.jsonl"
    p = _command(commands, "predict", run_predict, "classify pictures through the endpoint; resumes", example)
    p.add_argument("source", metavar="IN", help="folder, picture, list file, or - for a list on stdin")
    _add_endpoint(p)
    p.add_argument("--ckpt", metavar="CKPT", help="without it pictures are sent as they are")
    _add_profile(p)
    p.add_argument(
        "--out", metavar="FILE", help="JSON Lines journal, or - for stdout (predictions.jsonl; one picture: -)"
    )
    p.add_argument("--fusion", default="auto", help="α of the local head: auto (the card's), none, or a number (auto)")
    p.add_argument("--query-below", type=float, metavar="τ", help="answer locally where the local head is this sure")
    p.add_argument("--dry-run", action="store_true", help="send no image; say how many, how long, at what price")
    p.add_argument("--json", action="store_true", help="JSON lines on stdout, also on a terminal")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True, help="the endpoint; its key is read from PGN_API_KEY")
    parser.add_argument("--protocol", default="auto", help="auto, pgn or huggingface (auto)")
    parser.add_argument("--model", help="the model's name, where the endpoint hosts several")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="in all, for one image (30)")
    parser.add_argument("--max-retries", type=int, default=4, metavar="N", help="for one image (4)")
    parser.add_argument("--max-concurrency", type=int, default=8, metavar="N", help="requests at the same time (8)")
    parser.add_argument("--requests-per-second", type=float, metavar="R", help="at most (no limit)")
    parser.add_argument("--budget", type=int, metavar="N", help="send at most N images")
    parser.add_argument("--price-per-image", type=float, metavar="PRICE")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="recorded answers, so that nothing is paid twice")


def run_predict(args: argparse.Namespace) -> int:
    """Classify a picture, a list or a folder."""
    from pgn_client.batch import find_images

    files = find_images(args.source)
    out = args.out or ("-" if len(files) == 1 else "predictions.jsonl")
    if args.profile and not args.ckpt:
        raise ConfigurationError("--profile: got one without --ckpt; pictures that are sent as they are have no margin")
    adapter = _adapter(args.ckpt, args.profile) if args.ckpt else None
    options = {"fusion": _fusion(args.fusion), "query_below": args.query_below}
    with _connect(args, adapter, **options) as client:
        if args.dry_run:
            return _dry_run(client, files, None if out == "-" else out, args)
        as_json = args.json or not sys.stdout.isatty()
        return _to_stdout(client, files, as_json) if out == "-" else _to_journal(client, files, out, args.json)


def _connect(args: argparse.Namespace, adapter: PromptAdapter | None, **fusion: Any) -> AdaptedClient:
    from pgn_client.client import AdaptedClient

    return AdaptedClient(
        args.url,
        adapter,
        protocol=args.protocol,
        model=args.model,
        timeout=args.timeout,
        max_retries=args.max_retries,
        max_concurrency=args.max_concurrency,
        requests_per_second=args.requests_per_second,
        budget=args.budget,
        price_per_image=args.price_per_image,
        cache=args.cache,
        **fusion,
    )


def _fusion(text: str) -> Any:
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"--fusion: got {text!r}, expected auto, none, or a number in [0, 1]") from None


def _to_journal(client: AdaptedClient, files: Sequence[Path], out: str, as_json: bool) -> int:
    from tqdm import tqdm

    from pgn_client.batch import predict_files

    resumed, bar = 0, tqdm(total=len(files), unit="img", disable=None)

    def records() -> Iterator[Record]:
        nonlocal resumed
        with bar:
            for result in predict_files(client, files, out):
                resumed += result.resumed
                bar.update()
                yield result.record

    failed = tell_records(records(), as_json=as_json, say=lambda text: bar.write(text, file=sys.stderr))
    done = len(files) - failed
    talk(f"{out}: {done} predictions ({resumed} of them before), {failed} failed; {_usage(client)}")
    return FAILED if failed else OK


def _to_stdout(client: AdaptedClient, files: Sequence[Path], as_json: bool) -> int:
    from pgn_client.batch import predict_records

    return FAILED if tell_records(predict_records(client, files), as_json=as_json, people=True) else OK


def _usage(client: AdaptedClient) -> str:
    used = client.usage
    price = "" if used.cost is None else f", cost {used.cost:g}"
    return f"{used.images} images sent in {used.requests} requests ({used.retries} retries){price}"


def _dry_run(client: AdaptedClient, files: Sequence[Path], journal: str | None, args: argparse.Namespace) -> int:
    """Count what would be sent; time the local work on a few pictures, and one round trip that carries no image."""
    from pgn_client.batch import estimate

    found = estimate(client, files, journal, requests_per_second=args.requests_per_second)
    price = args.price_per_image
    plan = {
        "images": found.images,
        "already_answered": found.already_answered,
        "seconds_at_least": round(found.seconds, 1),
        "cost": None if price is None else round(found.images * price, 6),
    }
    tell(json.dumps(plan))
    return OK


def add_evaluate(commands: _Subparsers) -> None:
    """``pgn evaluate``."""
    example = "pgn evaluate digits/ --url http://127.0.0.1:8000 --ckpt digits.safetensors --out results/"
    p = _command(commands, "evaluate", run_evaluate, "compare a prompt with its rivals on the test split", example)
    p.add_argument("data", metavar="DATA", help="the folder that the checkpoint was trained on")
    _add_endpoint(p)
    p.add_argument("--ckpt", required=True, metavar="CKPT")
    _add_profile(p)
    p.add_argument("--rival", metavar="CKPT", help="input-independent checkpoint (trained with the same recipe)")
    _add_surrogate(p, None)
    p.add_argument("--out", type=Path, metavar="DIR", help="report.json, recorded answers, and the rival go here")
    p.add_argument("--json", action="store_true", help="the report as JSON on stdout")


def run_evaluate(args: argparse.Namespace) -> int:
    """Run the honest comparison and print its table."""
    _require("evaluation", "train", "torch", "timm")
    from pgn_client import report
    from pgn_client.evaluation import evaluate
    from pgn_client.training.alike import task_of

    if args.out:
        _make_folder(args.out)
        args.cache = args.cache or args.out / "answers.sqlite"
    adapter = _adapter(args.ckpt, args.profile)
    task, same = task_of(adapter, args.data)
    surrogate = _matching_surrogate(args, adapter)
    rival = _rival(args, adapter, task, surrogate)
    found = evaluate(
        task, lambda a: _connect(args, a), adapter, same_data=same, rival=rival, surrogate=surrogate, note=talk
    )
    text = _json(found.to_json())
    tell(text if args.json else report.table(found))
    if args.out:
        (args.out / "report.json").write_text(text + "\n", encoding="utf-8")
        talk(f"written: {args.out / 'report.json'}")
    return OK


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out: got {path}, expected a folder that can be made ({error.strerror})") from error


def _matching_surrogate(args: argparse.Namespace, adapter: PromptAdapter) -> Backbone | None:
    """Load the backbone of the card if its weights are at hand; say so where they are not."""
    from pgn_client.training.alike import same_surrogate

    try:
        surrogate = _surrogate(args, args.backbone or adapter.info["backbone"]["name"])
    except ConfigurationError as error:
        if args.backbone or args.weights:
            raise
        talk(f"no surrogate: {error}")
        return None
    return same_surrogate(surrogate, adapter)


def _rival(
    args: argparse.Namespace, adapter: PromptAdapter, task: Task, surrogate: Backbone | None
) -> PromptAdapter | None:
    """Take the rival that was given, or an earlier call has trained; train it where a surrogate is at hand."""
    from pgn_client.checkpoint import read_card
    from pgn_client.training.alike import same_but_input_independent, train_rival

    mark = read_card(args.ckpt)["fingerprint"][:12]  # of the file: another --profile is no reason to train again
    kept = args.out / f"iip-{mark}.safetensors" if args.out else None
    given = args.rival or (kept if kept and kept.exists() else None)
    if given:
        return same_but_input_independent(_adapter(given, args.profile), adapter)
    if surrogate is None:
        return None
    talk("training the input-independent rival with the same recipe")
    rival = train_rival(adapter, task, surrogate, progress=True)
    if kept:
        rival.save(kept)
    return rival


def add_inspect(commands: _Subparsers) -> None:
    """``pgn inspect``."""
    p = _command(commands, "inspect", run_inspect, "print a checkpoint's card", "pgn inspect digits.safetensors")
    p.add_argument("ckpt", metavar="CKPT")
    p.add_argument("--json", action="store_true", help="the whole card as JSON")


def run_inspect(args: argparse.Namespace) -> int:
    """Verify a checkpoint and print its card; torch is not needed."""
    from pgn_client.checkpoint import read, summary

    card, _ = read(args.ckpt)
    tell(_json(card) if args.json else summary(card))
    return OK


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _require(what: str, extra: str, *modules: str) -> None:
    """Name the missing extra before a long import fails half-way.

    Raises:
        MissingDependencyError: one of the modules is not installed.
    """
    if any(find_spec(module) is None for module in modules):
        raise MissingDependencyError(what, extra)
