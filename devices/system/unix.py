"""Functions that Linux and macOS share."""

import fcntl
import io
import mmap
import os
import resource
from pathlib import Path

import numpy as np

from haversack.devices._native import address_of, libc

OPEN_FLAGS = os.O_CLOEXEC


def reserve(num_bytes: int) -> tuple[int, object]:
    """The mapping is private and not writable, so it does not count against the commit limit."""
    mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
    return address_of(np.frombuffer(mapping, np.uint8)), mapping


def decommit(address: int, num_bytes: int) -> None:
    """Maps new pages over the old ones, so that they no longer count against the commit limit."""
    libc.map_unusable(address, num_bytes)


def resident_bytes(address: int, num_bytes: int) -> int:
    num_pages = num_bytes // mmap.PAGESIZE
    return libc.resident_pages(address, num_pages, mmap.PAGESIZE) * mmap.PAGESIZE


def read_at(file: io.FileIO, view: memoryview, offset: int) -> int:
    """Python itself repeats an interrupted call."""
    return os.preadv(file.fileno(), [view], offset)


def read_bytes(descriptor: int, num_bytes: int, offset: int) -> bytes:
    return os.pread(descriptor, num_bytes, offset)


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    return os.pwrite(descriptor, data, offset)


def most_open_files() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def disk_bytes_of(path: Path) -> int:
    return path.stat().st_blocks * 512


def lock(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
