"""Host memory: what there is (RAM and control groups), what we hold, and where slots live."""

import contextlib
import mmap
import re
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from haversack.devices._native import address_of, move_bytes, resident_pages
from haversack.devices.cgroup import group_folders, read_text
from haversack.devices.errors import BudgetError, ClosedError, HaversackError
from haversack.devices.units import format_bytes

if sys.platform != "win32":
    import resource

__all__ = [
    "HUGE_PAGE_BYTES",
    "PAGE_BYTES",
    "AddressSpace",
    "Arena",
    "PeakMeter",
    "RamProbe",
    "address_of",
    "anonymous_bytes",
    "arenas_resident_bytes",
    "move_bytes",
    "probe_ram",
    "process_peak_rss_bytes",
    "reserve_address_space",
]

PAGE_BYTES = 4096  # the unit of direct reads, whatever the system's own page is
HUGE_PAGE_BYTES = 2 * 1024 * 1024

_UNLIMITED_BYTES = 1 << 60  # version 1 writes "no limit" as 2**63 less one page
_LIMIT_FILES = (  # of control groups of version 2 and 1, each with the file of what is used
    ("memory.max", "memory.current"),
    ("memory.high", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
)
_MEMORY_LINES = re.compile(
    rb"VmHWM:\s+(\d+) kB\nVmRSS:.*\nRssAnon:\s+(\d+) kB\nRssFile:\s+(\d+) kB\nRssShmem:\s+(\d+)"
)
_MARK_SLACK_BYTES = 1024 * 1024
_HUGE_PAGE_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


_arenas: "weakref.WeakSet[Arena]" = weakref.WeakSet()


@dataclass(frozen=True)
class RamProbe:
    """What the machine and its control groups leave to this process, in bytes."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None  # the tightest control group's; None where none limits us
    source: str  # which number ruled `available_bytes`


@dataclass(frozen=True)
class _GroupLimit:
    limit_bytes: int
    available_bytes: int
    source: str


def probe_ram(root: Path = Path("/")) -> RamProbe:
    """The RAM of this machine and how much of it may still be taken.

    Available is the smaller of the system's own estimate and, for each control group from ours
    up to the root, limit - usage + inactive file pages. `root` is where /proc and /sys are.
    """
    total_bytes, available_bytes, source = _system_ram(root)
    folders = group_folders(root, "memory")
    limits = [limit for folder in folders for limit in _group_limits(folder)]
    ruling = min(limits, key=lambda limit: limit.available_bytes, default=None)
    if ruling is not None and ruling.available_bytes < available_bytes:
        available_bytes, source = ruling.available_bytes, ruling.source
    limit_bytes = min((limit.limit_bytes for limit in limits), default=None)
    return RamProbe(total_bytes, available_bytes, limit_bytes, source)


def anonymous_bytes() -> int:
    """Anonymous memory of this process: what a RAM budget bounds. About 15 us on Linux.

    Elsewhere the nearest figure there is: memory that only this process holds.
    """
    num_bytes = _status_bytes(b"RssAnon:")
    if num_bytes is not None:
        return num_bytes
    return int(psutil.Process().memory_full_info().uss)


def process_peak_rss_bytes() -> int:
    """The most bytes of RAM this process ever held at once, file pages included."""
    num_bytes = _status_bytes(b"VmHWM:")
    if num_bytes is not None:
        return num_bytes
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMeter:
    """The most anonymous memory that this process held since the meter was made.

    The kernel keeps the highest resident size ever, VmHWM, file pages included. If it grew between
    two looks, the peak fell between them, and its anonymous part was at most VmHWM less the file
    pages, of which the smaller count of both looks is taken. So what was allocated and freed
    between two looks is seen, and the figure is not too low; it is too high by the file pages
    that came meanwhile. Where there is no /proc it is the highest of the looks. The kernel's own
    counts are right to about 0.2 MiB.
    """

    def __init__(self) -> None:
        for meter in list(_meters):
            meter.look()
        _lower_the_mark()
        self._status = _Status.read()
        self._peak_bytes = self._status.anonymous_bytes
        _meters.add(self)

    def look(self) -> int:
        """The peak so far, in bytes. About 20 us on Linux."""
        before, self._status = self._status, _Status.read()
        peak_bytes = self._status.anonymous_bytes
        if self._status.mark_bytes != before.mark_bytes:  # it grew, or a newer meter lowered it
            file_bytes = min(before.file_bytes, self._status.file_bytes)
            peak_bytes = max(peak_bytes, self._status.mark_bytes - file_bytes)
        self._peak_bytes = max(self._peak_bytes, peak_bytes)
        return self._peak_bytes


_meters: "weakref.WeakSet[PeakMeter]" = weakref.WeakSet()


class _Status(NamedTuple):
    """One reading of /proc/self/status: the highest resident size ever, and of what it is now the
    anonymous and the other pages."""

    mark_bytes: int
    anonymous_bytes: int
    file_bytes: int

    @classmethod
    def read(cls) -> "_Status":
        found = _MEMORY_LINES.search(_read_status())
        if found is None:
            return cls(0, anonymous_bytes(), 0)
        mark, anonymous, files, shared = map(int, found.groups())
        return cls(mark * 1024, anonymous * 1024, (files + shared) * 1024)


def _lower_the_mark() -> None:
    """Have the kernel count VmHWM from now on, so that an old peak does not hide later ones. Where
    it may not be lowered, peaks below the old one are seen only if they last until a look."""
    status = _Status.read()
    if status.mark_bytes - status.anonymous_bytes - status.file_bytes < _MARK_SLACK_BYTES:
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")


class Arena:
    """One anonymous private mapping whose start is aligned to 2 MiB, on huge pages if possible.

    Direct reads into huge pages run twice as fast as into small ones. A page counts as memory
    from its first touch on; when all are touched the arena holds `num_bytes`, no more.
    """

    def __init__(self, num_bytes: int) -> None:
        """Raises BudgetError where the system refuses that much, ValueError below one byte."""
        mapping = _map_arena(num_bytes)
        whole = np.frombuffer(mapping, dtype=np.uint8)
        skip_bytes = -address_of(whole) % HUGE_PAGE_BYTES
        self.num_bytes = num_bytes
        self.address = address_of(whole) + skip_bytes
        self.huge_pages = _advise_huge_pages(mapping, skip_bytes, num_bytes)
        self._mapping: mmap.mmap | None = mapping
        self._bytes: npt.NDArray[np.uint8] | None = whole[skip_bytes : skip_bytes + num_bytes]
        _arenas.add(self)

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """The arena as an array, (num_bytes,) uint8. Raises ClosedError after `close`."""
        if self._bytes is None:
            raise ClosedError("the arena is closed: its bytes are gone")
        return self._bytes

    @property
    def resident_bytes(self) -> int:
        """How much of it is in memory now: pages that were touched. 0 after `close`."""
        if self._mapping is None:
            return 0
        num_pages = -(-self.num_bytes // mmap.PAGESIZE)
        return resident_pages(self.address, num_pages, mmap.PAGESIZE) * mmap.PAGESIZE

    def close(self) -> None:
        """Give the memory back; a second call does nothing.

        While an array of the caller still looks into the arena, the memory stays valid and
        resident, and goes with the last such array. Who holds only `address` gets no such
        protection: stop using it first.
        """
        mapping, self._mapping, self._bytes = self._mapping, None, None
        if mapping is not None:
            with contextlib.suppress(BufferError):  # their arrays now hold the only references
                mapping.close()

    def __enter__(self) -> "Arena":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def arenas_resident_bytes() -> int:
    """What all open arenas of this process hold together: less than their sizes while parts were
    never touched. Takes about 5 ms for each GiB."""
    return sum(arena.resident_bytes for arena in list(_arenas))


class AddressSpace:
    """A range of addresses without memory behind them: reading or writing there crashes.

    Made by `reserve_address_space`, which keeps others from being placed in the range.
    """

    def __init__(self, mapping: mmap.mmap, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.address = address_of(np.frombuffer(mapping, dtype=np.uint8))
        self._mapping = mapping

    def close(self) -> None:
        """Give the addresses back; a second call does nothing."""
        self._mapping.close()

    def __enter__(self) -> "AddressSpace":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reserve_address_space(num_bytes: int) -> AddressSpace:
    """`num_bytes` addresses that belong to us and cost no memory, whatever their number.

    Tensors that are declared and never read get their addresses here. Raises HaversackError
    where the system has no such range, or cannot reserve one without memory.
    """
    if sys.platform == "win32":
        raise HaversackError(
            "this system cannot reserve addresses without memory: run on Linux or macOS"
        )
    _check_mapping_bytes(num_bytes)
    try:  # private and not writable: not charged against the commit limit
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
    except (OSError, OverflowError) as error:
        raise HaversackError(
            f"the system refuses {format_bytes(num_bytes)} of addresses ({error}): raise ulimit -v"
        ) from error
    return AddressSpace(mapping, num_bytes)


def _system_ram(root: Path) -> tuple[int, int, str]:
    """(total bytes, available bytes, where the latter comes from)."""
    text = read_text(root / "proc/meminfo")
    fields = {line.split(":")[0]: line.split() for line in text.splitlines()}
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        memory = psutil.virtual_memory()
        return memory.total, memory.available, "available memory of the system"
    total_bytes, available_bytes = (
        int(fields[name][1]) * 1024 for name in ("MemTotal", "MemAvailable")
    )
    return total_bytes, available_bytes, "MemAvailable of /proc/meminfo"


def _group_limits(folder: Path) -> Iterator[_GroupLimit]:
    """The limits of one control group; none where it sets none or has no memory files.

    Version 1 may limit memory and swap together ("memsw"), which counts what was swapped out too.
    """
    for limit, usage in _LIMIT_FILES:
        limit_bytes, used_bytes = _read_int(folder / limit), _read_int(folder / usage)
        if limit_bytes is None or limit_bytes >= _UNLIMITED_BYTES:
            continue
        if used_bytes is None:
            used_bytes = limit_bytes  # unknown use: nothing can be promised
        available_bytes = limit_bytes - used_bytes + _reclaimable_bytes(folder)
        available_bytes = min(max(available_bytes, 0), limit_bytes)
        yield _GroupLimit(limit_bytes, available_bytes, str(folder / limit))


def _reclaimable_bytes(folder: Path) -> int:
    """File pages of the group and those below it that the kernel drops first."""
    lines = (line.split() for line in read_text(folder / "memory.stat").splitlines())
    stat = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    # version 1 leaves the groups below out of "inactive_file"; usage and the total have them
    return stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _read_int(file: Path) -> int | None:
    text = read_text(file).strip()
    return int(text) if text.isdigit() else None


def _status_bytes(field: bytes) -> int | None:
    """A "Field:  123 kB" line of /proc/self/status; None where there is none."""
    return _bytes_of(_read_status(), field)


def _read_status() -> bytes:
    """/proc/self/status, empty where there is none; unbuffered, as it is read once per token."""
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            return file.read(65536)
    except OSError:
        return b""


def _bytes_of(status: bytes, field: bytes) -> int | None:
    start = status.find(field)
    return None if start < 0 else int(status[start + len(field) :].split(None, 1)[0]) * 1024


def _map_arena(num_bytes: int) -> mmap.mmap:
    """Room for an aligned start anywhere in the first 2 MiB and `num_bytes` from there."""
    _check_mapping_bytes(num_bytes)
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES, flags=flags)
    except (OSError, OverflowError) as error:
        available_bytes = probe_ram().available_bytes
        raise BudgetError(
            f"the system refuses an arena of {format_bytes(num_bytes)} ({error}), "
            f"{format_bytes(available_bytes)} is available: lower --ram or raise ulimit -v",
            need_bytes=num_bytes,
            have_bytes=available_bytes,
        ) from error


def _check_mapping_bytes(num_bytes: int) -> None:
    if num_bytes < 1:
        raise ValueError(f"a mapping needs at least one byte, not {num_bytes}")


def _advise_huge_pages(mapping: mmap.mmap, start_bytes: int, num_bytes: int) -> bool:
    """Ask for huge pages inside the range only; True where the system grants them."""
    if sys.platform != "linux" or "[never]" in read_text(_HUGE_PAGE_MODE):
        return False
    end_bytes = start_bytes + num_bytes + -num_bytes % mmap.PAGESIZE
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE, start_bytes, num_bytes)
        # a huge page over the end would make resident what nobody asked for
        mapping.madvise(mmap.MADV_NOHUGEPAGE, end_bytes)
    except OSError:
        return False
    return True
