"""The models that requests may name: one at a time is in memory, from its first request until it
was idle for a while."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from haversack.edge.model import Model
from haversack.edge.server.errors import ApiError

_log = logging.getLogger("haversack.server")

Load = Callable[[], Model]


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
        self._tasks = set[asyncio.Task[None]]()
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
        while self.loaded is None or self.loaded.name != name:
            # A client that goes away must not stop a load, which others may wait for.
            await asyncio.shield(self._start(self._switch_to(name)))
        loaded = self.loaded
        self._take(loaded)
        try:
            yield loaded
        finally:
            self._give_back(loaded)

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

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
        return task

    async def _switch_to(self, name: str) -> None:
        async with self._turn:
            if self.loaded is not None and self.loaded.name == name:
                return
            await self._unused.wait()
            await self._close()
            _log.info("%s is loaded", name)
            model = await asyncio.to_thread(self._loads[name])
            threads = ThreadPoolExecutor(model.plan.shape.sequences, f"haversack-{name}")
            self.loaded = LoadedModel(name, model, threads)

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
