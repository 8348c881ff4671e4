"""``pgn check``: look at image data before it is used; sends nothing."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pgn_client.cli.console import tell
from pgn_client.cli.data import DATA_HELP, check_files
from pgn_client.cli.options import FAILED, OK, Subparsers, command, to_json
from pgn_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pgn_client.imaging.dataset import Task
    from pgn_client.imaging.findings import Findings, NoTask
    from pgn_client.imaging.reader import Dataset


def add_check(commands: Subparsers) -> None:
    """Add the subcommand ``pgn check``, which reports what is wrong with image data."""
    help = (
        "report what image data hold: used and skipped files, copies, look-alikes, labels; exit "
        "status 1 if something should be looked at"
    )
    p = command(commands, "check", run_check, help, "pgn check digits/")
    p.add_argument("data", metavar="DATA", help=f"{DATA_HELP}; or images without labels")
    p.add_argument(
        "--seed", type=int, default=0, help="seed of the splits that are not given (default 0)"
    )
    p.add_argument("--json", action="store_true", help="print everything as JSON on stdout")


def run_check(args: argparse.Namespace) -> int:
    """Print what image data hold; return 1 if something should be looked at, otherwise 0."""
    from pgn_client.imaging.findings import look_into

    dataset, task, no_task = _read(args.data, args.seed)
    found = look_into(dataset, task, no_task=no_task)
    tell(to_json(found.to_json()) if args.json else _text(dataset, found))
    return FAILED if found.serious else OK


def _read(source: str, seed: int) -> tuple[Dataset, Task | None, NoTask | None]:
    """Return the data set, its task, and why there is no task.

    Raises:
        ConfigurationError: There are no images.
    """
    from pgn_client.imaging.dataset import load_task
    from pgn_client.imaging.findings import NoTask
    from pgn_client.imaging.reader import Dataset, NoLabelsError, scan

    try:
        dataset = check_files(Dataset.read(source))
    except ConfigurationError as error:
        unlabeled = check_files(Dataset.unlabeled(source, scan([source])))
        # Images without labels are no fault; pgn predict takes them.
        return unlabeled, None, NoTask(str(error), not isinstance(error, NoLabelsError))
    try:
        return dataset, load_task(dataset, seed=seed), None
    except ConfigurationError as error:
        return dataset, None, NoTask(str(error), True)


def _text(dataset: Dataset, found: Findings) -> str:
    sizes = ", ".join(f"{name} {size}" for name, size in found.splits.items())
    divided = "" if dataset.is_divided else " (drawn at random)"
    lines = [f"{dataset}: {found.classes} classes; {sizes}{divided}"] if found.splits else []
    for remark in found.remarks:
        lines.append(f"{'warning: ' if remark.serious else 'note: '}{remark.text}")
    return "\n".join([*lines, found.summary()])
