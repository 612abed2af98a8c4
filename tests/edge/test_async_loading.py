"""A model is loaded while an event loop goes on; a task that is cancelled leaves none behind."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haversack import edge
from haversack.devices.ledger import ledger

TinyModel = Callable[..., Path]


def test_the_event_loop_goes_on_while_a_model_is_loaded(tiny_model: TinyModel) -> None:
    path, turns = tiny_model(), [0]

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    async def told() -> tuple[str, edge.Model]:
        beside = asyncio.create_task(count())
        async with await edge.aload(path, "1GiB", 64) as model:
            text = "".join([piece async for piece in model.generate([1, 2, 3], 5, temperature=0)])
        beside.cancel()
        return text, model

    text, model = asyncio.run(told())
    assert len(text.split()) == 5 and turns[0] > 1
    with pytest.raises(edge.ClosedError):
        model.generate([1], 1)


def test_a_cancelled_task_leaves_no_model(tiny_model: TinyModel) -> None:
    path, begun, goes_on = tiny_model(), threading.Event(), threading.Event()
    num_leases = len(ledger._names)

    def hold(*_: Any) -> None:
        begun.set()
        goes_on.wait()

    async def cancelled() -> None:
        options = edge.LoadOptions(progress=hold)
        task = asyncio.create_task(edge.aload(path, "1GiB", 64, options=options))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        goes_on.set()

    asyncio.run(cancelled())  # it waits for its threads
    assert len(ledger._names) == num_leases


def test_its_errors_are_those_of_load(tmp_path: Path) -> None:
    with pytest.raises(edge.ModelFileError, match=r"none\.gguf"):
        asyncio.run(edge.aload(tmp_path / "none.gguf"))
