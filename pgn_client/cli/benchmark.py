"""``pgn benchmark``: measure several methods over HTTP, and print one table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import talk, tell
from pgn_client.cli.data import add_failure_rate, look_at, open_data
from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_surrogate_options,
    command,
    load_surrogate,
    make_folder,
    require,
    to_json,
)
from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from pgn_client.imaging.findings import Findings
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.wire.client import AdaptedClient

DEFAULT_METHODS = ("pgn", "input_independent", "padding", "no_prompt")
"""Methods that ``pgn benchmark`` measures by default.

Against ``no_prompt``, ``pgn`` shows whether a prompt helps at all. Against ``input_independent``
and ``padding``, it shows whether a prompt for each image helps more than one prompt for all images.
"""


def add_benchmark(commands: Subparsers) -> None:
    """Add the subcommand ``pgn benchmark``, which compares several methods over HTTP."""
    example = (
        "pgn benchmark digits/ photos/:flip --methods pgn padding --seeds 0 1 --shots 16 "
        "--out bench/"
    )
    p = command(
        commands,
        "benchmark",
        run_benchmark,
        "measure methods on image sets over HTTP, and print one table",
        example,
    )
    p.add_argument(
        "data",
        nargs="+",
        metavar="DATA[:AUGMENT]",
        help="image sets: folders as for pgn train, each with the --augment that its images allow "
        "(default shift)",
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for runs and tables; runs that exist there are not repeated",
    )
    p.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT_METHODS),
        metavar="METHOD[@PRESET]",
        help="methods to measure, METHOD or METHOD@PRESET such as pgn@small: pgn "
        "input_independent padding masked low_rank blend no_prompt grey_frame, and the white boxes "
        "padding_published vpt_shallow vpt_deep expres fine_tune (default "
        + " ".join(DEFAULT_METHODS)
        + ")",
    )
    p.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="seeds for the draw of the images and for the training (default 0)",
    )
    p.add_argument(
        "--shots",
        nargs="+",
        default=["all"],
        metavar="N",
        help="numbers of training images per class, or all (default all)",
    )
    p.add_argument(
        "--train",
        type=int,
        metavar="N",
        help="largest number of training images of a set (default all)",
    )
    p.add_argument(
        "--val",
        type=int,
        metavar="N",
        help="largest number of validation images of a set (default all)",
    )
    p.add_argument(
        "--test",
        type=int,
        metavar="N",
        help="largest number of test images of a set, the same ones for all seeds (default all)",
    )
    p.add_argument("--epochs", type=int, help="epochs of every training (default the preset's)")
    p.add_argument(
        "--layout",
        help="layout of methods with prompt cells: ring, corner or rows:N (default the method's)",
    )
    p.add_argument(
        "--url",
        help="URL of the endpoint (default a mock server that is started and hosts the surrogate)",
    )
    p.add_argument(
        "--profile",
        help="the endpoint's resize and crop: direct (a resize to its input size alone), "
        "resize_crop:RESIZE:CROP, shortest_edge:SIDE or "
        "letterbox:SIDE (default the surrogate's own)",
    )
    add_surrogate_options(p, "bundled")
    add_failure_rate(p, "nothing is sent")
    p.add_argument("--json", action="store_true", help="print the tables as JSON on stdout")


def run_benchmark(args: argparse.Namespace) -> int:
    """Measure what no earlier run has measured, print the table, and return the exit status."""
    require("benchmarks", "all", "torch", "timm", "scipy", "fastapi", "matplotlib")
    from pgn_client.evaluation.benchmark import Bench, Plan, draw, markdown, missing_rows, summarise
    from pgn_client.evaluation.benchmark.runs import TEST_SEED
    from pgn_client.imaging.files import write_whole
    from pgn_client.types import ServerProfile

    sets: dict[str, Path] = {}
    augment: dict[str, str] = {}
    for text in args.data:
        # Without a colon, rpartition() would take the whole text for the augmentation.
        folder, _, augmentation = text.rpartition(":") if ":" in text else (text, "", "")
        # Resolved, because a path such as "." or ".." has no name of its own.
        name = Path(folder).resolve().name
        sets[name] = Path(folder)
        augment[name] = augmentation or "shift"
    if len(sets) < len(args.data):
        raise ConfigurationError(
            "DATA: got two folders with the same name, expected different names; rename one"
        )
    plan = Plan(
        sets,
        tuple(args.methods),
        seeds=tuple(args.seeds),
        shots=tuple(_shots(text) for text in args.shots),
        augment=augment,
        epochs=args.epochs,
        layout=args.layout,
        train=args.train,
        val=args.val,
        test=args.test,
    ).checked()

    make_folder(args.out)
    surrogate = load_surrogate(args, args.backbone)
    profile = ServerProfile.parse(args.profile) if args.profile else None
    missing = any(missing_rows(args.out, cell, plan) for cell in plan.cells())
    found: list[Findings] = []
    if missing:
        read = {name: open_data(path, args.max_failure_rate) for name, path in sets.items()}
        found = [look_at(data, seed=TEST_SEED, without_copies=True) for data in read.values()]
        plan = replace(plan, sets=read)
    # A finished benchmark only prints its tables, for which no server has to start.
    with _endpoint(args) if missing else nullcontext("") as url:
        # Answers of a real endpoint are recorded, because they cost money; those of the mock server
        # are free.
        connect = partial(_client, url, args.out / "answers.sqlite" if args.url else None)
        server = Endpoint.open(args.url).mark if args.url else "mock server"
        Bench(
            plan,
            args.out,
            surrogate,
            connect,
            server,
            profile,
            talk,
            progress=True,
        ).run()

    summaries = [
        summarise(args.out, list(sets), plan.methods, args.seeds, shots) for shots in plan.shots
    ]
    text = json.dumps([summary.to_json() for summary in summaries], indent=1, ensure_ascii=False)
    write_whole(args.out / "table.json", (text + "\n").encode())
    write_whole(args.out / "table.md", markdown(summaries).encode())
    for summary in summaries:
        draw(summary, args.out / f"table-{summary.shots or 'all'}.png")

    data = [summary.to_json() for summary in summaries]
    tell(to_json(data) if args.json else markdown(summaries))
    talk(f"saved: {args.out / 'table.md'}, table.json, table-*.png")
    for findings in found:
        talk(findings.summary())
    return OK


def _shots(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"--shots: got {text!r}, expected all or a number of at least 1")
    return int(text)


@contextmanager
def _endpoint(args: argparse.Namespace) -> Iterator[str]:
    """Yield the URL of the endpoint: ``--url``, or a mock server that hosts the local model."""
    if args.url:
        yield args.url
        return
    from pgn_client.evaluation.demo import local_server

    options = {
        "--model": args.backbone,
        "--weights": args.weights,
        "--labels": args.labels,
        "--profile": args.profile,
    }
    arguments: list[str] = []
    for name, value in options.items():
        if value:
            arguments += [name, str(value)]
    with local_server(arguments) as url:
        talk(f"a mock server hosts the surrogate at {url}")
        yield url


def _client(url: str, cache: Path | None, adapter: PromptAdapter | None) -> AdaptedClient:
    """Open a client that sends images with an adapter's prompts, or raw ones without an adapter."""
    from pgn_client.wire.client import AdaptedClient

    return AdaptedClient(url, adapter, cache=cache)
