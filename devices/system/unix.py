"""Functions that Linux and macOS share."""

import io
import mmap
import os

from haversack.devices._native import libc


def reserve(num_bytes: int) -> mmap.mmap:
    """The mapping is private and not writable, so it does not count against the commit limit."""
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)


def decommit(address: int, num_bytes: int) -> None:
    """Maps new pages over the old ones, so that they no longer count against the commit limit."""
    libc.map_unusable(address, num_bytes)


def resident_bytes(address: int, num_bytes: int) -> int:
    num_pages = num_bytes // mmap.PAGESIZE
    return libc.resident_pages(address, num_pages, mmap.PAGESIZE) * mmap.PAGESIZE


def read_at(file: io.FileIO, view: memoryview, offset: int) -> int:
    """Python itself repeats an interrupted call."""
    return os.preadv(file.fileno(), [view], offset)
