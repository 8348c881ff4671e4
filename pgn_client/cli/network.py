"""Options of the connection to the endpoint: headers, authorities, client certificate, proxy."""

from __future__ import annotations

import argparse
import os
import ssl
from pathlib import Path
from typing import Any

from pgn_client.errors import ConfigurationError


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the connection: headers, authorities, client certificate and proxy."""
    group = parser.add_argument_group(
        "connection",
        "A secret may be given as env:VARIABLE, which keeps it out of the shell's history. Secrets "
        "are never shown or logged.",
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="header to send with every request; may be given several times (default none)",
    )
    group.add_argument(
        "--auth",
        choices=["aws"],
        help="how to sign every request instead of sending a key; aws uses the credentials of your "
        "AWS configuration and needs the extra [aws] (default none)",
    )
    group.add_argument(
        "--ca-file",
        metavar="FILE",
        help="PEM file with the certificate authorities to trust (default the system's)",
    )
    group.add_argument(
        "--client-cert",
        metavar="FILE[:KEY]",
        help="PEM file with the client certificate, and the file with its key if that is another "
        "one (default none)",
    )
    group.add_argument(
        "--proxy",
        metavar="URL",
        help="URL of the proxy: http://, https:// or socks5:// (default from the environment, for "
        "example HTTPS_PROXY)",
    )


def http_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the parsed connection options, for the client's argument ``http``.

    Returns:
        Headers, signature, TLS context and proxy, without those that are not given; ``None`` if
        none is.

    Raises:
        ConfigurationError: A header has no colon, a variable is not set, or a file cannot be used.
    """
    headers = dict(_header(text) for text in args.header)
    verify = _context(args.ca_file, args.client_cert) if args.ca_file or args.client_cert else None
    proxy = None if args.proxy is None else _resolved(args.proxy, "--proxy")
    auth = None
    if args.auth == "aws":
        from pgn_client.wire.aws import SigV4

        auth = SigV4()
    options = {"headers": headers or None, "auth": auth, "verify": verify, "proxy": proxy}
    return {name: value for name, value in options.items() if value is not None} or None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or not value.strip():
        # The text may be a secret, so the message does not show it.
        raise ConfigurationError(
            "--header: got one without a name, a colon or a value, expected 'NAME: VALUE' or "
            "'NAME: env:VARIABLE'"
        )
    return name.strip(), _resolved(value.strip(), "--header")


def _resolved(text: str, option: str) -> str:
    """Return an option's value; for ``env:VARIABLE``, that of the environment variable."""
    if not text.startswith("env:"):
        return text
    variable = text.removeprefix("env:")
    if not os.environ.get(variable):
        raise ConfigurationError(f"{option}: got env:{variable}, which is not set; set it")
    return os.environ[variable]


def _context(ca_file: str | None, client_cert: str | None) -> ssl.SSLContext:
    """Return a TLS context that trusts the authorities and uses the client certificate.

    Args:
        ca_file: PEM file of the authorities; ``None`` for the system's.
        client_cert: PEM file of the client certificate, ``FILE`` or ``FILE:KEY``, if any.
    """
    # ssl.SSLError is an OSError.
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise _unusable("--ca-file", ca_file, error) from error

    if client_cert is not None:
        # The path of a single file may contain a colon itself, on Windows for example.
        file, colon, key = client_cert.rpartition(":")
        if not colon or Path(client_cert).exists():
            file = client_cert
            key = ""
        try:
            context.load_cert_chain(file, key or None)
        except OSError as error:
            raise _unusable("--client-cert", client_cert, error) from error
    return context


def _unusable(option: str, name: str | None, error: OSError) -> ConfigurationError:
    reason = error.strerror or str(error)
    return ConfigurationError(
        f"{option}: got {name}, expected readable PEM files ({reason}); check the path and the file"
    )
