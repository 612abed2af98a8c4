"""The streamer: has experts read from the model's files straight into their slots.

Two classes of work: a demand read is waited for, a read ahead is a guess. Guesses are begun only
while no demand read waits for a thread, and few at a time, so that a demand read that comes finds
the drive all but free.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from haversack.devices.errors import CancelledError, HaversackError
from haversack.devices.interrupts import StopFlag
from haversack.devices.readers import Read, Readers, Request
from haversack.devices.storage import DirectFile, padded_range
from haversack.offload.pool import ExpertPool, resting_place
from haversack.quant.gguf import ExpertMatrix

NUM_READERS = 4  # on a drive that was not measured; its speed says how many it needs
AHEAD_READERS = 2  # of them, at most, for guesses: what a demand read may have to wait for

Place = tuple[ExpertPool, int, int]  # pool, matrix index, slot
OpenFile = Callable[[Path], DirectFile]


class Streamer:
    """Reads of single matrices, many at once, demand first, in the order they are asked for.

    `readers` makes them, for those who ask it without Python.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        num_readers: int = NUM_READERS,
        open_file: OpenFile = DirectFile,
    ) -> None:
        """Raises StorageError if a file cannot be opened."""
        self._files: list[DirectFile] = []
        try:
            for path in paths:
                self._files.append(open_file(path))
        except BaseException:
            self._close_files()
            raise
        self.readers = Readers(self._files, num_readers, AHEAD_READERS)
        self._kept: deque[Read] = deque()  # until they are done: threads write into them
        self._closed = False

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""
        return all(file.direct for file in self._files)

    @property
    def bytes_read(self) -> int:
        return int(self.readers.counts().bytes_read)

    @property
    def busy_s(self) -> float:
        """Time in which at least one read was under way."""
        return float(self.readers.counts().busy_s)

    @property
    def wait_s(self) -> float:
        """Time the model waited for reads."""
        return float(self.readers.counts().wait_s)

    # --------------------------------------------------------------- requests
    def read(self, matrix: ExpertMatrix, expert: int, place: Place, ahead: bool = False) -> Read:
        """Have one expert's matrix read into `place`, `ahead` of a demand or at once."""
        if self._closed:
            raise HaversackError("the model is closed: load it again")
        pool, index, slot = place
        (copy,) = matrix.copies
        num_bytes = copy.num_bytes
        start, length, residue = padded_range(copy.offset + expert * num_bytes, num_bytes)
        request = Request(
            room=pool.address(index, slot),
            offset=start,
            length=length,
            need=residue + num_bytes,
            source=residue,
            target=resting_place(matrix),
            num_bytes=num_bytes,
            file=copy.part,
        )
        while self._kept and self._kept[0].done:
            self._kept.popleft()
        read = Read(self.readers, request, ahead)
        self._kept.append(read)
        self.readers.submit([read])
        return read

    def demand(self, reads: Sequence[Read]) -> None:
        """Reads ahead turned out to be wanted: they wait no longer than others."""
        self.readers.demand(reads)

    def cancel(self, reads: Sequence[Read]) -> None:
        """Those of `reads` that have not begun never begin."""
        self.readers.cancel(reads)

    # ---------------------------------------------------------------- waiting
    def wait(self, reads: Sequence[Read], stop: StopFlag) -> None:
        """Return when all `reads` are done. Raises StorageError if one failed, CancelledError if
        `stop` asked for it meanwhile."""
        self._wait(reads, True, stop)
        _raise_failure(reads)

    def wait_for_some(self, reads: Sequence[Read], stop: StopFlag) -> list[bool]:
        """Return when at least one of `reads` is done: which of them are. Raises like `wait`."""
        self._wait(reads, False, stop)
        done = [read.done for read in reads]
        _raise_failure([read for read in reads if read.done])
        return done

    def _wait(self, reads: Sequence[Read], for_all: bool, stop: StopFlag) -> None:
        if not self.readers.wait(reads, for_all, lambda: stop.requested):
            raise CancelledError("the call was cancelled while it waited for the disk")

    def settle(self, reads: Sequence[Read]) -> list[bool]:
        """Cancel what has not begun, wait for the rest; tells which reads brought their bytes."""
        self.readers.settle(reads)
        return [read.came for read in reads]

    def drain(self) -> None:
        """Return when no read is under way any more; those not begun never begin."""
        self.readers.drain()

    # ---------------------------------------------------------------- closing
    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def close(self) -> None:
        """Wait for the reads under way and close the files; no thread is left behind. May be
        called twice."""
        self._closed = True
        self.readers.close()
        self._close_files()


def _raise_failure(reads: Sequence[Read]) -> None:
    for read in reads:
        if (error := read.error) is not None:
            raise error
        if not read.came:
            raise CancelledError("the call was cancelled before its experts were read")
