"""A server with the built-in model, and the ways to ask it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from haversack import edge
from haversack.edge.server.app import Server, ServerSettings
from haversack.edge.server.serving import configured, listener_of

SEQUENCES = 4


Serving = Callable[[Server], AbstractContextManager["Running"]]


@dataclass
class Running:
    """A server that runs in a thread."""

    server: Server
    url: str


@contextmanager
def _serving(server: Server) -> Iterator[Running]:
    """Run a server on a free port for the time of the block."""
    uvicorn_server = uvicorn.Server(configured(server))
    listener = listener_of("127.0.0.1", 0)
    thread = threading.Thread(target=uvicorn_server.run, args=[[listener]])
    thread.start()
    try:
        yield Running(server, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        uvicorn_server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def running(trunk_dir: Path) -> Iterator[Running]:
    """A server of the built-in model, which holds four texts at once. It ends with its module, so
    that tests of budgets find no model of another's."""

    def load() -> edge.Model:
        options = edge.LoadOptions(sequences=SEQUENCES, cache_dir=trunk_dir)
        return edge.load(edge.builtin_model(), ram="2GiB", options=options)

    with _serving(Server({"tales-moe": load}, ServerSettings(SEQUENCES))) as found:
        yield found


@pytest.fixture(scope="module")
def url(running: Running) -> str:
    """Where that server is."""
    return running.url


@pytest.fixture(scope="session")
def serving() -> Serving:
    """A function that runs another server for the time of a block."""
    return _serving
