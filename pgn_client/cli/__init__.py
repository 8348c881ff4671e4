"""The command ``pgn``: one ``add_`` and one ``run_`` function per subcommand.

Heavy packages are imported inside the ``run_`` functions only, so ``--help`` loads none of them.

Results go to stdout, progress and errors to stderr. Files are written before anything is printed,
so a failing terminal loses none. Exit status: see ``STATUSES``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pgn_client.cli.adapt import add_adapt
from pgn_client.cli.benchmark import add_benchmark
from pgn_client.cli.check import add_check
from pgn_client.cli.console import (
    complain,
    settled,
    show_log,
    standard_streams,
    talk,
    use_options,
)
from pgn_client.cli.demo import add_demo
from pgn_client.cli.drift import add_drift
from pgn_client.cli.endpoints import add_endpoints
from pgn_client.cli.evaluate import add_evaluate
from pgn_client.cli.fidelity import add_retain
from pgn_client.cli.import_published import add_import
from pgn_client.cli.inspect import add_inspect
from pgn_client.cli.map import add_map
from pgn_client.cli.options import BUDGET, FAILED, INTERRUPTED, OK, USAGE
from pgn_client.cli.predict import add_predict
from pgn_client.cli.probe import add_probe
from pgn_client.cli.serve import add_serve, run_serve
from pgn_client.cli.train import add_train
from pgn_client.errors import (
    BudgetExceededError,
    ConfigurationError,
    EndpointError,
    ImageError,
    PGNError,
    reason,
)
from pgn_client.version import __version__

__all__ = ["BUDGET", "FAILED", "INTERRUPTED", "OK", "USAGE", "build_parser", "main"]

STATUSES = (
    "exit status: 0 success; 1 more images failed than --max-failure-rate allows, the endpoint "
    "failed, results for stdout were lost, or check or drift found something; 2 usage or "
    "configuration; 3 the budget is spent; 130 interrupted. Journals, recorded answers and the "
    "best checkpoint so far are kept."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``pgn`` and return its exit status.

    Args:
        argv: Arguments after ``pgn``; ``None`` for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    # The mock server parses its own arguments, and `--help` too.
    if arguments[:1] == ["serve"]:
        return run_serve(arguments[1:])

    with standard_streams() as out:
        try:
            return settled(out, _run(arguments))
        # argparse ends so after --help, and after a wrong option.
        except SystemExit as end:
            raise SystemExit(settled(out, end.code if isinstance(end.code, int) else OK)) from None


def _run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit status, after a message if it failed."""
    args = build_parser().parse_args(arguments)
    use_options(args.parser)
    try:
        if any("\0" in argument for argument in arguments):
            raise ConfigurationError("arguments: got one with a zero byte, expected text")
        show_log()
        status: int = args.run(args)
        return status
    except BudgetExceededError as error:
        return complain(error, BUDGET)
    except (EndpointError, ImageError) as error:
        return complain(error, FAILED)
    except PGNError as error:
        return complain(error, USAGE)
    # A path that the system refuses where nothing else has named it: too long, or not readable.
    except OSError as error:
        path = f"{error.filename!s:.200}: " if error.filename else ""
        return complain(ConfigurationError(f"{path}{reason(error)}; give another path"), USAGE)
    except KeyboardInterrupt:
        talk("interrupted; what was saved before is kept")
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command ``pgn`` with all its subcommands."""
    parser = argparse.ArgumentParser(
        prog="pgn",
        description="Adapt a hosted vision model that you can only reach by URL: prompts are added "
        "to the images on this machine, and a label mapping turns the model's scores into your "
        "classes.",
        epilog=STATUSES,
    )
    parser.add_argument("--version", action="version", version=f"pgn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    # In the order of --help: the everyday commands first.
    everyday = (add_demo, add_serve, add_train, add_adapt, add_predict, add_evaluate)
    for add in (
        *everyday,
        add_check,
        add_benchmark,
        add_endpoints,
        add_probe,
        add_map,
        add_drift,
        add_inspect,
        add_retain,
        add_import,
    ):
        add(commands)
    for subparser in commands.choices.values():
        _mark_required(subparser)
    return parser


def _mark_required(parser: argparse.ArgumentParser) -> None:
    """Add "(required)" to the help of the options that a command cannot do without."""
    for action in parser._actions:
        if action.required and action.option_strings:
            action.help = f"{action.help} (required)"
