"""``pgn predict``: classify images through an endpoint, with or without a checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import Failures, talk, tell, tell_records
from pgn_client.cli.data import add_failure_rate, add_sources, talk_status, talk_summary
from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_endpoint_options,
    add_profile_option,
    command,
    connect,
    parse_fusion,
    profile_of,
)
from pgn_client.cli.plan import add_dry_run, plan
from pgn_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pgn_client.wire.client import AdaptedClient
    from pgn_client.wire.folders import FileResult


def add_predict(commands: Subparsers) -> None:
    """Add the subcommand ``pgn predict``, which classifies images through an endpoint."""
    example = (
        "pgn predict photos/ --url http://127.0.0.1:8000 --ckpt digits.safetensors --out "
        "predictions.jsonl"
    )
    p = command(
        commands,
        "predict",
        run_predict,
        "classify images through the endpoint; the same command resumes an interrupted run",
        example,
    )
    add_sources(p)
    add_endpoint_options(p)
    p.add_argument(
        "--ckpt",
        metavar="CKPT",
        help="checkpoint that adapts the images (default none: images are sent raw)",
    )
    add_profile_option(p)
    p.add_argument(
        "--out",
        metavar="FILE",
        help="path of the JSON Lines journal to write, or - for stdout (default "
        "predictions.jsonl, or - for a single image)",
    )
    p.add_argument(
        "--fusion",
        default="auto",
        help="weight α of the local head in [0, 1]; auto takes the checkpoint's, none turns the "
        "local head off (default auto)",
    )
    p.add_argument(
        "--query-below",
        type=float,
        metavar="τ",
        help="classify an image locally, without sending it, if the local head's top probability "
        "is at least τ (default none: all images are sent)",
    )
    add_failure_rate(p, "the exit status is 1")
    add_dry_run(p)
    p.add_argument(
        "--json",
        action="store_true",
        help="print one JSON line per image on stdout, also on a terminal and with --out FILE",
    )


def run_predict(args: argparse.Namespace) -> int:
    """Classify an image, a list of images or a folder, and return the exit status."""
    from pgn_client.imaging.reader import scan
    from pgn_client.prompting.adapter import load

    found = scan(args.source)
    out = args.out or ("-" if len(found.files) == 1 else "predictions.jsonl")
    if args.profile and not args.ckpt:
        raise ConfigurationError(
            "--profile: got it without --ckpt, expected both; raw images need no profile, so leave "
            "it out"
        )
    adapter = load(args.ckpt, profile_of(args)) if args.ckpt else None
    options = {"fusion": parse_fusion(args.fusion), "query_below": args.query_below}
    with connect(args, adapter, journal=None if out == "-" else out, **options) as client:
        if args.dry_run:
            return _dry_run(client, found.files, None if out == "-" else out, args)
        if out == "-":
            as_json = args.json or not sys.stdout.isatty()
            failures = _to_stdout(client, found.files, as_json)
        else:
            failures = _to_journal(client, found.files, out, args.json)
    status = talk_status(failures, len(found.files), args.max_failure_rate)
    talk_summary(found, failures)
    return status


def _to_journal(client: AdaptedClient, files: Sequence[Path], out: str, as_json: bool) -> Failures:
    """Write predictions to a journal, a JSON Lines file; return the images that failed."""
    from tqdm import tqdm

    from pgn_client.wire.folders import predict_files

    resumed = 0
    # None hides the bar where stderr is no terminal.
    bar = tqdm(total=len(files), unit="img", disable=None)

    def results() -> Iterator[FileResult]:
        nonlocal resumed
        with bar:
            for result in predict_files(client, files, out):
                resumed += result.resumed
                bar.update()
                yield result

    # A plain print would tear the progress bar.
    failures = Failures(lambda text: bar.write(text, file=sys.stderr))
    failed = tell_records(results(), as_json=as_json, failures=failures)
    talk(
        f"{out}: {failures.succeeded} predictions ({resumed} of them by an earlier run), "
        f"{failed} failed; {_usage(client)}"
    )
    return failures


def _to_stdout(client: AdaptedClient, files: Sequence[Path], as_json: bool) -> Failures:
    """Print predictions on stdout; return the images that failed."""
    from pgn_client.wire.folders import predict_each

    failures = Failures()
    tell_records(predict_each(client, files), as_json=as_json, people=True, failures=failures)
    return failures


def _usage(client: AdaptedClient) -> str:
    used = client.usage
    # Most providers do not bill what they refuse, so the cost is an upper bound then.
    refused = f", {used.refused} refused" if used.refused else ""
    price = "" if used.cost is None else f", cost {used.cost:g}"
    sent = f"{used.images} images sent in {used.requests} requests ({used.retries} retries)"
    return f"{sent}{refused}{price}"


def _dry_run(
    client: AdaptedClient, files: Sequence[Path], journal: str | None, args: argparse.Namespace
) -> int:
    """Print how many images would be sent; return the exit status.

    Also print the cost, and the time, estimated from the local work on a few images and from one
    request without an image.
    """
    from pgn_client.wire.estimate import estimate

    expected = estimate(client, files, journal)
    total = plan(expected.images, expected.already_answered, expected.seconds, args)
    tell(json.dumps(total))
    return OK
