"""Reads into slots, as our own library makes them; sources in devices/native/."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.errors import StorageError
from haversack.devices.forks import Birthplace
from haversack.devices.pace import PacedFile
from haversack.devices.storage import DirectFile

_CAME, _FAILED = 2, 3  # of enum State; all from the first of them on are final
_FILE_ENDED, _FOREIGN_ERROR = -1, -2


class Request(NamedTuple):
    """Read `length` bytes from `offset` of the file numbered `file` to the address `room`, `need`
    of them at least; then have the `num_bytes` that land at `source` in the room lie at
    `target`."""

    room: int
    offset: int
    length: int
    need: int
    source: int
    target: int
    num_bytes: int
    file: int


class Read:
    """One read, in memory that the library shares. It must be kept until it is `done`: then it
    came, or failed with `error`, or was cancelled."""

    __slots__ = ("_readers", "fields")

    def __init__(self, readers: "Readers", request: Request, ahead: bool) -> None:
        self._readers = readers
        self.fields = own.Read(*request, ahead)

    @property
    def ahead(self) -> bool:
        return bool(self.fields.ahead)

    @property
    def done(self) -> bool:
        """Whether it will not change any more."""
        return int(self.fields.state) >= _CAME

    @property
    def came(self) -> bool:
        return int(self.fields.state) == _CAME

    @property
    def error(self) -> BaseException | None:
        """Why it failed, None if it did not."""
        fields = self.fields
        if int(fields.state) != _FAILED:
            return None
        numbers = fields.file, fields.error, fields.offset, fields.need, fields.got
        return self._readers.error(Failure(native.addressof(fields), *numbers))


class Failure(NamedTuple):
    """What a read that failed left behind; `read` is its address."""

    read: int
    file: int
    error: int
    offset: int
    need: int
    got: int


class Readers:
    """Makes `num_readers` reads at once, at most `num_ahead` of them ahead of demand.

    Direct files are read by Linux's io_uring where there is one and all are plain or paced; else
    so many threads read, files of another class by its own `read_into`.
    """

    def __init__(
        self, files: Sequence[DirectFile], num_readers: int, num_ahead: int, ring: bool = True
    ) -> None:
        """`ring`: whether io_uring may be used."""
        self._files = files
        self._errors: dict[int, BaseException] = {}  # of foreign files, by read
        self._read_into = own.ReadInto(self._read_foreign)
        # reads out of the page cache are copies: threads make those beside the caller
        with_ring = ring and all(_is_plain(file) and file.direct for file in files)
        self._birthplace = Birthplace()
        self.address = own.readers_new(num_readers, num_ahead, self._read_into, with_ring)
        if not self.address:
            raise StorageError("the system grants no thread to read with: raise ulimit -u")
        for file in files:
            descriptor = file.fileno() if _is_plain(file) else -1
            pace = file.pace.address if type(file) is PacedFile else None
            own.readers_add_file(self.address, descriptor, file.direct, pace)

    @property
    def by_ring(self) -> bool:
        """Whether Linux's io_uring reads, in place of threads."""
        return bool(own.readers_by_ring(self.address))

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
        """Make pages of these `num_bytes` of slots before reads land there, as far as 16 MiB beyond
        the highest read so far. A later call for the same address changes their number; it returns
        when no page beyond them is being made. Before Linux 5.14 and elsewhere nothing is done."""
        own.readers_touch_ahead(self.address, address, num_bytes)

    def submit(self, reads: Sequence[Read]) -> None:
        """Begin `reads` in this order as soon as threads are free."""
        own.readers_submit(self.address, *_listed(reads))

    def demand(self, reads: Sequence[Read]) -> None:
        """Prefetches turned out to be wanted: they wait no longer than demand reads."""
        own.readers_demand(self.address, *_listed(reads))

    def cancel(self, reads: Sequence[Read]) -> None:
        """Those of `reads` that have not begun never begin."""
        own.readers_cancel(self.address, *_listed(reads))

    def wait(self, reads: Sequence[Read], for_all: bool, should_stop: Callable[[], bool]) -> bool:
        """Return when all (or any) `reads` are done; False if `should_stop` came first."""
        stop = own.ShouldStop(should_stop)
        return bool(own.readers_wait(self.address, *_listed(reads), for_all, stop))

    def settle(self, reads: Sequence[Read]) -> None:
        """Cancel what has not begun, wait for the rest."""
        own.readers_settle(self.address, *_listed(reads))

    def drain(self) -> None:
        """Return when no read is under way any more; those not begun never begin."""
        own.readers_drain(self.address)

    def counts(self) -> Any:
        """Totals: `bytes_read`, `busy_s` (at least one read was under way), `wait_s`; and how many
        prefetches wait now (`num_ahead`) and how many reads are under way (`num_reading`)."""
        counts = own.ReadCounts()
        own.readers_counts(self.address, counts)
        return counts

    def error(self, failure: Failure) -> BaseException:
        """Why a read failed, as an exception to raise."""
        if failure.error == _FOREIGN_ERROR:
            return self._errors[failure.read]
        why = "the file ends there" if failure.error == _FILE_ENDED else os.strerror(failure.error)
        file = self._files[failure.file]
        return file.read_error(failure.offset, failure.need, failure.got, why)

    def close(self) -> None:
        """Wait for the reads under way; no thread is left behind. May be called twice."""
        own.readers_close(self.address)

    def __del__(self) -> None:
        if self._birthplace.is_here:  # a child of it has none of its threads to wait for
            own.readers_delete(self.address)


def _is_plain(file: DirectFile) -> bool:
    return type(file) in (DirectFile, PacedFile)


def _listed(reads: Sequence[Read]) -> tuple[Any, int]:
    kind = own.ReadPointer * len(reads)
    return kind(*[native.pointer_to(read.fields) for read in reads]), len(reads)
