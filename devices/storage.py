"""Reading a file past the page cache, writing one whole, and measuring the speed of its drive."""

import contextlib
import glob
import io
import json
import math
import os
import random
import stat
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import ClosedError, StorageError
from haversack.devices.memory import PAGE_BYTES, SlotMemory
from haversack.devices.system import host
from haversack.devices.units import format_bytes

Buffer = memoryview | npt.NDArray[np.uint8]
Measured = TypeVar("Measured")

_NUM_READERS = (1, 2, 4, 8)
_ENOUGH = 0.9  # of the best rate
_READ_BYTES = (64 * 1024, 1024 * 1024)
_NUM_CELLS = len(_NUM_READERS) * len(_READ_BYTES)
_CELL_S = 1.5 / _NUM_CELLS
_CELL_BYTES = 512 * 1024 * 1024 // _NUM_CELLS
_PART, _PART_S = ".part", 60  # what a file's name ends with until it is whole; see `remove_parts`
# Reads land in more memory than a processor's caches hold, as in slots. On a drive made by
# software, reads into 4 MiB that stay in the caches are a fifth faster (3.15 against 2.65 GB/s).
_ROOM_BYTES = 64 * 1024 * 1024
_READS_PER_FILE = 16  # fewer places than this in a file measure the drive's own cache


class DirectFile:
    """A file opened for positional reads by many threads, past the page cache where possible.

    `direct` says whether it is, `reason` why or why not, `num_bytes` the length at opening.
    """

    def __init__(self, path: str | Path, direct: bool | None = None) -> None:
        """`direct`: None tries and falls back on plain reads, True insists, False asks for plain.

        Raises StorageError where the file cannot be opened, is not a regular file, or refuses
        the direct reads insisted on.
        """
        self.path = Path(path)
        self._file, self.direct, self.reason = _open(self.path, direct)
        self.num_bytes = os.fstat(self._file.fileno()).st_size
        self._turn = threading.Condition()
        self._num_reading = 0

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        """Fill `buffer` from `offset` on with at least `need_bytes` bytes of the file.

        Where reads are direct, `offset`, the buffer's address and its length are multiples of
        4096; the buffer may reach past the end of the file, and what it holds there is garbage.
        Other threads run meanwhile.

        Raises StorageError on a device error and where the file ends before `need_bytes`,
        ClosedError after `close`, ValueError for a buffer too short or not aligned.
        """
        view = (buffer if isinstance(buffer, memoryview) else buffer.data).cast("B")
        self._check_request(view, offset, need_bytes)
        with self._reading():
            got_bytes = self._fill(view, offset, need_bytes)
        if got_bytes < need_bytes:
            raise self.read_error(offset, need_bytes, got_bytes, "the file ends there")

    def fileno(self) -> int:
        """Return the descriptor, for reads by C++. They must end before `close`."""
        return self._file.fileno()

    def close(self) -> None:
        """Wait for the reads under way, then close; a second call does nothing."""
        with self._turn:
            # a descriptor closed under a read may name another file by its next round
            self._turn.wait_for(lambda: self._num_reading == 0)
            self._file.close()

    def __enter__(self) -> "DirectFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_request(self, view: memoryview, offset: int, need_bytes: int) -> None:
        if offset < 0 or not 0 <= need_bytes <= len(view):
            raise ValueError(
                f"cannot read {need_bytes} bytes at {offset} into a buffer of {len(view)}"
            )
        if self.direct:
            address = np.frombuffer(view, np.uint8).__array_interface__["data"][0] if view else 0
            if offset % PAGE_BYTES or address % PAGE_BYTES or len(view) % PAGE_BYTES:
                raise ValueError(
                    f"a direct read wants multiples of {PAGE_BYTES}, not offset {offset}, "
                    f"address {address:#x} and length {len(view)}: read whole pages around it"
                )

    @contextlib.contextmanager
    def _reading(self) -> Generator[None, None, None]:
        with self._turn:
            if self._file.closed:
                raise ClosedError(f"{self.path} is closed and can be read no more")
            self._num_reading += 1
        try:
            yield
        finally:
            with self._turn:
                self._num_reading -= 1
                self._turn.notify_all()

    def _fill(self, view: memoryview, offset: int, need_bytes: int) -> int:
        """Return the bytes read: `need_bytes` or more, fewer only if the file ends."""
        step_bytes = PAGE_BYTES if self.direct else 1
        got_bytes = 0
        while got_bytes < need_bytes:
            # a direct read can only go on from a page's start, so its page is read again
            start = got_bytes - got_bytes % step_bytes
            try:
                count = host.read_at(self._file, view[start:], offset + start)
            except OSError as error:
                raise self.read_error(offset, need_bytes, got_bytes, str(error.strerror)) from error
            if start + count <= got_bytes:
                break
            got_bytes = start + count
        return got_bytes

    def read_error(self, offset: int, need_bytes: int, got_bytes: int, why: str) -> StorageError:
        """Return the error for a read that got only `got_bytes` of `need_bytes` at `offset`."""
        return StorageError(
            f"{self.path}: wanted {need_bytes} bytes at offset {offset}, got {got_bytes}: {why} "
            "(is the file whole and the drive there?)"
        )


def write_at(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of `data`, bytes, to an open file from `position` on. Raises OSError."""
    left = memoryview(data)
    while left:
        written = host.write_at(descriptor, left, position)
        left, position = left[written:], position + written


def write_whole(path: Path, data: bytes, *, synced: bool = False) -> None:
    """Have `path` name a file of `data`, as `whole_file` does. Raises OSError."""
    with whole_file(path, synced=synced) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path, *, synced: bool) -> Iterator[BinaryIO]:
    """Give a file to write, which `path` names at the end of the block. Whenever the process ends,
    it names that or what it named before; with `synced` also if the computer goes out. Raises
    OSError."""
    remove_parts(path.parent, glob.escape(path.name))
    # A file of this call alone comes first, because others may write the same path.
    descriptor, name = tempfile.mkstemp(_PART, f"{path.name}.", path.parent)
    try:
        with open(descriptor, "w+b") as file:
            with contextlib.suppress(OSError):  # some network drives have no locks
                host.lock(file.fileno(), wait=False)  # see `remove_parts`
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def remove_parts(folder: Path, name: str) -> None:
    """Remove what killed processes left in `folder` of files that `whole_file` was writing, whose
    names match the pattern `name`. What a process writes now stays: it is locked."""
    for path in folder.glob(f"{name}.????????{_PART}"):
        with contextlib.suppress(OSError):  # removed or renamed a moment ago
            with path.open("r+b") as file:
                is_left = host.lock(file.fileno(), wait=False)
            if is_left and time.time() - path.stat().st_mtime > _PART_S:
                path.unlink()


def read_measured(path: Path, kind: Callable[..., Measured]) -> Measured | None:
    """Return the figures that `keep_measured` wrote to `path`; None without valid ones."""
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def keep_measured(path: Path, figures: Any) -> None:
    """Keep figures, a dataclass, that were measured for later runs. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(figures)).encode())
    except OSError as error:
        raise StorageError(
            f"cannot keep what was measured in {path.parent}: {error.strerror or error}; choose"
            " another folder with --cache-dir"
        ) from error


@dataclass(frozen=True)
class DiskSpeed:
    """How fast a file's drive reads at random places.

    `bytes_s` is the best rate found, reached with `num_readers` reads of `read_bytes` under way
    at once; `enough_readers` is the least number of its longest reads (about as long as
    those of an expert's matrix) under way that gives nine tenths of the best rate. More reads would
    only wait for each other. `latency_s` is the median time of a lone 64 KiB read. Where `direct`
    is False the page cache may have answered.
    """

    bytes_s: float
    latency_s: float
    num_readers: int
    read_bytes: int
    enough_readers: int
    direct: bool
    measured_at: str  # ISO 8601, UTC

    def __post_init__(self) -> None:
        counts = (self.num_readers, self.read_bytes, self.enough_readers)
        numbers = (self.bytes_s, self.latency_s, *counts)
        # so many threads are started: only as many as a drive is measured with
        was_measured = {self.num_readers, self.enough_readers} <= set(_NUM_READERS)
        if not (was_measured and all(0 < num < math.inf for num in numbers)):
            raise ValueError(f"not a measured speed: {self}")


def measure_disk(path: str | Path, *, cache_dir: Path, refresh: bool = False) -> DiskSpeed:
    """Return the speed of the drive that holds `path`, measured once and kept in `cache_dir`.

    Measuring reads at most 512 MiB in about 1.5 s, into 64 MiB of memory. A file below 16 MiB is
    measured with small reads only, and the result is not kept. A file with holes measures too fast,
    so give one without.

    Raises StorageError where the file is below 1 MiB, or cannot be read, or the result cannot
    be kept.
    """
    with DirectFile(path) as file:
        kept = _kept(path, cache_dir)
        speed = None if refresh else read_measured(kept, DiskSpeed)
        if speed is None:
            sizes = [num for num in _READ_BYTES if file.num_bytes >= num * _READS_PER_FILE]
            speed = _measure(file, sizes)
            if len(sizes) == len(_READ_BYTES):
                keep_measured(kept, speed)
    return speed


def known_speed(path: Path, cache_dir: Path) -> DiskSpeed | None:
    """Return the speed that `measure_disk` kept of the drive that holds `path`; None without
    one."""
    return read_measured(_kept(path, cache_dir), DiskSpeed)


def _kept(path: str | Path, cache_dir: Path) -> Path:
    return cache_dir / f"disk-{os.stat(path).st_dev}.json"


def _measure(file: DirectFile, sizes: list[int]) -> DiskSpeed:
    if not sizes:
        raise StorageError(
            f"{file.path} has {format_bytes(file.num_bytes)}, too little to measure its drive: "
            f"give a file of {format_bytes(_READ_BYTES[-1] * _READS_PER_FILE)} or more"
        )
    with SlotMemory(_ROOM_BYTES) as room:
        room.bytes[:] = 0  # pages are made before the clock runs
        cells = {
            (num_readers, read_bytes): _measure_cell(
                file, room.bytes.reshape(num_readers, -1, read_bytes)
            )
            for read_bytes in sizes
            for num_readers in _NUM_READERS
        }
    (num_readers, read_bytes), (bytes_s, _) = max(cells.items(), key=lambda cell: cell[1][0])
    _, latency_s = cells[1, sizes[0]]
    long_bytes_s = {num: cells[num, sizes[-1]][0] for num in _NUM_READERS}
    enough = min(
        num for num in _NUM_READERS if long_bytes_s[num] >= _ENOUGH * max(long_bytes_s.values())
    )
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return DiskSpeed(bytes_s, latency_s, num_readers, read_bytes, enough, file.direct, now)


def _measure_cell(file: DirectFile, buffers: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return (bytes per second of all readers, median seconds of one read). Each reader fills its
    part of `buffers` (readers, buffers, bytes), one buffer after the other."""
    num_readers, _, read_bytes = buffers.shape
    max_reads = max(_CELL_BYTES // (num_readers * read_bytes), 1)
    with ThreadPoolExecutor(num_readers) as pool:
        began = time.perf_counter()
        read = partial(_read_at_random, file, began + _CELL_S, max_reads)
        times_s = [time_s for reader in pool.map(read, buffers) for time_s in reader]
        took_s = time.perf_counter() - began
    return len(times_s) * read_bytes / took_s, statistics.median(times_s)


def _read_at_random(
    file: DirectFile, deadline_s: float, max_reads: int, buffers: npt.NDArray[np.uint8]
) -> list[float]:
    """Return the seconds of each read into `buffers`: at least one, then until the deadline."""
    num_buffers, read_bytes = buffers.shape
    num_places = (file.num_bytes - read_bytes) // PAGE_BYTES + 1
    times_s: list[float] = []
    while not times_s or (len(times_s) < max_reads and time.perf_counter() < deadline_s):
        buffer = buffers[len(times_s) % num_buffers]
        before = time.perf_counter()
        file.read_into(buffer, random.randrange(num_places) * PAGE_BYTES, read_bytes)
        times_s.append(time.perf_counter() - before)
    return times_s


def _open(path: Path, direct: bool | None) -> tuple[io.FileIO, bool, str]:
    """Return (open file, whether its reads are direct, why)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise StorageError(f"{path} is not a regular file: give the path of a file")
        file, reason = None, "plain reads were asked for"
        if direct is not False:
            file, reason = host.open_direct(path)
        if file is not None:
            return file, True, reason
        if direct:
            raise StorageError(f"{path}: {reason}: use another drive or allow plain reads")
        return host.open_plain(path), False, reason
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from error
