"""What listens at an address is asked before ggml is, which would end the process."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from haversack.devices import rpc
from haversack.devices.errors import DeviceError
from haversack.devices.rpc import Endpoint, endpoint_of


@contextmanager
def listening(answer: bytes) -> Iterator[Endpoint]:
    """Listen as something that gives one client an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve_one() -> None:
            client, _ = server.accept()
            with client:
                client.recv(1 << 10)
                client.sendall(answer)

        thread = Thread(target=serve_one)
        thread.start()
        yield Endpoint("127.0.0.1", server.getsockname()[1])
        thread.join()


def hello(major: int, minor: int) -> bytes:
    return struct.pack("<Q4B24x", 28, major, minor, 0, 0)


def test_a_name_says_where_the_server_is() -> None:
    assert endpoint_of("RPC[127.0.0.1:50052]") == Endpoint("127.0.0.1", 50052)
    assert endpoint_of("RPC2[box.lan:9]") == Endpoint("box.lan", 9, index=2)
    assert endpoint_of("Vulkan0") is None


@pytest.mark.parametrize("name", ["RPC0", "RPC[here]", "RPC[a:b]", "RPC[::1:50]", "RPC[a:1]2"])
def test_a_name_without_an_address_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=r"names no RPC server: give RPC\[host:port\]"):
        endpoint_of(name)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hello(6, 0), r"speaks RPC 6\.0\.0, need 7\.0"),
        (hello(7, 1), r"speaks RPC 7\.1\.0, need 7\.0"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 40, "is no RPC server of ggml"),
        (b"", "is no RPC server of ggml"),
    ],
)
def test_what_is_no_server_of_this_version_is_refused(
    answer: bytes, words: str, modules_dir: Path
) -> None:
    with listening(answer) as endpoint, pytest.raises(DeviceError, match=words):
        rpc.connect(endpoint, modules_dir)


def test_a_server_that_serves_another_is_told(
    monkeypatch: pytest.MonkeyPatch, modules_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rpc, "_ANSWER_S", 0.1)
    monkeypatch.setattr(rpc, "_SOON_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        with pytest.raises(DeviceError, match="serves one client at a time, so end the other one"):
            rpc.connect(Endpoint("127.0.0.1", busy.getsockname()[1]), modules_dir)
    assert "does not answer yet" in caplog.text


def test_a_server_cannot_listen_where_another_does(modules_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(DeviceError, match=r"cannot listen at 127.*a port that is free"):
            rpc.serve(Endpoint("127.0.0.1", taken.getsockname()[1]), 1, modules_dir)
