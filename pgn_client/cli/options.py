"""What several subcommands share: exit codes, groups of options, and what is built from them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgn_client.cli.network import add_network_options, http_options
from pgn_client.errors import ConfigurationError, MissingDependencyError
from pgn_client.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.surrogate.backbone import Backbone
    from pgn_client.types import Adapter
    from pgn_client.wire.client import AdaptedClient

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
Subparsers = Any  # argparse gives its type no public name


def command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add one subcommand to the parser and return it, for its own arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run=run)
    return parser


def add_surrogate_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the options of the local surrogate; a default of None stands for the backbone of the
    checkpoint.
    """
    shown = default or "the checkpoint's"
    parser.add_argument(
        "--backbone", default=default, metavar="bundled|TIMM_NAME", help=f"the surrogate ({shown})"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="its safetensors file (timm's published weights)",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="JSON list of its class names")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def load_surrogate(args: argparse.Namespace, name: str, *, new_head: bool = False) -> Backbone:
    """Load what ``add_surrogate_options`` has read.

    Args:
        args: its options.
        name: of the backbone, where the checkpoint may decide it.
        new_head: see ``backbone.load``.

    Raises:
        ConfigurationError: no such backbone or device, or labels that do not fit.
        CheckpointError: the weights cannot be used.
    """
    import torch

    from pgn_client.surrogate import backbone

    device = args.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device: got cuda, but torch finds none; use cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return backbone.load(
        name, weights=args.weights, labels=args.labels, device=device, new_head=new_head
    )


def add_endpoint_options(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """Add the options of the endpoint: where it is, how fast to ask it, what it may cost."""
    url = (
        "the endpoint, or the file that describes it (endpoint.json, .toml); its key is read "
        "from PGN_API_KEY"
    )
    names = "huggingface, oip, kserve-v1, vertex, sagemaker, torchserve, openai, custom, ..."
    labels = "its labels, or those to ask for: A,B,C or a file, one per line or a JSON list"
    if positional:
        parser.add_argument("url", metavar="URL|FILE", help=url)
    else:
        parser.add_argument("--url", required=True, metavar="URL|FILE", help=url)
    parser.add_argument(
        "--protocol", default="auto", metavar="NAME", help=f"auto, pgn, {names} (auto)"
    )
    parser.add_argument("--model", help="the model's name, where the endpoint hosts several")
    parser.add_argument("--source-labels", metavar="A,B,C|FILE", help=labels)
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="in all, for one image (30)"
    )
    parser.add_argument("--max-retries", type=int, default=4, metavar="N", help="for one image (4)")
    parser.add_argument(
        "--max-concurrency", type=int, default=8, metavar="N", help="requests at the same time (8)"
    )
    parser.add_argument("--requests-per-second", type=float, metavar="R", help="at most (no limit)")
    parser.add_argument(
        "--bytes-per-second", type=float, metavar="R", help="of request bodies, at most (no limit)"
    )
    parser.add_argument(
        "--budget",
        type=int,
        metavar="N",
        help="send at most N images, retries included; see --ledger (no limit)",
    )
    parser.add_argument(
        "--price-per-image", type=float, metavar="PRICE", help="to tell costs, in any currency"
    )
    parser.add_argument(
        "--ledger", type=Path, metavar="FILE", help="what was spent, so that --budget holds over "
                                                    "all runs with it, "
        "also after crashes (with --budget: JOURNAL.ledger.sqlite beside a journal, or else beside "
        "--cache)",
    )  # fmt: skip
    answers = parser.add_mutually_exclusive_group()
    answers.add_argument(
        "--cache", type=Path, metavar="FILE", help="recorded answers, so that nothing is paid "
                                                   "twice; holds 8 images "
        "as they were sent (see drift)",
    )  # fmt: skip
    answers.add_argument(
        "--replay", type=Path, metavar="FILE", help="answer from a --cache alone; nothing is sent"
    )
    add_network_options(parser)


def connect(
    args: argparse.Namespace, adapter: Adapter | None, *, journal: str | None = None, **fusion: Any
) -> AdaptedClient:
    """Open a client for what ``add_endpoint_options`` has read.

    Args:
        args: its options.
        adapter: what images are sent through.
        journal: the file beside which a budget is kept, where no ledger is named.
        **fusion: further options of the client.
    """
    from pgn_client.wire.cache import AnswerCache
    from pgn_client.wire.client import AdaptedClient

    cache, ledger = args.cache, args.ledger
    if ledger is None and args.budget is not None and (journal or cache):
        ledger = Path(f"{journal or cache}.ledger.sqlite")
    if getattr(args, "dry_run", False):  # leaves no file behind
        cache, ledger = cache if cache and cache.exists() else None, None
    return AdaptedClient(
        args.url,
        adapter,
        protocol=args.protocol,
        model=args.model,
        timeout=args.timeout,
        max_retries=args.max_retries,
        max_concurrency=args.max_concurrency,
        requests_per_second=args.requests_per_second,
        bytes_per_second=args.bytes_per_second,
        budget=args.budget,
        price_per_image=args.price_per_image,
        ledger=ledger,
        cache=AnswerCache(args.replay, replay=True) if args.replay else cache,
        http=http_options(args),
        labels=None if args.source_labels is None else source_labels(args.source_labels),
        **fusion,
    )


def source_labels(text: str) -> list[str]:
    """Read ``--source-labels``: names with commas between, or a file with one per line or a JSON
    list.

    Raises:
        ConfigurationError: the file holds neither.
    """
    try:
        is_file = Path(text).is_file()
        content = Path(text).read_text(encoding="utf-8").strip() if is_file else ""
        labels = (
            json.loads(content)
            if content.startswith("[")
            else content.splitlines()
            if is_file
            else text.split(",")
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--source-labels: {text}: cannot be read ({error})") from error
    if not all(isinstance(label, str) for label in labels):
        raise ConfigurationError(
            f"--source-labels: {text}: got other values in its list, expected texts"
        )
    return [label.strip() for label in labels if label.strip()]


def add_profile_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--profile``, for a checkpoint that knows its own."""
    help = (
        "the server's resize and crop, where it is not the one of the training (the checkpoint's)"
    )
    parser.add_argument("--profile", metavar="P", help=help)


def add_endpoint_file(parser: argparse.ArgumentParser) -> None:
    """Add ``--endpoint``, for commands that send nothing."""
    help = "endpoint.json of pgn probe: what the server does to images"
    parser.add_argument("--endpoint", metavar="FILE", help=help)


def profile_of(args: argparse.Namespace) -> str | None:
    """Return the server profile that is named, or that the endpoint's file tells."""
    where = getattr(args, "url", None) or args.endpoint
    return args.profile or (Endpoint.open(where).found.profile if where else None)


def load_adapter(path: str | Path, profile: str | None) -> PromptAdapter:
    """Load a checkpoint, for another server profile where one is named.

    Raises:
        ConfigurationError: the profile cannot be read.
        CheckpointError: the checkpoint cannot be used.
    """
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.types import ServerProfile

    adapter = PromptAdapter.load(path)
    return adapter.with_profile(ServerProfile.parse(profile)) if profile else adapter


def parse_fusion(text: str) -> Any:
    """Read ``--fusion``.

    Raises:
        ConfigurationError: neither auto, none nor a number.
    """
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(
            f"--fusion: got {text!r}, expected auto, none, or a number in [0, 1]"
        ) from None


def make_folder(path: Path) -> None:
    """Make the folder of ``--out``, where it is not there yet.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"--out: got {path}, expected a folder that can be made ({error.strerror})"
        ) from error


def to_json(value: Any) -> str:
    """Return a whole result as ``--json`` prints it."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def require(what: str, extra: str, *modules: str) -> None:
    """Name the missing extra before a long import fails half-way.

    Raises:
        MissingDependencyError: one of the modules is not installed.
    """
    if any(find_spec(module) is None for module in modules):
        raise MissingDependencyError(what, extra)
