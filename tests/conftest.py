"""Models for tests: tiny random ones, written once for a whole run; and a second device, which a
server process lends."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

# Plain llama.cpp's threads sleep while they wait. By default OpenMP has them spin: beside another
# busy process they then take 20 times the processor time. OpenMP reads this when llama.cpp is
# loaded. Later it would say that our own threads are not wanted (devices/team.py).
os.environ["OMP_WAIT_POLICY"] = "passive"

from haversack.devices import crowd, module_build, modules
from haversack.devices.backends import Device, find_device
from haversack.devices.errors import DeviceError
from haversack.edge.cache_dir import modules_folder
from haversack.tools.models.known_answer import write_known_answer
from haversack.tools.models.synth import write_tiny

del os.environ["OMP_WAIT_POLICY"]
# So do our own threads, sooner than on a computer that runs nothing else: CI runs two suites on two
# cores, and then a pass of a tiny model took up to 7 times the processor time.
crowd.LONG_SPIN_S = 2 * crowd.SHORT_SPIN_S

settings.register_profile("unhurried", deadline=None)  # other programs may hold the processor
settings.load_profile("unhurried")

TinyModel = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def the_users_folders_are_left_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing a test runs, also not the command line, writes into the user's folders."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        environment.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A function that gives the path of a tiny random model of an architecture, made as
    `tools.models.synth.write_tiny` is told."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def give(architecture: str = "qwen3moe", **arguments: Any) -> Path:
        key = repr((architecture, sorted(arguments.items())))
        if key not in made:
            path = folder / f"{architecture}-{len(made)}.gguf"
            made[key] = write_tiny(architecture, path, **arguments)[0]
        return made[key]

    return give


@pytest.fixture(scope="session")
def known_answer_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a vocabulary whose greedy text is known to the byte."""
    path = tmp_path_factory.mktemp("known") / "stories260k-moe.gguf"
    write_known_answer(path)
    return path


@pytest.fixture(scope="session")
def trunk_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for trunk files that is not the user's."""
    return tmp_path_factory.mktemp("trunks")


# -------------------------------------------------------------------- devices
_SERVER = """
import os, sys, threading
from pathlib import Path
from haversack.devices import rpc

def end_with_the_tests():
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=end_with_the_tests, daemon=True).start()
threads, folder = sys.argv[1:]
rpc.serve(rpc.Endpoint("127.0.0.1", 0), int(threads), Path(folder))
"""


class RpcServer:
    """A process of its own that lends the CPU as the device `name` to one client at a time: the
    second client waits until the first has closed all that it had there."""

    def __init__(self, num_threads: int, modules_dir: Path) -> None:
        command = [sys.executable, "-c", _SERVER, str(num_threads), str(modules_dir)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.port = 0

    @property
    def name(self) -> str:
        return f"RPC[127.0.0.1:{self.port}]"

    def wait_until_it_listens(self) -> None:
        """The system has chosen the port."""
        while self.process.poll() is None and not self.port:
            with suppress(psutil.Error):  # it is just ending
                for each in psutil.Process(self.process.pid).net_connections("tcp"):
                    if each.status == psutil.CONN_LISTEN:
                        self.port = each.laddr.port
            threading.Event().wait(0.01)
        assert self.process.stderr is not None
        assert self.port, f"the server ended: {self.process.stderr.read().decode()}"

    def kill(self) -> None:
        """End the server at once; may be called twice."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="session")
def modules_dir(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    the_users_folders_are_left_alone: None,
) -> Path:
    """The folder where haversack looks for modules by default, with the RPC backend, which is
    compiled once and kept for later runs."""
    if reason := module_build.why_not(modules.RPC):
        pytest.skip(reason)
    kept = request.config.pluginmanager.hasplugin("cacheprovider")
    folder = request.config.cache.mkdir("backends") if kept else tmp_path_factory.mktemp("backends")
    if not (modules.build_dir(folder) / modules.file_name(modules.RPC)).exists():
        _build_rpc(folder)
    found = modules_folder(None)
    shutil.copytree(folder, found, dirs_exist_ok=True)
    return found


def _build_rpc(folder: Path) -> None:
    """Make the RPC backend. Where pip cannot download its sources the tests are skipped; sources
    that do not compile are an error."""
    try:
        module_build.build_module(modules.RPC, folder)
    except DeviceError as error:
        if not str(error).startswith("the sources cannot be downloaded"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def start_rpc_server(modules_dir: Path) -> Iterator[Callable[..., RpcServer]]:
    """A function that starts a server with one thread, or as many as it is told."""
    started: list[RpcServer] = []

    def start(num_threads: int = 1) -> RpcServer:
        server = RpcServer(num_threads, modules_dir)
        started.append(server)
        server.wait_until_it_listens()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def rpc_device(start_rpc_server: Callable[..., RpcServer], modules_dir: Path) -> Device:
    """A device with memory of its own whose results have the CPU's bits, for this process alone."""
    return find_device(start_rpc_server().name, modules_dir)


def pytest_configure() -> None:
    """Programs that tests start take Ctrl-C and the end of a terminal, also where a shell or
    `nohup` had the tests ignore them. That a signal is ignored is inherited, a handler is not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The smallest whole run comes first: if it fails, the rest says little."""
    items.sort(key=lambda item: item.path.name != "test_tiny.py")
