"""Code for several subcommands: exit codes, groups of options, and objects built from options."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
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

# Exit codes.
OK = 0
FAILED = 1
USAGE = 2
BUDGET = 3
INTERRUPTED = 130
Subparsers = Any  # argparse has no public name for this type


def command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a subcommand and return its parser, to which the caller adds arguments.

    Args:
        commands: Subparsers of ``pgn``.
        name: Name of the subcommand.
        run: Function that runs the subcommand and returns the exit status.
        help: Short description, which starts with a small letter and ends without a period.
        example: Example command line.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=f"example: {example}"
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_surrogate_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Add the options of the surrogate, the local copy of the hosted model.

    Args:
        parser: Parser of a subcommand.
        default: Name of the default backbone; ``None`` for the backbone of the checkpoint.
    """
    shown = default or "the checkpoint's"
    parser.add_argument(
        "--backbone",
        default=default,
        metavar="bundled|TIMM_NAME",
        help=f"surrogate, the local copy of the hosted model (default {shown})",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="safetensors file with the surrogate's weights (default the published weights of the "
        "backbone)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="JSON list of the surrogate's class names (default the backbone's own)",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="device of the surrogate; auto uses CUDA if there is a GPU (default auto)",
    )


def load_surrogate(args: argparse.Namespace, name: str, *, new_head: bool = False) -> Backbone:
    """Load the surrogate, the local copy of the hosted model, that the options select.

    Args:
        args: Parsed options.
        name: Name of the backbone; the caller may take it from the checkpoint.
        new_head: Whether to add a classification head of zeros if the backbone has none that fits
            the labels.

    Raises:
        ConfigurationError: There is no such backbone or device, or the labels do not fit.
        CheckpointError: The weights cannot be used.
    """
    import torch

    from pgn_client.surrogate import backbone

    device = args.device
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "--device: got cuda, expected a GPU that torch can use, but it finds none; use cpu or "
            "auto"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return backbone.load(
        name, weights=args.weights, labels=args.labels, device=device, new_head=new_head
    )


def add_endpoint_options(parser: argparse.ArgumentParser, *, positional: bool = False) -> None:
    """Add the options of the endpoint: its URL and protocol, limits, costs and records.

    Args:
        parser: Parser of a subcommand.
        positional: Whether the URL is an argument instead of the option ``--url``.
    """
    url = (
        "URL of the endpoint, a file that describes it (endpoint.json, .toml), or a name of pgn "
        "endpoints; the variable PGN_API_KEY holds its key"
    )
    if positional:
        parser.add_argument("url", metavar="URL|FILE", help=url)
    else:
        parser.add_argument("--url", required=True, metavar="URL|FILE", help=url)
    parser.add_argument(
        "--protocol",
        default="auto",
        metavar="NAME",
        help="wire format of the endpoint: auto, pgn, huggingface, huggingface-zero-shot, "
        "huggingface-features, oip, kserve-v1, vertex, sagemaker, torchserve, openai, "
        "openai-embeddings or custom (default auto)",
    )
    parser.add_argument(
        "--model", help="name of the model, if the endpoint hosts several (default none)"
    )
    parser.add_argument(
        "--source-labels",
        metavar="A,B,C|FILE",
        help="labels of the endpoint, or the labels to request from it: A,B,C, or a file with one "
        "label per line or a JSON list (default the endpoint's own)",
    )

    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time limit for one image, retries included (default 30)",
    )
    parser.add_argument(
        "--max-retries",
        type=int,
        default=4,
        metavar="N",
        help="largest number of retries for one image (default 4)",
    )
    parser.add_argument(
        "--max-concurrency",
        type=int,
        default=8,
        metavar="N",
        help="largest number of requests at the same time (default 8)",
    )
    parser.add_argument(
        "--requests-per-second",
        type=float,
        metavar="R",
        help="largest rate of requests (default no limit)",
    )
    parser.add_argument(
        "--bytes-per-second",
        type=float,
        metavar="R",
        help="largest rate of request bodies, in bytes per second (default no limit)",
    )

    parser.add_argument(
        "--budget",
        type=int,
        metavar="N",
        help="largest number of images to send, retries included; see --ledger (default no limit)",
    )
    parser.add_argument(
        "--price-per-image",
        type=float,
        metavar="PRICE",
        help="price of one image in any currency, to report costs (default none)",
    )
    parser.add_argument(
        "--price-per-hour",
        type=float,
        metavar="PRICE",
        help="price of one hour of an endpoint that is billed by time, in the same currency "
        "(default none)",
    )
    parser.add_argument(
        "--ledger",
        type=Path,
        metavar="FILE",
        help="file that counts the images sent, so that --budget holds over all runs that use it, "
        "even after a crash (default with --budget: the name of the journal, or else of --cache, "
        "and .ledger.sqlite; without --budget none)",
    )

    records = parser.add_mutually_exclusive_group()
    records.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="file that records the answers, so that no image is paid for twice; it also keeps 8 "
        "images for pgn drift (default none)",
    )
    records.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help="file of an earlier --cache; all answers come from it, and nothing is sent (default "
        "none)",
    )
    add_network_options(parser)


def connect(
    args: argparse.Namespace, adapter: Adapter | None, *, journal: str | None = None, **fusion: Any
) -> AdaptedClient:
    """Open a client of the endpoint that the parsed options describe.

    Args:
        args: Parsed options.
        adapter: Adapter that prepares the images; ``None`` sends them raw.
        journal: Path of the journal, the file of predictions; the default ledger, the file that
            counts the images sent, lies in the same folder.
        **fusion: Further arguments of ``AdaptedClient``, such as ``fusion`` and ``query_below``.
    """
    from pgn_client.wire.cache import AnswerCache
    from pgn_client.wire.client import AdaptedClient

    cache = args.cache
    ledger = args.ledger
    if ledger is None and args.budget is not None and (journal or cache):
        ledger = Path(f"{journal or cache}.ledger.sqlite")

    # A dry run must leave no new file behind.
    if getattr(args, "dry_run", False):
        cache = cache if cache and cache.exists() else None
        ledger = None
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
        price_per_hour=args.price_per_hour,
        ledger=ledger,
        cache=AnswerCache(args.replay, replay=True) if args.replay else cache,
        http=http_options(args),
        labels=None if args.source_labels is None else source_labels(args.source_labels),
        **fusion,
    )


def source_labels(text: str) -> list[str]:
    """Return the endpoint's labels, which ``--source-labels`` lists or names a file of.

    Args:
        text: Names separated by commas, or the path of a file with one name per line or a JSON
            list.

    Raises:
        ConfigurationError: The file cannot be read, or its JSON list has other values than strings.
    """
    labels: list[Any] = text.split(",")
    try:
        if _is_file(text):
            content = Path(text).read_text(encoding="utf-8").strip()
            labels = json.loads(content) if content.startswith("[") else content.splitlines()
    # 100,000 brackets exceed the recursion limit.
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"--source-labels: got {text}, which cannot be read ({error}), expected one label per "
            "line or a JSON list; check the file"
        ) from error
    if not all(isinstance(label, str) for label in labels):
        raise ConfigurationError(
            f"--source-labels: got a JSON list in {text} with other values than strings, expected "
            "strings only; put the labels in quotes"
        )
    return [label.strip() for label in labels if label.strip()]


def _is_file(text: str) -> bool:
    """Whether a text is the path of a file; a text too long for a path is not."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def add_checkpoint_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out`` of the commands that write a checkpoint."""
    help = "path of the checkpoint to write, NAME.safetensors"
    parser.add_argument("--out", type=Path, required=True, metavar="CKPT", help=help)


def add_mapping_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--mapping`` of the commands that fit a label mapping."""
    help = (
        "kind of the label mapping: auto, identity, linear, flm or ilm (by frequency), blm or blm+ "
        "(Bayesian, by counting); auto lets the validation images choose (default auto)"
    )
    parser.add_argument("--mapping", default="auto", help=help)


def add_profile_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--profile``, the server's resize and crop, to a command that loads a checkpoint.

    Without the option, the command uses the endpoint file's profile or the checkpoint's.
    """
    help = (
        "the server's resize and crop: direct (a resize to its input size alone), "
        "resize_crop:RESIZE:CROP, shortest_edge:SIDE or letterbox:SIDE "
        "(default the endpoint file's, if there is one, otherwise the checkpoint's)"
    )
    parser.add_argument("--profile", metavar="P", help=help)


def add_endpoint_file(parser: argparse.ArgumentParser) -> None:
    """Add ``--endpoint``, the file that ``pgn probe`` writes, to a command that sends nothing."""
    help = (
        "endpoint file, written by pgn probe; it sets the options about the server that are not "
        "given (default none)"
    )
    parser.add_argument("--endpoint", metavar="FILE", help=help)


def profile_of(args: argparse.Namespace) -> str | None:
    """Return the server's resize and crop from ``--profile``, or else from the endpoint file.

    Returns:
        Server profile, such as ``resize_crop:256:224``; ``None`` if neither has one.
    """
    where = getattr(args, "url", None) or args.endpoint
    return args.profile or (Endpoint.open(where).found.profile if where else None)


def load_adapter(path: str | Path, profile: str | None) -> PromptAdapter:
    """Load a checkpoint as an adapter, which puts its prompts into images.

    Args:
        path: Path of the checkpoint.
        profile: Server's resize and crop, such as ``resize_crop:256:224``; ``None`` for the
            checkpoint's own.

    Raises:
        ConfigurationError: The profile cannot be read.
        CheckpointError: The checkpoint cannot be used.
    """
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.types import ServerProfile

    adapter = PromptAdapter.load(path)
    return adapter.with_profile(ServerProfile.parse(profile)) if profile else adapter


def parse_fusion(text: str) -> Any:
    """Return the value of ``--fusion``, the weight of the local head against the endpoint.

    Returns:
        ``"auto"`` for the checkpoint's weight, ``None`` for no local head, or the weight.

    Raises:
        ConfigurationError: The text is neither auto, none nor a number.
    """
    if text in ("auto", "none"):
        return "auto" if text == "auto" else None
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(
            f"--fusion: got {text!r}, expected auto, none or a number in [0, 1]"
        ) from None


def make_folder(path: Path) -> None:
    """Create the folder of ``--out``, if it does not exist yet.

    Raises:
        ConfigurationError: The folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"--out: got {path}, expected a folder that can be created ({error.strerror}); choose "
            "another"
        ) from error


def to_json(value: Any) -> str:
    """Return a result as the text that ``--json`` prints: exact on a stdout of any encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    takes_everything = codecs.lookup(encoding).name.startswith("utf")
    return json.dumps(value, indent=1, ensure_ascii=not takes_everything)


def require(what: str, extra: str, *modules: str) -> None:
    """Check that an extra, a group of optional packages, is installed.

    Args:
        what: Feature that needs the extra, for the message.
        extra: Name of the extra.
        *modules: Modules of the extra.

    Raises:
        MissingDependencyError: One of the modules is not installed.
    """
    if any(find_spec(module) is None for module in modules):
        raise MissingDependencyError(what, extra)
