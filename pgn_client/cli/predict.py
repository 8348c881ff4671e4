"""``pgn adapt``, ``pgn predict`` and ``pgn inspect``: the use of a checkpoint that is there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import talk, tell, tell_records
from pgn_client.cli.options import (
    FAILED,
    OK,
    Subparsers,
    add_endpoint_file,
    add_endpoint_options,
    add_profile_option,
    command,
    connect,
    load_adapter,
    parse_fusion,
    profile_of,
    to_json,
)
from pgn_client.cli.plan import add_dry_run, plan
from pgn_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pgn_client.wire.client import AdaptedClient
    from pgn_client.wire.journal import Record


def add_adapt(commands: Subparsers) -> None:
    """``pgn adapt``."""
    example = "pgn adapt photos/ adapted/ --ckpt digits.safetensors"
    p = command(
        commands,
        "adapt",
        run_adapt,
        "write the images that would be sent, as PNG; no network",
        example,
    )
    p.add_argument(
        "source", metavar="IN", help="folder, image, list file, or - for a list on stdin"
    )
    p.add_argument(
        "target", metavar="OUT", help="folder for the adapted images; the tree is mirrored"
    )
    p.add_argument("--ckpt", required=True, metavar="CKPT")
    add_profile_option(p)
    add_endpoint_file(p)
    p.add_argument("--json", action="store_true", help="one JSON line per image on stdout")


def run_adapt(args: argparse.Namespace) -> int:
    """Adapt a folder; what is there already is left alone."""
    from pgn_client.wire.folders import adapt_files

    adapter = load_adapter(args.ckpt, profile_of(args))
    done = failed = skipped = 0
    for result in adapt_files(adapter, args.source, args.target):
        done, skipped, failed = (
            done + 1,
            skipped + result.skipped,
            failed + (result.error is not None),
        )
        error = None if result.error is None else str(result.error)
        if error is not None:
            talk(f"error: {result.source}: {error}")
        if args.json:
            tell(
                json.dumps(
                    {"path": str(result.source), "adapted": str(result.target), "error": error}
                )
            )
        elif error is None:
            tell(str(result.target))
    talk(f"{done - failed} adapted ({skipped} of them before), {failed} failed")
    return FAILED if failed else OK


def add_predict(commands: Subparsers) -> None:
    """``pgn predict``."""
    example = (
        "pgn predict photos/ --url http://127.0.0.1:8000 --ckpt digits.safetensors --out "
        "predictions.jsonl"
    )
    p = command(
        commands, "predict", run_predict, "classify images through the endpoint; resumes", example
    )
    p.add_argument(
        "source", metavar="IN", help="folder, image, list file, or - for a list on stdin"
    )
    add_endpoint_options(p)
    p.add_argument("--ckpt", metavar="CKPT", help="without it images are sent as they are")
    add_profile_option(p)
    p.add_argument(
        "--out",
        metavar="FILE",
        help="JSON Lines journal, or - for stdout (predictions.jsonl; one image: -)",
    )
    p.add_argument(
        "--fusion",
        default="auto",
        help="α of the local head: auto (the card's), none, or a number (auto)",
    )
    p.add_argument(
        "--query-below",
        type=float,
        metavar="τ",
        help="answer locally where the local head is this sure",
    )
    add_dry_run(p)
    p.add_argument("--json", action="store_true", help="JSON lines on stdout, also on a terminal")


def run_predict(args: argparse.Namespace) -> int:
    """Classify an image, a list or a folder."""
    from pgn_client.imaging.files import find_images
    from pgn_client.prompting.adapter import load

    files = find_images(args.source)
    out = args.out or ("-" if len(files) == 1 else "predictions.jsonl")
    if args.profile and not args.ckpt:
        raise ConfigurationError(
            "--profile: got one without --ckpt; images that are sent as they are have no margin"
        )
    adapter = load(args.ckpt, profile_of(args)) if args.ckpt else None
    options = {"fusion": parse_fusion(args.fusion), "query_below": args.query_below}
    with connect(args, adapter, journal=None if out == "-" else out, **options) as client:
        if args.dry_run:
            return _dry_run(client, files, None if out == "-" else out, args)
        as_json = args.json or not sys.stdout.isatty()
        return (
            _to_stdout(client, files, as_json)
            if out == "-"
            else _to_journal(client, files, out, args.json)
        )


def _to_journal(client: AdaptedClient, files: Sequence[Path], out: str, as_json: bool) -> int:
    from tqdm import tqdm

    from pgn_client.wire.folders import predict_files

    resumed, bar = 0, tqdm(total=len(files), unit="img", disable=None)

    def records() -> Iterator[Record]:
        nonlocal resumed
        with bar:
            for result in predict_files(client, files, out):
                resumed += result.resumed
                bar.update()
                yield result.record

    failed = tell_records(
        records(), as_json=as_json, say=lambda text: bar.write(text, file=sys.stderr)
    )
    done = len(files) - failed
    talk(f"{out}: {done} predictions ({resumed} of them before), {failed} failed; {_usage(client)}")
    return FAILED if failed else OK


def _to_stdout(client: AdaptedClient, files: Sequence[Path], as_json: bool) -> int:
    from pgn_client.wire.folders import predict_records

    return (
        FAILED if tell_records(predict_records(client, files), as_json=as_json, people=True) else OK
    )


def _usage(client: AdaptedClient) -> str:
    used = client.usage
    price = "" if used.cost is None else f", cost {used.cost:g}"
    return f"{used.images} images sent in {used.requests} requests ({used.retries} retries){price}"


def _dry_run(
    client: AdaptedClient, files: Sequence[Path], journal: str | None, args: argparse.Namespace
) -> int:
    """Count what would be sent; time the local work on a few images, and one round trip that
    carries no image.
    """
    from pgn_client.wire.estimate import estimate

    found = estimate(client, files, journal)
    tell(
        json.dumps(plan(found.images, found.already_answered, found.seconds, args.price_per_image))
    )
    return OK


def add_inspect(commands: Subparsers) -> None:
    """``pgn inspect``."""
    p = command(
        commands,
        "inspect",
        run_inspect,
        "print a checkpoint's card",
        "pgn inspect digits.safetensors",
    )
    p.add_argument("ckpt", metavar="CKPT")
    p.add_argument("--json", action="store_true", help="the whole card as JSON")


def run_inspect(args: argparse.Namespace) -> int:
    """Verify a checkpoint and print its card; torch is not needed."""
    from pgn_client.checkpoint import read, summary

    card, _ = read(args.ckpt)
    tell(to_json(card) if args.json else summary(card))
    return OK
