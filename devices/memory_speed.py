"""Measuring how fast this computer reads its memory."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from haversack.devices.memory import SlotMemory

_ROOM_BYTES = 64 * 1024 * 1024  # more than the caches of most processors
_ROUNDS = 3


def memory_bytes_s(threads: int) -> float:
    """Return the most bytes of memory that `threads` threads read in a second; takes a tenth of a
    second and 64 MiB."""
    with SlotMemory(_ROOM_BYTES) as room, ThreadPoolExecutor(threads) as pool:
        room.bytes[:] = 1
        parts = np.array_split(room.bytes.view(np.uint64), threads)
        list(pool.map(_read, parts))
        return max(_round_bytes_s(pool, parts) for _ in range(_ROUNDS))


def _round_bytes_s(pool: ThreadPoolExecutor, parts: list[npt.NDArray[np.uint64]]) -> float:
    began = time.perf_counter()
    list(pool.map(_read, parts))
    return _ROOM_BYTES / (time.perf_counter() - began)


def _read(part: npt.NDArray[np.uint64]) -> None:
    part.max()
