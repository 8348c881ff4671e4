"""``python -m mock_server``: serve until interrupted.

Prints one line on stdout when it is ready, ``listening on http://HOST:PORT``; everything else goes
to stderr. Exits 0, 2 for a configuration error, 3 if the model cannot answer its first image, or
130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from mock_server.errors import ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server (None: with the process's own arguments) and return the exit code."""
    try:
        return _serve(arguments)
    except ConfigurationError as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        return _refuse(f"{error}; do pip install 'pgn-client[server]'")
    except KeyboardInterrupt:
        return 130


def _refuse(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 2


def _serve(arguments: Sequence[str] | None) -> int:
    # in here, so that a missing extra is one line and not a traceback
    from mock_server.settings import Settings

    settings = Settings.from_arguments(arguments)
    import uvicorn  # the heavy imports wait until the arguments are known to be right

    from mock_server.app import create_app

    class AnnouncingServer(uvicorn.Server):
        """Tell the parent process the address, once requests are answered."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                sys.stdout.write(f"listening on {url}\n")
                sys.stdout.flush()

    app = create_app(settings)
    server = AnnouncingServer(uvicorn.Config(app, log_level="warning", access_log=False))
    with _bind(settings.host, settings.port) as listener:
        url = _url(settings.host, listener)
        # later uvicorns exit by themselves, with the same number, when the start fails
        server.run([listener])
    return 0 if server.started else 3


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only on connections of sockets that say
    # so. Without it every small answer waits some 40 ms for the client's delayed acknowledgement.
    with contextlib.ExitStack() as opened:
        try:
            listener = opened.enter_context(
                socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            )
            if os.name == "posix":  # elsewhere it lets a second server steal connections
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
            listener.listen(2048)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host} port {port}: {error.strerror}"
            ) from error
        opened.pop_all()
        return listener


def _url(host: str, listener: socket.socket) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


if __name__ == "__main__":
    sys.exit(main())
