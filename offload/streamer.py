"""The streamer: threads that read experts from the model's files straight into their slots."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillReading
from pathlib import Path

from haversack.devices.errors import CancelledError
from haversack.devices.interrupts import StopFlag
from haversack.devices.memory import move_bytes
from haversack.devices.storage import DirectFile, padded_range
from haversack.offload.pool import ExpertPool, resting_place
from haversack.quant.gguf import ExpertMatrix

NUM_READERS = 8  # measured: 4 to 8 reads of about 1 MB at once fill a drive
_LOOK_UP_S = 0.1  # how long a wait may be deaf to a request to stop

Read = Future[None]


class Streamer:
    """Reads of single matrices, many at once, in the order they are asked for."""

    def __init__(self, paths: Sequence[Path], num_readers: int = NUM_READERS) -> None:
        """Raises StorageError if a file cannot be opened."""
        self._files: list[DirectFile] = []
        try:
            for path in paths:
                self._files.append(DirectFile(path))
        except BaseException:
            self._close_files()
            raise
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="haversack-reader")
        self._lock = threading.Lock()
        self._unsettled: set[Read] = set()
        self._num_reading, self._busy_since = 0, 0.0
        self.bytes_read = 0
        self.busy_s = 0.0  # time in which at least one read was under way
        self.wait_s = 0.0  # time the model waited for reads

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""
        return all(file.direct for file in self._files)

    def read(self, matrix: ExpertMatrix, expert: int, place: tuple[ExpertPool, int, int]) -> Read:
        """Start reading one expert's matrix into `place`: (pool, matrix index, slot)."""
        read = self._readers.submit(self._read, matrix, expert, place)
        self._unsettled.add(read)
        read.add_done_callback(self._unsettled.discard)
        return read

    def wait(self, reads: Sequence[Read], stop: StopFlag) -> None:
        """Return when all `reads` are done. Raises StorageError if one failed, CancelledError if
        `stop` asked for it meanwhile."""
        start = time.perf_counter()
        try:
            for read in reads:
                self._wait_for(read, stop)
        finally:
            self.wait_s += time.perf_counter() - start

    def _wait_for(self, read: Read, stop: StopFlag) -> None:
        while True:
            if stop.requested:
                raise CancelledError("the call was cancelled while it waited for the disk")
            try:
                return read.result(timeout=_LOOK_UP_S)
            except StillReading:
                continue

    @staticmethod
    def settle(reads: Sequence[Read]) -> list[bool]:
        """Cancel what has not begun, wait for the rest; tells which reads brought their bytes."""
        for read in reads:
            read.cancel()
        return [not read.cancelled() and read.exception() is None for read in reads]

    def drain(self) -> None:
        """Return when no read is under way any more; those not begun never begin."""
        self.settle(list(self._unsettled))

    def _read(self, matrix: ExpertMatrix, expert: int, place: tuple[ExpertPool, int, int]) -> None:
        pool, index, slot = place
        num_bytes = matrix.expert_bytes
        start, length, residue = padded_range(matrix.offset + expert * num_bytes, num_bytes)
        self._note_start()
        try:
            self._files[matrix.part].read_into(
                pool.room(index, slot)[:length], start, residue + num_bytes
            )
        finally:
            self._note_end(num_bytes)
        rest = resting_place(matrix)
        if residue != rest:
            room = pool.address(index, slot)
            move_bytes(room + rest, room + residue, num_bytes)

    def _note_start(self) -> None:
        with self._lock:
            if self._num_reading == 0:
                self._busy_since = time.perf_counter()
            self._num_reading += 1

    def _note_end(self, num_bytes: int) -> None:
        with self._lock:
            self._num_reading -= 1
            self.bytes_read += num_bytes
            if self._num_reading == 0:
                self.busy_s += time.perf_counter() - self._busy_since

    def _close_files(self) -> None:
        for file in self._files:
            file.close()

    def close(self) -> None:
        """Wait for the reads under way and close the files; no thread is left behind."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._close_files()
