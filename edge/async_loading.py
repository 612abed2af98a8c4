"""`aload()`: makes a model while an event loop goes on."""

import asyncio
import threading
from pathlib import Path

from typing_extensions import Unpack

from haversack.edge.loading import LoadOptions, load
from haversack.edge.model import Model
from haversack.edge.model_plan import Plan
from haversack.edge.shared_budget import Budget
from haversack.edge.vram import DeviceSettings


async def aload(
    model: str | Path | Plan,
    ram: str | int | Budget | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    seed: int | None = None,
    options: LoadOptions | None = None,
    **devices: Unpack[DeviceSettings],
) -> Model:
    """Load a model as `edge.load` does, in a thread beside the event loop.

    A task that is cancelled meanwhile gets no model: the thread closes it as soon as it is loaded.
    Raises what `edge.load` raises.
    """
    lock, is_wanted, loaded = threading.Lock(), True, list[Model]()

    def load_if_wanted() -> None:
        made = load(model, ram, ctx, threads, seed, options, **devices)
        with lock:
            if is_wanted:
                loaded.append(made)
                return
        made.close()

    try:
        await asyncio.to_thread(load_if_wanted)
    except asyncio.CancelledError:
        with lock:
            is_wanted = False
        for made in loaded:
            made.close()
        raise
    return loaded[0]
