"""The functions of macOS; `devices.system` says what each returns."""

import fcntl
import io
from pathlib import Path

from haversack.devices._native import libc
from haversack.devices.system.default import *  # noqa: F403
from haversack.devices.system.unix import *  # noqa: F403  # after the default, in its place

_F_NOCACHE = 48  # of fcntl.h


def commit(address: int, num_bytes: int) -> bool:  # type: ignore[no-redef]
    libc.make_usable(address, num_bytes)
    return False


def open_direct(path: Path) -> tuple[io.FileIO | None, str]:  # type: ignore[no-redef]
    file = io.FileIO(path)
    fcntl.fcntl(file.fileno(), _F_NOCACHE, 1)
    return file, "F_NOCACHE is set"
