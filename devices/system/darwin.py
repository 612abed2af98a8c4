"""What macOS tells and does; see `devices.system` for what each function returns."""

import fcntl
import io
from pathlib import Path

from haversack.devices.system.unix import commit, decommit, read_at, reserve, resident_bytes
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
    "commit",
    "decommit",
    "forget_peak",
    "give_back_freed_memory",
    "keep_freed_memory",
    "memory_status",
    "open_plain",
    "ram",
    "read_at",
    "reserve",
    "resident_bytes",
]

_F_NOCACHE = 48  # of fcntl.h


def open_direct(path: Path) -> tuple[io.FileIO | None, str]:
    file = io.FileIO(path)
    fcntl.fcntl(file.fileno(), _F_NOCACHE, 1)
    return file, "F_NOCACHE is set"
