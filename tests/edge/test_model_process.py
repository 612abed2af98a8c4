"""What the child of an isolated model keeps of its generations."""

import os
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from haversack.edge.loading import LoadOptions
from haversack.edge.model_process import ERROR, PROGRESS, ModelProcess
from haversack.edge.pieces import NextPiece
from haversack.edge.pipe import Pipe

TinyModel = Callable[..., Path]


class Parent:
    """The other end of the pipe of a child that is a thread here."""

    def __init__(self, child: ModelProcess, pipe: Pipe) -> None:
        self.child, self._pipe, self._numbers = child, pipe, count()

    def ask(self, what: str, *arguments: Any, dropped: tuple[int, ...] = ()) -> Any:
        number = next(self._numbers)
        self._pipe.send((number, what, arguments, dropped))
        answered, kind, value = self._pipe.receive()
        while kind == PROGRESS:
            answered, kind, value = self._pipe.receive()
        assert answered == number and kind != ERROR, value
        return value

    def begin(self) -> int:
        number, prompt_tokens = self.ask("generate", "generate", ([1, 2, 3], 4), {})
        assert prompt_tokens == 3
        return int(number)

    @property
    def held(self) -> list[int]:
        return list(self.child._generations)


@pytest.fixture
def parent(tiny_model: TinyModel) -> Iterator[Parent]:
    (from_parent, to_child), (from_child, to_parent) = os.pipe(), os.pipe()
    with (
        os.fdopen(from_parent, "rb") as child_in,
        os.fdopen(to_parent, "wb") as child_out,
        os.fdopen(from_child, "rb") as parent_in,
    ):
        with os.fdopen(to_child, "wb") as parent_out:
            child = ModelProcess(Pipe(child_in, child_out))
            thread = threading.Thread(target=child.run)
            thread.start()
            found = Parent(child, Pipe(parent_in, parent_out))
            found.ask("load", (tiny_model(), "2GiB", 256, 1, 0), LoadOptions(warm_start=False))
            yield found
            child._loaded.close()
        thread.join(60)
    assert not thread.is_alive()


def test_a_generation_leaves_at_its_end(parent: Parent) -> None:
    number = parent.begin()
    known: NextPiece = parent.ask("next", number, 0)
    tokens, pieces = known.tokens, [known.piece]
    while known.piece:
        assert parent.held == [number]
        known = parent.ask("next", number, len(tokens))
        tokens, pieces = tokens + known.tokens, [*pieces, known.piece]
    assert parent.held == []
    assert "".join(pieces).split() == [str(token) for token in tokens]
    assert known.finish_reason in ("length", "stop") and known.stats is not None
    parent.ask("cancel", number)  # too late to matter


def test_dropped_and_closed_generations_leave_before_their_end(parent: Parent) -> None:
    first, second, third = (parent.begin() for _ in range(3))
    parent.ask("next", first, 0)
    parent.ask("call", "stats", (), dropped=(first,))
    assert parent.held == [second, third]
    parent.ask("close", second)
    parent.ask("close", second)
    assert parent.held == [third]
