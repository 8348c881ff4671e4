"""``pgn endpoints``: ready endpoint files for well-known services."""

from __future__ import annotations

import argparse

from pgn_client.cli.console import tell
from pgn_client.cli.options import OK, Subparsers, command
from pgn_client.errors import ConfigurationError
from pgn_client.wire.endpoint import READY


def add_endpoints(commands: Subparsers) -> None:
    """Add the subcommand ``pgn endpoints``, which lists and prints ready endpoint files."""
    p = command(
        commands,
        "endpoints",
        run_endpoints,
        "list the ready endpoint files for well-known services, or print one",
        "pgn endpoints show google-vision > google.toml",
    )
    p.add_argument(
        "action", nargs="?", choices=["list", "show"], default="list", help="default list"
    )
    p.add_argument("name", nargs="?", metavar="NAME", help="name of the file to show")


def run_endpoints(args: argparse.Namespace) -> int:
    """List the ready endpoint files, or print one; return the exit status."""
    files = {file.stem: file.read_text(encoding="utf-8") for file in READY.glob("*.toml")}
    if args.action == "show":
        if args.name not in files:
            raise ConfigurationError(
                f"NAME: got {args.name}, expected one of {', '.join(sorted(files))}"
            )
        tell(files[args.name].rstrip("\n"))
        return OK

    width = max(map(len, files))
    for name, text in sorted(files.items()):
        # The first line of each file is a comment that names the service.
        tell(f"{name:<{width}}  {text.splitlines()[0].removeprefix('# ')}")
    return OK
