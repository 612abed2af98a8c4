"""Host memory: how much there is (RAM and control groups), how much this process holds, and the
memory of slots."""

import mmap
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil

from haversack.devices.errors import BudgetError, ClosedError
from haversack.devices.system import host
from haversack.devices.units import format_bytes

PAGE_BYTES = 4096  # the unit of direct reads, whatever the system's own page is
HUGE_PAGE_BYTES = 2 * 1024 * 1024

_MARK_SLACK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class RamProbe:
    """The bytes that the machine and its control groups leave to this process."""

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None  # of the tightest control group; None if no group sets a limit
    source: str  # where `available_bytes` was read


def probe_ram(root: Path = Path("/")) -> RamProbe:
    """Return the RAM of this machine and how much of it may still be taken.

    `available_bytes` is the least of the system's own estimate and of what each control group
    leaves, from ours up to the root. `root` is where /proc and /sys are.
    """
    total_bytes, available_bytes, source = host.ram(root) or _virtual_memory()
    limits = host.memory_limits(root)
    ruling = min(limits, key=lambda limit: limit.available_bytes, default=None)
    if ruling is not None and ruling.available_bytes < available_bytes:
        available_bytes, source = ruling.available_bytes, ruling.source
    limit_bytes = min((limit.limit_bytes for limit in limits), default=None)
    return RamProbe(total_bytes, available_bytes, limit_bytes, source)


def _virtual_memory() -> tuple[int, int, str]:
    memory = psutil.virtual_memory()
    return memory.total, memory.available, "available memory of the system"


def beyond_ram(wanted_bytes: int) -> str:
    """Return in a line that so many bytes are more than this computer, or a control group, lets the
    process have; empty if they are not."""
    found = probe_ram()
    most_bytes = min(found.total_bytes, found.limit_bytes or found.total_bytes)
    if wanted_bytes <= most_bytes:
        return ""
    return (
        f"{format_bytes(wanted_bytes)} are more than the {format_bytes(most_bytes)} that this"
        " process can have here: before they are full, the system swaps or ends the process; lower"
        " --ram"
    )


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process, which a RAM budget bounds. Takes 15 us on Linux.

    On other systems it is the nearest figure there is: memory that only this process holds.
    """
    return _Status.read().anonymous_bytes


class _Status(NamedTuple):
    """The highest resident size that this process ever had, and the bytes of anonymous and of other
    pages that are resident now."""

    mark_bytes: int
    anonymous_bytes: int
    file_bytes: int

    @classmethod
    def read(cls) -> "_Status":
        return cls(*(host.memory_status() or (0, _unshared_bytes(), 0)))


def _unshared_bytes() -> int:
    return int(psutil.Process().memory_full_info().uss)


class PeakMeter:
    """The most anonymous memory that this process held since the meter was made.

    The kernel keeps the highest resident size ever, VmHWM, which includes file pages. If VmHWM grew
    between two looks, the peak fell between them. Its anonymous part was at most VmHWM less the
    file pages; the smaller count of file pages of both looks is taken. So memory that was allocated
    and freed between two looks is seen. The figure is never too low; it is too high by the file
    pages that were added between the looks. Without VmHWM it is the highest of the looks.
    """

    def __init__(self) -> None:
        for meter in list(_meters):
            meter.look()
        _lower_the_mark()
        self._status = _Status.read()
        self._peak_bytes = self._status.anonymous_bytes
        _meters.add(self)

    def look(self) -> int:
        """Return the peak so far in bytes. Takes 20 us on Linux."""
        before, self._status = self._status, _Status.read()
        peak_bytes = self._status.anonymous_bytes
        if self._status.mark_bytes != before.mark_bytes:  # it grew, or a newer meter lowered it
            file_bytes = min(before.file_bytes, self._status.file_bytes)
            peak_bytes = max(peak_bytes, self._status.mark_bytes - file_bytes)
        self._peak_bytes = max(self._peak_bytes, peak_bytes)
        return self._peak_bytes


_meters: "weakref.WeakSet[PeakMeter]" = weakref.WeakSet()


def _lower_the_mark() -> None:
    """Have the kernel count the peak anew, so that an old peak does not hide later ones. Where it
    cannot, a peak below the old one is seen only if it lasts until a look."""
    status = _Status.read()
    if status.mark_bytes - status.anonymous_bytes - status.file_bytes >= _MARK_SLACK_BYTES:
        host.forget_peak()


class SlotMemory:
    """Memory that grows and shrinks in its place: of `most_bytes` addresses the first `num_bytes`
    may be used. Reading or writing beyond them crashes.

    It begins at a multiple of 2 MiB and lies on huge pages if possible (`huge_pages`), because
    direct reads into huge pages run twice as fast. A page counts as memory once it was touched.
    When all are touched, `num_bytes` rounded up to whole pages are held.
    """

    def __init__(self, most_bytes: int, num_bytes: int | None = None) -> None:
        """`num_bytes` defaults to all. Raises BudgetError where the system has no such range of
        addresses, ValueError below one byte, and what `resize` raises."""
        if most_bytes < 1:
            raise ValueError(f"a range of addresses needs at least one byte, not {most_bytes}")
        self.most_bytes = most_bytes
        try:
            start, mapping = host.reserve(most_bytes + HUGE_PAGE_BYTES)
        except (OSError, OverflowError) as error:
            raise _refusal("addresses", most_bytes, error) from error
        self._mapping: object | None = mapping
        self.address = start + -start % HUGE_PAGE_BYTES
        self.num_bytes, self.huge_pages = 0, False
        self.resize(most_bytes if num_bytes is None else num_bytes)
        _memories.add(self)

    def resize(self, num_bytes: int) -> None:
        """Make the first `num_bytes` usable. New bytes read as zeros. Bytes that are no longer
        usable go back to the system, so nothing may read or write there.

        Raises BudgetError where the system refuses the memory, ClosedError after `close`.
        """
        if not 0 <= num_bytes <= self.most_bytes:
            raise ValueError(f"{num_bytes} bytes were asked for, of {self.most_bytes} addresses")
        self._open_mapping()
        old_bytes, new_bytes = _whole_pages(self.num_bytes), _whole_pages(num_bytes)
        try:
            if new_bytes > old_bytes:
                grown = self.address + old_bytes, new_bytes - old_bytes
                self.huge_pages = host.commit(*grown)
            elif new_bytes < old_bytes:
                host.decommit(self.address + new_bytes, old_bytes - new_bytes)
        except OSError as error:
            raise _refusal("memory for slots", num_bytes, error) from error
        self.num_bytes = num_bytes

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """Return the usable bytes as an array, (num_bytes,) uint8. Raises ClosedError after
        `close`."""
        return np.asarray(_View(self._open_mapping(), self.address, self.num_bytes))

    @property
    def resident_bytes(self) -> int:
        """Return how many of its bytes are in memory: pages that were touched. 0 after `close`."""
        if self._mapping is None:
            return 0
        return host.resident_bytes(self.address, _whole_pages(self.num_bytes))

    def _open_mapping(self) -> object:
        if self._mapping is None:
            raise ClosedError("the memory for slots is closed: its bytes are gone")
        return self._mapping

    def close(self) -> None:
        """Give the addresses and the memory back; a second call does nothing.

        The range stays while an array of the caller views it, and goes with the last such array. An
        address alone does not keep it, so stop using addresses first.
        """
        self._mapping = None  # it is unmapped with its last reference

    def __enter__(self) -> "SlotMemory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _View:
    """A range of a mapping, of which NumPy makes an array that keeps the mapping."""

    def __init__(self, mapping: object, address: int, num_bytes: int) -> None:
        self._mapping = mapping
        place = {"data": (address, False), "shape": (num_bytes,), "typestr": "|u1"}
        self.__array_interface__ = {**place, "version": 3}


_memories: "weakref.WeakSet[SlotMemory]" = weakref.WeakSet()


def slots_resident_bytes() -> int:
    """Return the bytes that all open `SlotMemory` of this process hold in memory: less than their
    size while parts were never touched. Takes about 5 ms for each GiB."""
    return sum(memory.resident_bytes for memory in list(_memories))


def _whole_pages(num_bytes: int) -> int:
    return num_bytes + -num_bytes % mmap.PAGESIZE


def _refusal(what: str, num_bytes: int, error: Exception) -> BudgetError:
    available_bytes = probe_ram().available_bytes
    return BudgetError(
        f"the system refuses {format_bytes(num_bytes)} of {what} ({error}),"
        f" {format_bytes(available_bytes)} is available: lower --ram or raise ulimit -v",
        need_bytes=num_bytes,
        have_bytes=available_bytes,
    )
