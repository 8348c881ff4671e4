"""How the endpoint is reached: headers, authorities, client certificates, proxies."""

from __future__ import annotations

import argparse
import os
import ssl
from pathlib import Path
from typing import Any

from pgn_client.errors import ConfigurationError


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the connection."""
    group = parser.add_argument_group("connection", "secrets may be given as env:VARIABLE, which "
                                                    "keeps them out of the "
                                      "shell's history; none is ever shown or logged")  # fmt: skip
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="sent along; repeatable",
    )
    group.add_argument(
        "--ca-file", metavar="FILE", help="trust these authorities instead of the system's (PEM)"
    )
    group.add_argument(
        "--client-cert",
        metavar="FILE[:KEY]",
        help="certificate (and key) that the endpoint asks for",
    )
    group.add_argument(
        "--proxy", metavar="URL", help="http://, https:// or socks5:// (as HTTPS_PROXY says)"
    )


def http_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return what ``add_network_options`` has read, as the client's ``http``.

    Raises:
        ConfigurationError: a header without a colon, a variable that is not set, a file that cannot
            be used.
    """
    headers = dict(_header(text) for text in args.header)
    verify = _context(args.ca_file, args.client_cert) if args.ca_file or args.client_cert else None
    proxy = None if args.proxy is None else _revealed(args.proxy, "--proxy")
    found = {"headers": headers or None, "verify": verify, "proxy": proxy}
    return {name: value for name, value in found.items() if value is not None} or None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not value.strip():
        raise ConfigurationError(
            "--header: got none, expected 'NAME: VALUE' or 'NAME: env:VARIABLE'"
        )
    return name.strip(), _revealed(value.strip(), f"--header {name.strip()[:40]}")


def _revealed(text: str, option: str) -> str:
    """Return a value, or that of the environment's variable that it names."""
    if not text.startswith("env:"):
        return text
    variable = text.removeprefix("env:")
    if not os.environ.get(variable):
        raise ConfigurationError(f"{option}: got env:{variable}, which is not set; set it")
    return os.environ[variable]


def _context(ca_file: str | None, client_cert: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise _unusable("--ca-file", ca_file, error) from error
    if client_cert is not None:
        file, _, key = (
            (client_cert, "", "") if Path(client_cert).exists() else client_cert.rpartition(":")
        )
        try:
            context.load_cert_chain(file or client_cert, key or None)
        except OSError as error:
            raise _unusable("--client-cert", client_cert, error) from error
    return context


def _unusable(option: str, name: str | None, error: OSError) -> ConfigurationError:
    reason = error.strerror or str(error)
    return ConfigurationError(
        f"{option}: got {name}, expected PEM files that can be read ({reason})"
    )
