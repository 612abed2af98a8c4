"""What Windows tells and does, which is little yet; see `devices.system`."""

import io
import mmap
from pathlib import Path
from typing import NoReturn

from haversack.devices.errors import HaversackError
from haversack.devices.system.unknown import (
    allowed_cores,
    forget_peak,
    give_back_freed_memory,
    keep_freed_memory,
    memory_status,
    open_plain,
    ram,
)

__all__ = [
    "allowed_cores",
    "forget_peak",
    "give_back_freed_memory",
    "keep_freed_memory",
    "memory_status",
    "open_plain",
    "ram",
]


def _not_yet() -> NoReturn:
    raise HaversackError("experts cannot be read on Windows yet: run on Linux or macOS")


def reserve(num_bytes: int) -> mmap.mmap:
    _not_yet()


def commit(address: int, num_bytes: int) -> bool:
    _not_yet()


def decommit(address: int, num_bytes: int) -> None:
    _not_yet()


def resident_bytes(address: int, num_bytes: int) -> int:
    return 0


def open_direct(path: Path) -> tuple[io.FileIO | None, str]:
    return None, "this system has no direct reads"


def read_at(file: io.FileIO, view: memoryview, offset: int) -> int:
    _not_yet()
