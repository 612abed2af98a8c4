"""The functions of Linux; `devices.system` says what each returns."""

import contextlib
import errno
import io
import mmap
import os
import re
from pathlib import Path

from haversack.devices._native import libc
from haversack.devices.system.cgroup import memory_limits as memory_limits
from haversack.devices.system.cgroup import read_text
from haversack.devices.system.unix import *  # noqa: F403

_MEMORY_LINES = re.compile(
    rb"VmHWM:\s+(\d+) kB\nVmRSS:.*\nRssAnon:\s+(\d+) kB\nRssFile:\s+(\d+) kB\nRssShmem:\s+(\d+)"
)
_HUGE_PAGE_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)  # how a file system says no to direct reads
_PAGE_BYTES = 4096
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h
_KEPT_BYTES = 2**31 - 1  # mallopt takes an int
_GROWTH_BYTES = 256 * 1024 * 1024


def memory_status() -> tuple[int, int, int] | None:
    """Takes about 15 us. The kernel's counts are right to about 0.2 MiB."""
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            found = _MEMORY_LINES.search(file.read(65536))
    except OSError:
        return None
    if found is None:
        return None
    peak, anonymous, files, shared = (int(number) * 1024 for number in found.groups())
    return peak, anonymous, files + shared


def forget_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")


def ram(root: Path) -> tuple[int, int, str] | None:
    lines = read_text(root / "proc/meminfo").splitlines()
    fields = {line.split(":")[0]: line.split() for line in lines}
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    total_bytes, available_bytes = (
        int(fields[name][1]) * 1024 for name in ("MemTotal", "MemAvailable")
    )
    return total_bytes, available_bytes, "MemAvailable of /proc/meminfo"


def allowed_cores() -> int | None:
    return len(os.sched_getaffinity(0))


def commit(address: int, num_bytes: int) -> bool:
    libc.make_usable(address, num_bytes)
    if "[never]" in read_text(_HUGE_PAGE_MODE):
        return False
    return libc.madvise(address, num_bytes, mmap.MADV_HUGEPAGE)


def give_back_freed_memory() -> None:
    libc.optional("malloc_trim", 0)


def keep_freed_memory() -> bool:
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _KEPT_BYTES, _M_TOP_PAD: _GROWTH_BYTES}
    return all([libc.optional("mallopt", *setting) == 1 for setting in settings.items()])


def open_direct(path: Path) -> tuple[io.FileIO | None, str]:
    """Reads a page, because some file systems refuse at the open and others at the first read."""
    file = None
    try:
        file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_DIRECT))
        os.preadv(file.fileno(), [mmap.mmap(-1, _PAGE_BYTES)], 0)
    except OSError as error:
        if file is not None:
            file.close()
        if error.errno not in _REFUSALS:
            raise
        return None, f"the file system refuses direct reads ({error.strerror})"
    return file, "O_DIRECT is set and a page was read"


def open_plain(path: Path) -> io.FileIO:
    file = io.FileIO(path)
    # experts lie at random places: the kernel's own read-ahead would halve the rate
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file
