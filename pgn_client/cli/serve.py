"""``pgn serve``: run the mock server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pgn_client.cli.console import complain
from pgn_client.cli.options import OK, USAGE, Subparsers, command, require
from pgn_client.errors import MissingDependencyError


def add_serve(commands: Subparsers) -> None:
    """Add ``pgn serve`` to ``--help``; the mock server parses the arguments of the command."""
    command(
        commands,
        "serve",
        # Never called, because main() takes over before the arguments are parsed.
        lambda _: OK,
        "run the mock server (python -m mock_server)",
        "pgn serve --port 8000",
    )


def run_serve(arguments: Sequence[str]) -> int:
    """Run the mock server, ``python -m mock_server``, in place of this process.

    Args:
        arguments: Arguments of the mock server.

    Returns:
        Exit status, if the server cannot run; otherwise the function does not return.
    """
    try:
        require("the mock server", "server", "fastapi", "uvicorn", "torch", "timm")
    except MissingDependencyError as error:
        return complain(error, USAGE)
    os.execv(sys.executable, [sys.executable, "-m", "mock_server", *arguments])
