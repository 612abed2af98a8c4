"""The functions of Windows; `devices.system` says what each returns."""

import ctypes as c
import io
import msvcrt
import os
import sys
import weakref
from ctypes import wintypes as w
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from haversack.devices._native import address_of, own
from haversack.devices.system.cgroup import MemoryLimit

assert sys.platform == "win32"  # type checkers of other systems skip what follows

OPEN_FLAGS = os.O_BINARY | os.O_NOINHERIT
_kernel: Any = c.WinDLL("kernel32", use_last_error=True)
_MEM_COMMIT, _MEM_RESERVE, _MEM_DECOMMIT, _MEM_RELEASE = 0x1000, 0x2000, 0x4000, 0x8000
_PAGE_NOACCESS, _PAGE_READWRITE = 0x01, 0x04
_GENERIC_READ, _OPEN_EXISTING, _SHARE_ALL = 0x80000000, 3, 7
_OVERLAPPED_FLAG, _NO_BUFFERING, _RANDOM_ACCESS = 0x40000000, 0x20000000, 0x10000000
_FILE_STORAGE_INFO = 16  # of FILE_INFO_BY_HANDLE_CLASS
_PAGE_BYTES = 4096
_MOST_OPEN_FILES = 8192  # of the C library
_EXTENDED_LIMITS, _PROCESS_MEMORY, _JOB_MEMORY = 9, 0x100, 0x200  # of JOBOBJECT_...
_LOCK_AT_ONCE, _LOCK_ALONE = 1, 2
_LOCK_VIOLATION = 33
_LOCK_OFFSET = 1 << 62  # behind every file's end, because locked bytes cannot be read by others
_INVALID_HANDLE = c.c_void_p(-1).value

_VirtualAlloc = _kernel.VirtualAlloc
_VirtualAlloc.restype = c.c_void_p
_VirtualAlloc.argtypes = c.c_void_p, c.c_size_t, w.DWORD, w.DWORD
_VirtualFree = _kernel.VirtualFree
_VirtualFree.argtypes = c.c_void_p, c.c_size_t, w.DWORD
_CreateFile = _kernel.CreateFileW
_CreateFile.restype = w.HANDLE
_CreateFile.argtypes = w.LPCWSTR, w.DWORD, w.DWORD, c.c_void_p, w.DWORD, w.DWORD, w.HANDLE

_CompressedSize = _kernel.GetCompressedFileSizeW
_CompressedSize.restype = w.DWORD
_CompressedSize.argtypes = w.LPCWSTR, c.POINTER(w.DWORD)


class _StorageInfo(c.Structure):
    """struct FILE_STORAGE_INFO"""

    _fields_ = tuple(
        (name, w.DWORD)
        for name in (
            *("logical_sector_bytes", "atomic_bytes", "performance_bytes", "effective_bytes"),
            *("flags", "sector_offset", "partition_offset"),
        )
    )


class _JobLimits(c.Structure):
    """struct JOBOBJECT_EXTENDED_LIMIT_INFORMATION"""

    _fields_ = (
        *(("process_time", c.c_int64), ("job_time", c.c_int64), ("flags", w.DWORD)),
        *(("least_set", c.c_size_t), ("most_set", c.c_size_t), ("num_processes", w.DWORD)),
        *(("affinity", c.c_size_t), ("priority", w.DWORD), ("scheduling", w.DWORD)),
        ("io", c.c_uint64 * 6),
        *(("process_bytes", c.c_size_t), ("job_bytes", c.c_size_t)),
        *(("peak_process_bytes", c.c_size_t), ("peak_job_bytes", c.c_size_t)),
    )


class _Place(c.Structure):
    """struct OVERLAPPED"""

    _fields_ = (
        *(("internal", c.c_size_t), ("internal_high", c.c_size_t)),
        *(("offset", w.DWORD), ("offset_high", w.DWORD), ("event", w.HANDLE)),
    )


def _check(done: Any) -> Any:
    if not done:
        raise c.WinError(c.get_last_error())
    return done


# --------------------------------------------------------------------- memory
def memory_status() -> tuple[int, int, int] | None:
    """Private bytes, which Windows counts when they are committed, touched or not. Takes 10 us."""
    found = psutil.Process().memory_info()
    return found.peak_pagefile, found.pagefile, 0


def forget_peak() -> None:
    pass


def ram(root: Path) -> tuple[int, int, str] | None:
    return None


def memory_limits(root: Path) -> list[MemoryLimit]:
    """Of the job that this process is in; a job within a job counts alone."""
    limits = _JobLimits()
    if not _kernel.QueryInformationJobObject(
        None, _EXTENDED_LIMITS, c.byref(limits), c.sizeof(limits), None
    ):
        return []
    used_bytes = psutil.Process().memory_info().pagefile
    kinds = ((_PROCESS_MEMORY, limits.process_bytes), (_JOB_MEMORY, limits.job_bytes))
    return [
        MemoryLimit(num_bytes, max(0, num_bytes - used_bytes), "a memory limit of the job object")
        for flag, num_bytes in kinds
        if limits.flags & flag
    ]


def allowed_cores() -> int | None:
    return len(psutil.Process().cpu_affinity())


class _Range:
    """Reserved addresses, released with the last reference to this."""

    def __init__(self, address: int) -> None:
        weakref.finalize(self, _VirtualFree, address, 0, _MEM_RELEASE)


def reserve(num_bytes: int) -> tuple[int, object]:
    address = int(_check(_VirtualAlloc(None, num_bytes, _MEM_RESERVE, _PAGE_NOACCESS)))
    return address, _Range(address)


def commit(address: int, num_bytes: int) -> bool:
    """Large pages are not used: they would be taken whole when they are reserved, so that slots
    could neither grow nor shrink."""
    _check(_VirtualAlloc(address, num_bytes, _MEM_COMMIT, _PAGE_READWRITE))
    return False


def decommit(address: int, num_bytes: int) -> None:
    _check(_VirtualFree(address, num_bytes, _MEM_DECOMMIT))


def resident_bytes(address: int, num_bytes: int) -> int:
    """All of it, as private bytes count it."""
    return num_bytes


def give_back_freed_memory() -> None:
    pass


def keep_freed_memory() -> bool:
    return False


# ---------------------------------------------------------------------- files
def _open(path: Path, flags: int) -> io.FileIO:
    """A file that other programs may replace or remove meanwhile, as on Linux."""
    handle = _CreateFile(
        _long_path(path), _GENERIC_READ, _SHARE_ALL, None, _OPEN_EXISTING, flags, None
    )
    if handle == _INVALID_HANDLE:
        raise c.WinError(c.get_last_error())
    return io.FileIO(msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_BINARY))


def _long_path(path: Path) -> str:
    """Return the path in the form that may be longer than 260 characters."""
    text = os.path.abspath(path)
    if text.startswith("\\\\"):
        return text if text.startswith("\\\\?\\") else "\\\\?\\UNC\\" + text[2:]
    return "\\\\?\\" + text


def open_direct(path: Path) -> tuple[io.FileIO | None, str]:
    file = _open(path, _OVERLAPPED_FLAG | _NO_BUFFERING)
    info = _StorageInfo()
    handle = w.HANDLE(msvcrt.get_osfhandle(file.fileno()))
    known = _kernel.GetFileInformationByHandleEx(
        handle, _FILE_STORAGE_INFO, c.byref(info), c.sizeof(info)
    )
    sector_bytes = info.logical_sector_bytes if known else 0
    if sector_bytes > _PAGE_BYTES:
        file.close()
        return None, f"the drive has sectors of {sector_bytes} bytes, more than {_PAGE_BYTES}"
    said = f"sectors of {sector_bytes} bytes" if sector_bytes else "sectors of unknown size"
    return file, f"FILE_FLAG_NO_BUFFERING is set, {said}"


def open_plain(path: Path) -> io.FileIO:
    return _open(path, _OVERLAPPED_FLAG | _RANDOM_ACCESS)


def read_at(file: io.FileIO, view: memoryview, offset: int) -> int:
    address = address_of(np.frombuffer(view, np.uint8))
    count = int(own.read_at(file.fileno(), address, len(view), offset))
    if count < 0:
        raise OSError(-count, os.strerror(-count))
    return count


def read_bytes(descriptor: int, num_bytes: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, num_bytes)


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)


def most_open_files() -> int:
    return _MOST_OPEN_FILES


def disk_bytes_of(path: Path) -> int:
    upper = w.DWORD()
    return int(_CompressedSize(_long_path(path), c.byref(upper))) + (upper.value << 32)


def lock(descriptor: int, wait: bool) -> bool:
    place = _Place(offset=_LOCK_OFFSET & 0xFFFFFFFF, offset_high=_LOCK_OFFSET >> 32)
    flags = _LOCK_ALONE | (0 if wait else _LOCK_AT_ONCE)
    handle = w.HANDLE(msvcrt.get_osfhandle(descriptor))
    if _kernel.LockFileEx(handle, flags, 0, 1, 0, c.byref(place)):
        return True
    if c.get_last_error() == _LOCK_VIOLATION:
        return False
    raise c.WinError(c.get_last_error())
