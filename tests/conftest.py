"""Models for tests: tiny random ones, written once for a whole run."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from haversack.tools.models.known_answer import write_known_answer
from haversack.tools.models.synth import write_tiny

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


def pytest_configure() -> None:
    """Programs that tests start take Ctrl-C, also where a shell started the tests in the background
    and so had them ignore it. A program inherits that it is ignored, but no handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The smallest whole run comes first: if it fails, the rest says little."""
    items.sort(key=lambda item: item.path.name != "test_tiny.py")
