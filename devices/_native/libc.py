"""The binding to functions of the C library of Linux and macOS that Python's modules leave out."""

import ctypes as c
import mmap
import os

import numpy as np

from haversack.devices._native import Address, address_of

_libc = c.CDLL(None, use_errno=True)
_MAP_FIXED = 0x10  # of sys/mman.h


def task_info(flavor: int, info: c.Structure) -> bool:
    """kern_return_t task_info(task, task_flavor_t, task_info_t, mach_msg_type_number_t *) of macOS:
    fill `info`; whether that worked, to its last field."""
    wanted = c.sizeof(info) // 4
    task, count = c.c_uint32.in_dll(_libc, "mach_task_self_"), c.c_uint32(wanted)
    failed = _libc.task_info(task, flavor, c.byref(info), c.byref(count))
    return failed == 0 and count.value >= wanted


def optional(name: str, *numbers: int) -> int | None:
    """Call a C function of `long` arguments that returns an int; None if the C library has no
    function of that name."""
    function = getattr(_libc, name, None)
    return None if function is None else int(function(*map(c.c_long, numbers)))


def make_usable(address: int, num_bytes: int) -> None:
    """int mprotect(void * addr, size_t len, int prot), which changes nothing where it is refused,
    unlike mapping the pages anew. Raises OSError."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if _libc.mprotect(Address(address), c.c_size_t(num_bytes), protection):
        raise OSError(c.get_errno(), os.strerror(c.get_errno()))


def map_unusable(address: int, num_bytes: int) -> None:
    """void * mmap(addr, size_t length, int prot, int flags, int fd, off_t offset): unusable pages
    over those that are there. Raises OSError."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    function = _libc.mmap
    function.restype = Address
    if function(Address(address), c.c_size_t(num_bytes), 0, flags, -1, c.c_int64(0)) != address:
        raise OSError(c.get_errno(), os.strerror(c.get_errno()))


def madvise(address: int, num_bytes: int, advice: int) -> bool:
    """int madvise(void * addr, size_t length, int advice); whether it is followed."""
    return int(_libc.madvise(Address(address), c.c_size_t(num_bytes), advice)) == 0


def resident_pages(address: int, num_pages: int, page_bytes: int) -> int:
    """int mincore(void * addr, size_t length, unsigned char * vec): how many of the pages from
    `address` on are in memory; 0 where they are not mapped."""
    found = np.zeros(num_pages, np.uint8)
    length = c.c_size_t(num_pages * page_bytes)
    failed = _libc.mincore(Address(address), length, Address(address_of(found)))
    return 0 if failed else int(np.count_nonzero(found & 1))
