"""The address of `haversack serve`, and Ctrl-C on it: answers under way end with an error, and
nothing is told of it."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from haversack.devices.errors import HaversackError
from haversack.edge.server.serving import listener_of

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Ctrl-C is no signal to one process there"
)
TOLD = "the server is ending"


@pytest.fixture
def served(tiny_model: Callable[..., Path]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server's process and address. Its model's texts end with the context alone."""
    command = [sys.executable, "-m", "haversack.edge", "serve", str(tiny_model()), "--port", "0"]
    command += ["--ram", "2GiB", "--ctx", "60000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = map(re.compile(r"http://\S+").search, process.stderr)  # more is told before
        try:
            yield process, next(found[0] for found in told if found is not None)
        finally:
            process.kill()


def assert_ends_quietly(process: "subprocess.Popen[str]") -> None:
    _, stderr = process.communicate(timeout=300)
    assert (process.returncode, stderr) == (130, "")


def test_whole_and_streamed_answers_end_with_an_error(
    served: tuple["subprocess.Popen[str]", str],
) -> None:
    process, url = served
    address, body = f"{url}/v1/completions", {"prompt": "1 2 3", "max_tokens": 50000}
    with httpx.Client(timeout=300) as client, ThreadPoolExecutor() as pool:
        whole = pool.submit(client.post, address, json=body)
        with client.stream("POST", address, json={**body, "stream": True}) as streamed:
            lines = streamed.iter_lines()
            while client.get(f"{url}/stats").json()["queue"]["jobs"] < 2:
                next(lines)
            process.send_signal(signal.SIGINT)
            last = [line for line in lines if line][-1]
        refused = whole.result()
    assert refused.status_code == 503 and TOLD in refused.json()["error"]["message"]
    assert last.startswith("data: ") and TOLD in last
    assert_ends_quietly(process)


def test_a_body_that_is_still_sent_gets_an_error(
    served: tuple["subprocess.Popen[str]", str],
) -> None:
    process, url = served

    def body() -> Iterator[bytes]:
        yield b"{"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=300)

    try:
        refused = httpx.post(f"{url}/v1/completions", content=body(), timeout=300)
        assert refused.status_code == 503 and TOLD in refused.text
    except httpx.TransportError:
        pass  # the system dropped the answer with the connection
    assert_ends_quietly(process)


def test_two_signals_end_an_idle_server_quietly(
    served: tuple["subprocess.Popen[str]", str],
) -> None:
    process, url = served
    assert httpx.get(f"{url}/health", timeout=300).status_code == 200
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert_ends_quietly(process)


def test_an_address_that_cannot_be_had_names_the_flag_to_change() -> None:
    with listener_of("127.0.0.1", 0) as taken:
        with pytest.raises(HaversackError, match="give another --port"):
            listener_of("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(HaversackError, match="give another --host"):
        listener_of("192.0.2.1", 0)  # an address for examples, which no computer has
