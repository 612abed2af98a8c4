"""The readers that bring experts into slots; their C++ sources are devices/native/readers.*."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.errors import StorageError
from haversack.devices.forks import Birthplace
from haversack.devices.pace import PacedFile
from haversack.devices.storage import DirectFile

_FILE_ENDED, _FOREIGN_ERROR = -1, -2


class Failure(NamedTuple):
    """The fields of a read that failed; `read` is its address."""

    read: int
    file: int
    error: int
    offset: int
    need: int
    got: int


class Readers:
    """Makes `num_readers` reads at once, at most `num_ahead` of them prefetches.

    Linux's io_uring makes the reads if the system has one and all files are plain or paced and
    direct. Otherwise `num_readers` threads read. A file of another class is read by its own
    `read_into`. The engine submits the reads, by `address`.
    """

    def __init__(
        self, files: Sequence[DirectFile], num_readers: int, num_ahead: int, ring: bool = True
    ) -> None:
        """`ring`: whether io_uring may be used."""
        self._files = files
        self._errors: dict[int, BaseException] = {}  # of foreign files, by read
        self._read_into = own.ReadInto(self._read_foreign)
        # A read out of the page cache is a copy, so threads make it beside the caller.
        with_ring = ring and all(_is_plain(file) and file.direct for file in files)
        self._birthplace = Birthplace()
        self.address = own.readers_new(num_readers, num_ahead, self._read_into, with_ring)
        if not self.address:
            raise StorageError("the system grants no thread to read with: raise ulimit -u")
        for file in files:
            descriptor = file.fileno() if _is_plain(file) else -1
            pace = file.pace.address if type(file) is PacedFile else None
            own.readers_add_file(self.address, descriptor, file.direct, pace)

    def _read_foreign(self, read: Any) -> int:
        fields = read.contents
        try:
            buffer = native.array_at(fields.room, (fields.length,), np.uint8)
            self._files[fields.file].read_into(buffer, fields.offset, fields.need)
        except BaseException as error:
            self._errors[native.addressof(fields)] = error
            return -1
        return 0

    def touch_ahead(self, address: int, num_bytes: int) -> None:
        """Make the pages of the `num_bytes` of slots at `address` before reads land there, up to
        1 GiB beyond the highest read so far.

        A later call for the same address changes the number of bytes. It returns when no page
        beyond them is being made. Before Linux 5.14 and on other systems nothing happens.
        """
        own.readers_touch_ahead(self.address, address, num_bytes)

    def counts(self) -> Any:
        """Return the totals `bytes_read`, `busy_s` (at least one read was under way) and `wait_s`,
        and how many prefetches wait now (`num_ahead`) and reads are under way (`num_reading`)."""
        counts = own.ReadCounts()
        own.readers_counts(self.address, counts)
        return counts

    def error(self, failure: Failure) -> BaseException:
        """Return the exception that says why a read failed."""
        if failure.error == _FOREIGN_ERROR:
            return self._errors[failure.read]
        why = "the file ends there" if failure.error == _FILE_ENDED else os.strerror(failure.error)
        file = self._files[failure.file]
        return file.read_error(failure.offset, failure.need, failure.got, why)

    def close(self) -> None:
        """Wait for the reads under way and end all threads. May be called twice."""
        own.readers_close(self.address)

    def __del__(self) -> None:
        if self._birthplace.is_here:  # a forked child has none of the threads to wait for
            own.readers_delete(self.address)


def _is_plain(file: DirectFile) -> bool:
    return type(file) in (DirectFile, PacedFile)
