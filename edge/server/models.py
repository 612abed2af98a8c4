"""The models that requests may name: one at a time is in memory, from its first request until it
was idle for a while."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from haversack.edge.model import Model
from haversack.edge.server.errors import ApiError

_log = logging.getLogger("haversack.server")

Load = Callable[[], Model]
Result = TypeVar("Result")


@dataclass
class LoadedModel:
    """A model in memory. Each of its `threads` runs one generation at a time: as many as the model
    has sequences, so that a generation that has begun never waits for one."""

    name: str
    model: Model
    threads: ThreadPoolExecutor
    num_users: int = 0


class ModelHost:
    """Loads models when they are asked for. Everything but loading and closing runs on the event
    loop's thread.

    `loads` says by name how a model is loaded. A model that nobody uses for `idle_s` seconds is
    closed; None keeps it.
    """

    def __init__(self, loads: Mapping[str, Load], idle_s: float | None) -> None:
        self._loads, self._idle_s = dict(loads), idle_s
        self._turn = asyncio.Lock()  # held while a model is loaded or closed
        self._unused = asyncio.Event()  # nobody uses the model
        self._unused.set()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = set[asyncio.Task[Any]]()
        self.loaded: LoadedModel | None = None

    @property
    def names(self) -> list[str]:
        return list(self._loads)

    @property
    def is_loading(self) -> bool:
        return self._turn.locked()

    def name_of(self, asked: str | None) -> str:
        """The name of the model that is asked for, the first one by default. Raises ApiError."""
        name = asked or self.names[0]
        if name not in self._loads:
            known = ", ".join(self.names)
            raise ApiError(404, "model_not_found", f"no model is called {name!r}: there is {known}")
        return name

    @asynccontextmanager
    async def using(self, name: str) -> AsyncGenerator[LoadedModel]:
        """Have a model in memory for the time of the block. Raises what loading it raises."""
        task = self._start(self._taken(name))
        try:
            # A client that goes away must not stop a load, which others may wait for.
            loaded = await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._give_back_unused)
            raise
        try:
            yield loaded
        finally:
            self._give_back(loaded)

    def _give_back_unused(self, task: asyncio.Task[LoadedModel]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._give_back(task.result())

    def _take(self, loaded: LoadedModel) -> None:
        loaded.num_users += 1
        self._unused.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_back(self, loaded: LoadedModel) -> None:
        loaded.num_users -= 1
        if loaded.num_users == 0:
            self._unused.set()
            if self._idle_s is not None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._idle_s, lambda: self._start(self.unload()))

    def _start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
        return task

    async def _taken(self, name: str) -> LoadedModel:
        """The model, loaded if it is not, with one user more: so nobody closes it in between."""
        async with self._turn:
            loaded = self.loaded
            if loaded is None or loaded.name != name:
                await self._unused.wait()
                await self._close()
                model = await asyncio.to_thread(self._loads[name])
                _log.info("%s is loaded", name)
                threads = ThreadPoolExecutor(model.plan.shape.sequences, f"haversack-{name}")
                loaded = self.loaded = LoadedModel(name, model, threads)
            self._take(loaded)
            return loaded

    async def unload(self) -> None:
        """Close the model if nobody uses it."""
        async with self._turn:
            if self._unused.is_set():
                await self._close()

    async def _close(self) -> None:
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            _log.info("%s is closed", loaded.name)
            await asyncio.to_thread(loaded.model.close)
            loaded.threads.shutdown(wait=False, cancel_futures=True)

    async def close(self) -> None:
        """Stop what runs, and close the model."""
        async with self._turn:
            await self._close()
