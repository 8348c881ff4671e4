"""``python -m mock_server``: serve until interrupted.

When the server is ready, it prints one line on stdout: ``listening on http://HOST:PORT``.
Everything else goes to stderr. Exit status: 0 after a normal stop, 2 for a configuration error, 3
if the model cannot process its first image, 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from mock_server.errors import ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server and return the exit code.

    Args:
        arguments: Command-line arguments; None takes those of the process.
    """
    try:
        return _serve(arguments)
    except ConfigurationError as error:
        return _report(str(error))
    except ModuleNotFoundError as error:
        return _report(f"{error}; run pip install 'pgn-client[server]'")
    except KeyboardInterrupt:
        # Shells report a process that SIGINT ended as 128 + 2.
        return 130


def _report(message: str) -> int:
    """Print a configuration error and return its exit code."""
    sys.stderr.write(f"error: {message}\n")
    return 2


def _serve(arguments: Sequence[str] | None) -> int:
    # Imported here, so that a missing extra gives one line on stderr instead of a traceback.
    from mock_server.settings import Settings

    settings = Settings.from_arguments(arguments)

    # The heavy imports come after the arguments are checked: a wrong option fails fast.
    import uvicorn

    from mock_server.app import create_app

    # The class is local because its base class comes from the late import.
    class AnnouncingServer(uvicorn.Server):
        """Server that prints its address as soon as it accepts requests."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            # Older versions of uvicorn also return from here if the application fails to start.
            if self.started:
                # `url` is set below, before the server runs.
                sys.stdout.write(f"listening on {url}\n")
                sys.stdout.flush()

    app = create_app(settings)
    # uvicorn writes its access log to stdout, which must hold only the line with the address.
    server = AnnouncingServer(uvicorn.Config(app, log_level="warning", access_log=False))
    # uvicorn does not bind the port itself, because it has another exit status if that fails.
    with _bind(settings.host, settings.port) as listener:
        url = _url(settings.host, listener)
        # Newer versions of uvicorn exit by themselves if the start fails, also with status 3.
        server.run([listener])

    return 0 if server.started else 3


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as opened:
        try:
            # IPPROTO_TCP is explicit because asyncio sets TCP_NODELAY only on sockets that name it.
            # Without TCP_NODELAY every small response waits some 40 ms for the client's delayed
            # acknowledgement.
            listener = opened.enter_context(
                socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            )
            # On POSIX SO_REUSEADDR allows a restart while old connections are in TIME_WAIT. On
            # Windows it would let a second server take over the port.
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Without IPV6_V6ONLY the socket would also take the IPv4 port.
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)

            listener.bind((host, port))
            # 2048 is uvicorn's default. `listen` is in the `try`, because `bind` alone does not
            # always notice that the port is in use.
            listener.listen(2048)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host} port {port}: {error.strerror}"
            ) from error

        # Keep the socket open: the caller closes it.
        opened.pop_all()
        return listener


def _url(host: str, listener: socket.socket) -> str:
    """Return the server's URL; an IPv6 address gets brackets."""
    authority = f"[{host}]" if ":" in host else host
    return f"http://{authority}:{listener.getsockname()[1]}"


if __name__ == "__main__":
    sys.exit(main())
