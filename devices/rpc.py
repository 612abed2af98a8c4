"""Devices of another process or computer, which ggml's RPC server lends.

ggml ends the process where it finds no server, so a server is asked here first. A server serves one
client at a time; others wait. It asks nobody for a password: it belongs on loopback or in a trusted
network.
"""

import logging
import re
import select
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import psutil

from haversack.devices import modules
from haversack.devices._native import backends as native
from haversack.devices.errors import DeviceError

_log = logging.getLogger(__name__)

_NAME = re.compile(r"RPC(\d*)\[([^\s:\[\]]+):(\d{1,5})\]")
_PROTOCOL = (7, 0)  # RPC_PROTO_MAJOR_VERSION, RPC_PROTO_MINOR_VERSION of llama-cpp-python's module
_HELLO, _CAPABILITIES_BYTES = 14, 24  # RPC_CMD_HELLO, RPC_CONN_CAPS_SIZE
_ANSWER = struct.Struct(f"<Q4B{_CAPABILITIES_BYTES}s")  # bytes, version, capabilities
_ANSWER_S = 60.0  # the longest that a server may take to answer
_SOON_S = 2.0  # a wait that is longer is told
_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, and which of its devices is meant."""

    host: str
    port: int
    index: int = 0

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Server:
    """A server that answered: its devices, by their ggml_backend_dev_t."""

    endpoint: Endpoint
    devices: tuple[int, ...]

    def device_name(self, index: int) -> str:
        """Return the name by which users call one of its devices."""
        return f"RPC{index or ''}[{self.endpoint}]"

    def device(self, endpoint: Endpoint) -> int:
        """Return the device that is meant. Raises DeviceError if the server has fewer."""
        if endpoint.index >= len(self.devices):
            raise DeviceError(
                f"the server at {endpoint} has no device {endpoint.index}: give one of"
                f" {', '.join(map(self.device_name, range(len(self.devices))))}"
            )
        return self.devices[endpoint.index]


_servers: dict[str, Server] = {}  # by endpoint; ggml keeps them until the process ends


def endpoint_of(name: str) -> Endpoint | None:
    """Return the endpoint that a device's name tells, as RPC[host:port] or RPC1[host:port]; None if
    it is no RPC device's. Raises DeviceError for a name that begins as one and ends otherwise."""
    match = _NAME.fullmatch(name)
    if match is None:
        if name.startswith("RPC"):
            raise DeviceError(f"{name} names no RPC server: give RPC[host:port]")
        return None
    return Endpoint(match[2], int(match[3]), int(match[1] or 0))


def known_servers() -> list[Server]:
    """Return the servers that `connect` has reached in this process and that are still there: ggml
    ends the process where one is asked that is not."""
    return [server for server in _servers.values() if _is_there(server)]


def connect(endpoint: Endpoint, modules_dir: Path) -> Server:
    """Return the server that listens there. Raises DeviceError where there is none, it is of
    another version, or the module is missing."""
    registry = modules.load_module(modules.RPC, modules_dir)
    if not _is_connected(endpoint):
        _greet(endpoint)
    name = str(endpoint)
    if name not in _servers:
        found = native.rpc_add_server(registry, name)
        count = native.ggml_backend_reg_dev_count(found) if found else 0
        devices = tuple(native.ggml_backend_reg_dev_get(found, index) for index in range(count))
        if not devices:
            raise DeviceError(f"the server at {name} has no device: start it with one")
        _servers[name] = Server(endpoint, devices)
    return _servers[name]


def serve(endpoint: Endpoint, num_threads: int, modules_dir: Path) -> None:
    """Lend this computer's CPU and memory to one client after the other, until the process is
    ended. On the main thread, because Ctrl-C then ends it too. Raises DeviceError where it cannot
    listen there, or the module is missing."""
    registry = modules.load_module(modules.RPC, modules_dir)
    cpu = native.ggml_backend_dev_by_type(_CPU)
    ours = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler waits for a call's end
    try:
        native.rpc_start_server(registry, str(endpoint), num_threads, cpu)
    finally:
        signal.signal(signal.SIGINT, ours)
    raise DeviceError(
        f"cannot listen at {endpoint}: give an address of this computer (0.0.0.0 for all) and a"
        " port that is free"
    )


# ------------------------------------------------------------------- greeting
def _is_connected(endpoint: Endpoint) -> bool:
    """Return whether this process has a connection to the server, which then waits for no other."""
    peers = {
        (each.raddr.ip, each.raddr.port)
        for each in psutil.Process().net_connections(kind="tcp")
        if each.raddr and each.status == psutil.CONN_ESTABLISHED
    }
    try:
        addresses = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(address[4][:2] in peers for address in addresses)


def _is_there(server: Server) -> bool:
    if _is_connected(server.endpoint):
        return True
    try:
        _greet(server.endpoint)
    except DeviceError:
        return False
    return True


def _greet(endpoint: Endpoint) -> None:
    """Raise DeviceError unless a server of the same version answers."""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), _ANSWER_S) as connection:
            connection.settimeout(_ANSWER_S)
            request = struct.pack(f"<BQ{_CAPABILITIES_BYTES}x", _HELLO, _CAPABILITIES_BYTES)
            connection.sendall(request)
            _tell_a_wait(connection, endpoint)
            answer = _received(connection, _ANSWER.size)
    except TimeoutError as error:
        raise DeviceError(
            f"the server at {endpoint} does not answer: it serves one client at a time, so end the"
            " other one, or start a second server"
        ) from error
    except OSError as error:
        raise DeviceError(
            f"no RPC server at {endpoint} ({error.strerror or error}): start one there with"
            f" `haversack backend serve {endpoint}`"
        ) from error
    _refuse_other_protocol(endpoint, answer)


def _tell_a_wait(connection: socket.socket, endpoint: Endpoint) -> None:
    """Wait for an answer's first byte for a moment, and warn if it does not come."""
    if not select.select([connection], [], [], _SOON_S)[0]:
        _log.warning(
            "the server at %s does not answer yet, it serves one client at a time: waiting %.0f s",
            endpoint,
            _ANSWER_S,
        )


def _received(connection: socket.socket, num_bytes: int) -> bytes:
    """Return `num_bytes`, or fewer if the other side has closed."""
    answer = b""
    while len(answer) < num_bytes and (more := connection.recv(num_bytes - len(answer))):
        answer += more
    return answer


def _refuse_other_protocol(endpoint: Endpoint, answer: bytes) -> None:
    if len(answer) == _ANSWER.size:
        num_bytes, major, minor, patch, *_ = _ANSWER.unpack(answer)
        if num_bytes == _ANSWER.size - 8 and major == _PROTOCOL[0] and minor <= _PROTOCOL[1]:
            return
        if num_bytes == _ANSWER.size - 8:
            raise DeviceError(
                f"the server at {endpoint} speaks RPC {major}.{minor}.{patch}, need"
                f" {_PROTOCOL[0]}.{_PROTOCOL[1]}: start it with the same version of haversack"
            )
    raise DeviceError(
        f"what listens at {endpoint} is no RPC server of ggml: start one with `haversack backend"
        f" serve {endpoint}`"
    )
