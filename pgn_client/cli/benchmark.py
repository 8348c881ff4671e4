"""``pgn benchmark``: one table of methods, over HTTP."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import talk, tell
from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_surrogate_options,
    command,
    load_surrogate,
    make_folder,
    require,
)
from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from pgn_client.prompting.adapter import PromptAdapter
    from pgn_client.wire.client import AdaptedClient

DEFAULT_METHODS = ("pgn", "input_independent", "padding", "no_prompt")


def add_benchmark(commands: Subparsers) -> None:
    """``pgn benchmark``."""
    example = (
        "pgn benchmark digits/ photos/:flip --methods pgn padding --seeds 0 1 --shots 16 "
        "--out bench/"
    )
    p = command(
        commands,
        "benchmark",
        run_benchmark,
        "measure methods on sets over HTTP, as one table",
        example,
    )
    p.add_argument(
        "data",
        nargs="+",
        metavar="DATA[:AUGMENT]",
        help="folders as for train; AUGMENT as of train (shift)",
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="runs and tables go here; what is there is kept",
    )
    p.add_argument(
        "--methods", nargs="+", default=list(DEFAULT_METHODS), metavar="METHOD[@PRESET]",
        help="for example pgn pgn@small input_independent padding masked low_rank blend no_prompt "
             "grey_frame; white "
        "box: padding_published vpt_shallow vpt_deep expres "
        "fine_tune (" + " ".join(DEFAULT_METHODS) + ")",
    )  # fmt: skip
    p.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="of shots, limits and training (0)",
    )
    p.add_argument(
        "--shots",
        nargs="+",
        default=["all"],
        metavar="N",
        help="training images per class, or all (all)",
    )
    p.add_argument(
        "--train", type=int, metavar="N", help="at most N training images of a set (all)"
    )
    p.add_argument("--val", type=int, metavar="N", help="at most N validation images (all)")
    p.add_argument(
        "--test",
        type=int,
        metavar="N",
        help="at most N test images, the same for all seeds (all)",
    )
    p.add_argument("--epochs", type=int, help="of every training (the preset's)")
    p.add_argument("--layout", help="of methods with prompt cells (their own)")
    p.add_argument("--url", help="the endpoint (a mock server of the surrogate is started)")
    p.add_argument("--profile", help="the endpoint's resize and crop (the surrogate's own)")
    add_surrogate_options(p, "bundled")
    p.add_argument("--json", action="store_true", help="the tables as JSON on stdout")


def run_benchmark(args: argparse.Namespace) -> int:
    """Do the runs that are missing, and print the table."""
    require("benchmarks", "all", "torch", "timm", "scipy", "fastapi", "matplotlib")
    from pgn_client.evaluation.benchmark import Bench, Plan, draw, markdown, missing_rows, summarise
    from pgn_client.types import ServerProfile

    folders = [text.rpartition(":") if ":" in text else (text, "", "") for text in args.data]
    sets = {Path(folder).resolve().name: Path(folder) for folder, _, _ in folders}
    if len(sets) < len(folders):
        raise ConfigurationError(
            "benchmark: got two folders of one name, expected names that differ; rename one"
        )
    plan = Plan(
        sets,
        tuple(args.methods),
        seeds=tuple(args.seeds),
        shots=tuple(_shots(text) for text in args.shots),
        augment={Path(folder).resolve().name: augment or "shift" for folder, _, augment in folders},
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
    with _endpoint(args) if missing else nullcontext("") as url:
        connect = partial(_client, url, args.out / "answers.sqlite" if args.url else None)
        where = Endpoint.open(args.url).mark if args.url else "mock server"
        Bench(
            plan,
            args.out,
            surrogate,
            connect,
            where,
            profile,
            talk,
            progress=True,
        ).run()
    summaries = [
        summarise(args.out, list(sets), plan.methods, args.seeds, shots) for shots in plan.shots
    ]
    text = json.dumps([s.to_json() for s in summaries], indent=1, ensure_ascii=False)
    (args.out / "table.json").write_text(text + "\n", encoding="utf-8")
    (args.out / "table.md").write_text(markdown(summaries), encoding="utf-8")
    for summary in summaries:
        draw(summary, args.out / f"table-{summary.shots or 'all'}.png")
    tell(text if args.json else markdown(summaries))
    talk(f"written: {args.out / 'table.md'}, table.json, table-*.png")
    return OK


def _shots(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"--shots: got {text!r}, expected all or a number of at least 1")
    return int(text)


@contextmanager
def _endpoint(args: argparse.Namespace) -> Iterator[str]:
    """The endpoint's URL: the one given, or that of a mock server that hosts the surrogate."""
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
    with local_server(
        [str(x) for name, value in options.items() if value for x in (name, value)]
    ) as url:
        talk(f"the surrogate is hosted at {url}")
        yield url


def _client(url: str, cache: Path | None, adapter: PromptAdapter | None) -> AdaptedClient:
    from pgn_client.wire.client import AdaptedClient

    return AdaptedClient(url, adapter, cache=cache)
