"""Running the server until Ctrl-C."""

import asyncio
import errno
import logging
import socket
from collections.abc import Mapping
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from haversack.devices.errors import HaversackError
from haversack.edge.console import notice
from haversack.edge.server.access import Access
from haversack.edge.server.app import Server, ServerSettings
from haversack.edge.server.models import Load
from haversack.edge.server.options import ServeOptions

_GRACE_S = 2  # for answers under way, once Ctrl-C came
_KEEP_OPEN_S = 75  # a connection between two requests


def serve(loads: Mapping[str, Load], asked: ServeOptions) -> None:
    """Serve the models. Raises HaversackError if the address cannot be had."""
    access = Access(asked.api_key, frozenset(asked.origin or ()))
    idle_s = None if asked.keep_alive < 0 else asked.keep_alive
    server = Server(loads, ServerSettings(asked.parallel, asked.queue, idle_s, access))
    listener = listener_of(asked.host, asked.port)
    host, port = listener.getsockname()[:2]
    notice(f"haversack: http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
    EndingServer(server).run([listener])


class EndingServer(uvicorn.Server):
    """Runs a server until the first signal. Answers under way end with an error that says so; what
    is still not sent after the grace is broken off, and nothing is logged of it."""

    def __init__(self, served: Server) -> None:
        super().__init__(configured(served))
        self._served = served

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:  # a second signal would leave the model open
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._served.queue.end()
        await super().shutdown(sockets)


class TimedProtocol(H11Protocol):
    """HTTP on a connection that is closed if the head of a request does not come in time."""

    head_s = 0.0
    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(self.head_s, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def configured(server: Server) -> uvicorn.Config:
    """Return how uvicorn runs the server: it logs nothing itself, and adds no headers."""
    timed = type("TimedProtocol", (TimedProtocol,), {"head_s": server.settings.access.head_s})
    return uvicorn.Config(
        server.app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=timed,
        ws="none",
        timeout_keep_alive=_KEEP_OPEN_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


def listener_of(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raises HaversackError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once, without Nagle's delay, only where the protocol is named
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        flag = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise HaversackError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; give another {flag}"
        ) from None
    return listener
