"""The command ``pgn``: one ``add_`` and one ``run_`` per subcommand; heavy imports only inside
``run_``.

Results go to stdout, progress and errors to stderr. Exit 0 all fine, 1 some items failed or the
endpoint did, 2 usage or configuration, 130 interrupted (journals and the best checkpoint so far are
kept).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pgn_client.cli.benchmark import add_benchmark
from pgn_client.cli.console import complain, show_log, talk
from pgn_client.cli.drift import add_drift
from pgn_client.cli.fidelity import add_retain
from pgn_client.cli.map import add_map
from pgn_client.cli.options import FAILED, INTERRUPTED, OK, USAGE
from pgn_client.cli.predict import add_adapt, add_inspect, add_predict
from pgn_client.cli.probe import add_probe
from pgn_client.cli.published import add_import
from pgn_client.cli.serve import add_demo, add_serve, run_serve
from pgn_client.cli.train import add_evaluate, add_train
from pgn_client.errors import EndpointError, ImageError, PGNError
from pgn_client.version import __version__

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pgn`` with arguments (default: the process's); return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        return run_serve(arguments[1:])
    args = build_parser().parse_args(arguments)
    try:
        show_log()
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
        prog="pgn",
        description="Adapt a vision API that you cannot touch: prompts made here, "
        "answers made there.",
    )
    parser.add_argument("--version", action="version", version=f"pgn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    everyday = (add_demo, add_serve, add_train, add_adapt, add_predict, add_evaluate)
    for add in (
        *everyday,
        add_benchmark,
        add_probe,
        add_map,
        add_drift,
        add_inspect,
        add_retain,
        add_import,
    ):
        add(commands)
    return parser
