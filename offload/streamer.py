"""The streamer: threads that read experts from the model's files straight into their slots.

Two classes of work: a demand read is waited for, a read ahead is a guess. Guesses are begun only
while no demand read waits for a thread, and few at a time, so that a demand read that comes finds
the drive all but free.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from haversack.devices.errors import CancelledError, HaversackError
from haversack.devices.interrupts import StopFlag
from haversack.devices.memory import move_bytes
from haversack.devices.storage import DirectFile, padded_range
from haversack.offload.pool import ExpertPool, resting_place
from haversack.quant.gguf import ExpertMatrix

NUM_READERS = 8  # measured: 4 to 8 reads of about 1 MB at once fill a drive
AHEAD_READERS = 2  # of them, at most, for guesses: what a demand read may have to wait for
_LOOK_UP_S = 0.1  # how long a wait may be deaf to a request to stop

Place = tuple[ExpertPool, int, int]  # pool, matrix index, slot
OpenFile = Callable[[Path], DirectFile]


class Read:
    """One matrix of one expert on its way into its place.

    `done` says that it will not change any more; then it came, or failed with `error`, or was
    cancelled.
    """

    __slots__ = ("ahead", "came", "done", "error", "expert", "matrix", "place")

    def __init__(self, matrix: ExpertMatrix, expert: int, place: Place, ahead: bool) -> None:
        self.matrix, self.expert, self.place = matrix, expert, place
        self.ahead = ahead
        self.done = self.came = False
        self.error: BaseException | None = None


class Streamer:
    """Reads of single matrices, many at once, demand first, in the order they are asked for."""

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
        lock = threading.Lock()
        self._work, self._progress = threading.Condition(lock), threading.Condition(lock)
        self._demand: deque[Read] = deque()
        self._ahead: deque[Read] = deque()
        self._num_reading = self._num_ahead = 0
        self._busy_since = 0.0
        self._closing = False
        self.bytes_read = 0
        self.busy_s = 0.0  # time in which at least one read was under way
        self.wait_s = 0.0  # time the model waited for reads
        self._threads = [
            threading.Thread(target=self._serve, name=f"haversack-reader-{i}", daemon=True)
            for i in range(num_readers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""
        return all(file.direct for file in self._files)

    # --------------------------------------------------------------- requests
    def read(self, matrix: ExpertMatrix, expert: int, place: Place, ahead: bool = False) -> Read:
        """Have one expert's matrix read into `place`, `ahead` of a demand or at once."""
        read = Read(matrix, expert, place, ahead)
        with self._work:
            if self._closing:
                raise HaversackError("the model is closed: load it again")
            (self._ahead if ahead else self._demand).append(read)
            self._work.notify()
        return read

    def demand(self, reads: Sequence[Read]) -> None:
        """Reads ahead turned out to be wanted: they wait no longer than others."""
        with self._work:
            for read in reads:
                if read.ahead and read in self._ahead:
                    self._ahead.remove(read)
                    read.ahead = False
                    self._demand.append(read)
                    self._work.notify()

    def cancel(self, reads: Sequence[Read]) -> None:
        """Those of `reads` that have not begun never begin."""
        with self._work:
            for read in reads:
                waiting = self._ahead if read.ahead else self._demand
                if not read.done and read in waiting:
                    waiting.remove(read)
                    read.done = True
            self._progress.notify_all()

    # ---------------------------------------------------------------- waiting
    def wait(self, reads: Sequence[Read], stop: StopFlag) -> None:
        """Return when all `reads` are done. Raises StorageError if one failed, CancelledError if
        `stop` asked for it meanwhile."""
        self._wait_until(lambda: all(read.done for read in reads), stop)
        _raise_failure(reads)

    def wait_for_some(self, reads: Sequence[Read], stop: StopFlag) -> list[bool]:
        """Return when at least one of `reads` is done: which of them are. Raises like `wait`."""
        self._wait_until(lambda: any(read.done for read in reads), stop)
        done = [read.done for read in reads]
        _raise_failure([read for read in reads if read.done])
        return done

    def _wait_until(self, met: Callable[[], bool], stop: StopFlag) -> None:
        if met():
            return
        start = time.perf_counter()
        with self._progress:
            while not met():
                if stop.requested:
                    raise CancelledError("the call was cancelled while it waited for the disk")
                self._progress.wait(_LOOK_UP_S)
        self.wait_s += time.perf_counter() - start

    def settle(self, reads: Sequence[Read]) -> list[bool]:
        """Cancel what has not begun, wait for the rest; tells which reads brought their bytes."""
        self.cancel(reads)
        with self._progress:
            self._progress.wait_for(lambda: all(read.done for read in reads))
        return [read.came for read in reads]

    def drain(self) -> None:
        """Return when no read is under way any more; those not begun never begin."""
        with self._progress:
            waiting = [*self._demand, *self._ahead]
        self.cancel(waiting)
        with self._progress:
            self._progress.wait_for(lambda: self._num_reading == 0)

    # ---------------------------------------------------------------- readers
    def _serve(self) -> None:
        while (read := self._next()) is not None:
            try:
                self._perform(read)
                read.came = True
            except BaseException as error:
                read.error = error
            self._finish(read)

    def _next(self) -> Read | None:
        """The read to begin now; None when the streamer closes."""
        with self._work:
            while not self._closing:
                if self._demand:
                    return self._begin(self._demand.popleft())
                if self._ahead and self._num_ahead < AHEAD_READERS:
                    return self._begin(self._ahead.popleft())
                self._work.wait()
        return None

    def _begin(self, read: Read) -> Read:
        if self._num_reading == 0:
            self._busy_since = time.perf_counter()
        self._num_reading += 1
        self._num_ahead += read.ahead
        return read

    def _finish(self, read: Read) -> None:
        with self._work:
            self._num_reading -= 1
            self._num_ahead -= read.ahead
            self.bytes_read += read.matrix.expert_bytes
            if self._num_reading == 0:
                self.busy_s += time.perf_counter() - self._busy_since
            read.done = True
            self._progress.notify_all()

    def _perform(self, read: Read) -> None:
        pool, index, slot = read.place
        matrix, num_bytes = read.matrix, read.matrix.expert_bytes
        start, length, residue = padded_range(matrix.offset + read.expert * num_bytes, num_bytes)
        self._files[matrix.part].read_into(
            pool.room(index, slot)[:length], start, residue + num_bytes
        )
        rest = resting_place(matrix)
        if residue != rest:
            room = pool.address(index, slot)
            move_bytes(room + rest, room + residue, num_bytes)

    # ---------------------------------------------------------------- closing
    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def close(self) -> None:
        """Wait for the reads under way and close the files; no thread is left behind. May be
        called twice."""
        with self._work:
            self._closing = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()
        self.cancel([*self._demand, *self._ahead])
        self._close_files()


def _raise_failure(reads: Sequence[Read]) -> None:
    for read in reads:
        if read.error is not None:
            raise read.error
        if not read.came:
            raise CancelledError("the call was cancelled before its experts were read")
