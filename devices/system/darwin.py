"""The functions of macOS; `devices.system` says what each returns."""

import ctypes as c
import fcntl
import io
from pathlib import Path

from haversack.devices._native import libc
from haversack.devices.system.cgroup import MemoryLimit
from haversack.devices.system.unix import *  # noqa: F403

_F_NOCACHE = 48  # of fcntl.h
_TASK_VM_INFO = 22  # of mach/task_info.h


class _VmInfo(c.Structure):
    """struct task_vm_info, up to its field ledger_phys_footprint_peak"""

    _pack_ = 4
    _fields_ = (
        ("virtual_size", c.c_uint64),
        *(("region_count", c.c_int32), ("page_size", c.c_int32)),
        ("sizes", c.c_uint64 * 16),
        ("phys_footprint", c.c_uint64),
        *(("min_address", c.c_uint64), ("max_address", c.c_uint64)),
        ("phys_footprint_peak", c.c_int64),
    )


def memory_status() -> tuple[int, int, int] | None:
    """The footprint: pages of this process alone, touched or compressed, which memory limits of
    macOS bound; and its peak."""
    info = _VmInfo()
    if not libc.task_info(_TASK_VM_INFO, info):
        return None
    return info.phys_footprint_peak, info.phys_footprint, 0


def forget_peak() -> None:
    pass


def ram(root: Path) -> tuple[int, int, str] | None:
    return None


def memory_limits(root: Path) -> list[MemoryLimit]:
    return []


def allowed_cores() -> int | None:
    return None


def commit(address: int, num_bytes: int) -> bool:
    libc.make_usable(address, num_bytes)
    return False


def give_back_freed_memory() -> None:
    pass


def keep_freed_memory() -> bool:
    return False


def open_direct(path: Path) -> tuple[io.FileIO | None, str]:
    file = io.FileIO(path)
    fcntl.fcntl(file.fileno(), _F_NOCACHE, 1)
    return file, "F_NOCACHE is set"


def open_plain(path: Path) -> io.FileIO:
    return io.FileIO(path)
