"""What Python adds to the readers: files of other classes, errors, and pages made ahead of reads.

The reads themselves are tested in tests/native/test_readers.cpp.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.errors import StorageError
from haversack.devices.memory import PAGE_BYTES, SlotMemory
from haversack.devices.pace import Pace, PacedFile
from haversack.devices.readers import Failure, Readers
from haversack.devices.storage import DirectFile

FILE_BYTES = 700 * PAGE_BYTES + 1234
ROOM_BYTES = 64 * PAGE_BYTES
NUM_ROOMS = 100  # more than may be under way at once
CAME = 2  # of enum State


def never() -> bool:
    return False


class Bench:
    """Readers of one file of known bytes, and rooms to read into. It submits reads and waits for
    them as the engine does in C++."""

    def __init__(self, file: DirectFile, data: bytes, ring: bool) -> None:
        self.file, self.data = file, data
        self.arena = SlotMemory(NUM_ROOMS * ROOM_BYTES)
        self.readers = Readers([file], 4, 2, ring=ring)

    def submit(self, room: int, offset: int, num_bytes: int) -> Any:
        """Begin a read of `num_bytes` at `offset` into a room, and return its fields."""
        residue = offset % PAGE_BYTES
        need = residue + num_bytes
        length = -(-need // PAGE_BYTES) * PAGE_BYTES
        address = native.address_of(self.arena.bytes) + room * ROOM_BYTES
        read = own.Read(address, offset - residue, length, need, residue, 0, num_bytes)
        own.readers_submit(self.readers.address, *listed([read]))
        return read

    def wait(self, reads: Sequence[Any], should_stop: Callable[[], bool] = never) -> bool:
        """Return when all reads are done, or False once `should_stop` says so."""
        stop = own.ShouldStop(should_stop)
        return bool(own.readers_wait(self.readers.address, *listed(reads), True, stop))

    def error(self, read: Any) -> BaseException:
        numbers = read.file, read.error, read.offset, read.need, read.got
        return self.readers.error(Failure(native.addressof(read), *numbers))

    def held(self, room: int, num_bytes: int) -> bytes:
        begin = room * ROOM_BYTES
        return self.arena.bytes[begin : begin + num_bytes].tobytes()

    def close(self) -> None:
        self.readers.close()
        self.file.close()
        self.arena.close()


def listed(reads: Sequence[Any]) -> tuple[Any, int]:
    pointers = own.ReadPointer * len(reads)
    return pointers(*[native.pointer_to(read) for read in reads]), len(reads)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "experts"
    path.write_bytes(np.random.default_rng(3).bytes(FILE_BYTES))
    return path


@pytest.fixture(params=[True, False], ids=["ring", "threads"])
def bench(path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(DirectFile(path), path.read_bytes(), ring=request.param)
    yield bench
    bench.close()


def test_an_error_names_the_file_and_what_was_wanted(bench: Bench) -> None:
    behind = bench.submit(0, FILE_BYTES - 5000, 5001)
    assert bench.wait([behind])
    assert f"{bench.file.path}: wanted" in str(bench.error(behind))
    assert "the file ends there" in str(bench.error(behind))
    if sys.platform == "win32":
        return  # a completion port reads by a handle of its own
    bench.file.close()
    closed = bench.submit(0, 0, 5000)
    assert bench.wait([closed])
    assert "Bad file descriptor" in str(bench.error(closed))


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "threads"])
def test_no_read_of_a_paced_file_comes_early_and_all_come_though_nobody_waits(
    path: Path, ring: bool
) -> None:
    pace = Pace(bytes_s=100 * ROOM_BYTES, latency_s=0.0)  # a room takes 10 ms
    bench = Bench(PacedFile(path, pace, direct=None), path.read_bytes(), ring)

    def wait_for(read: Any) -> float:
        assert bench.wait([read])
        return time.perf_counter()

    try:
        began_s = time.perf_counter()
        reads = [bench.submit(room, 0, ROOM_BYTES) for room in range(12)]
        with ThreadPoolExecutor(3) as pool:
            ended_s = list(pool.map(wait_for, [reads[3], reads[5], reads[7]]))
        for end_s, due_s in zip(ended_s, [0.04, 0.06, 0.08], strict=True):
            assert due_s - 0.005 < end_s - began_s
        while reads[-1].state != CAME:
            time.sleep(0.01)
        assert all(read.state == CAME for read in reads)
    finally:
        bench.close()


def test_a_paced_read_that_copies_nothing_takes_its_time(path: Path) -> None:
    pace = Pace(bytes_s=100 * ROOM_BYTES, latency_s=0.0)
    pace.set_copies(False)
    bench = Bench(PacedFile(path, pace), path.read_bytes(), ring=True)
    try:
        before, began_s = bench.held(0, ROOM_BYTES), time.perf_counter()
        read = bench.submit(0, 0, ROOM_BYTES)
        assert bench.wait([read])
        assert time.perf_counter() - began_s >= 0.01
        assert read.state == CAME
        assert bench.held(0, ROOM_BYTES) == before != bench.data[:ROOM_BYTES]
    finally:
        bench.close()


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "threads"])
def test_a_wait_asks_whether_to_stop_though_other_reads_come(path: Path, ring: bool) -> None:
    pace = Pace(bytes_s=20 * ROOM_BYTES, latency_s=0.0)  # a room takes 50 ms, all 5 s
    bench = Bench(PacedFile(path, pace, direct=None), path.read_bytes(), ring)
    try:
        reads = [bench.submit(room, 0, ROOM_BYTES) for room in range(NUM_ROOMS)]
        assert not bench.wait(reads, lambda: True)
    finally:
        bench.close()


def test_a_system_that_grants_no_thread_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "readers_new", lambda *_: None)
    with DirectFile(path) as file, pytest.raises(StorageError, match="raise ulimit -u"):
        Readers([file], 4, 2)


def test_a_file_of_another_class_is_read_by_its_own_method(path: Path) -> None:
    class Other(DirectFile):
        pass

    bench = Bench(Other(path), path.read_bytes(), ring=True)
    try:
        good, behind = bench.submit(0, 4321, 5000), bench.submit(1, FILE_BYTES - 10, 11)
        assert bench.wait([good, behind])
        assert bench.held(0, 5000) == bench.data[4321:9321]
        assert "the file ends there" in str(bench.error(behind))
    finally:
        bench.close()


# ----------------------------------------------------- pages made ahead of reads
AHEAD_BYTES = 2**30
HUGE = 2 * 2**20

touches = pytest.mark.skipif(
    sys.platform != "linux" or tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14),
    reason="the kernel makes no pages without writing to them",
)


def wait_until_held(memory: SlotMemory, num_bytes: int) -> None:
    """Return when so much of `memory` is resident."""
    for _ in range(60_000):
        if memory.resident_bytes >= num_bytes:
            return
        time.sleep(0.01)
    raise AssertionError(f"{memory.resident_bytes} bytes are resident, not {num_bytes}")


@touches
def test_pages_are_made_a_bounded_distance_ahead_of_reads(bench: Bench) -> None:
    with SlotMemory(1200 * 2**20, 1080 * 2**20) as memory:
        bench.arena.close()
        bench.arena = memory
        bench.readers.touch_ahead(memory.address, memory.num_bytes)
        assert memory.resident_bytes == 0  # nothing was read yet
        for room in (0, 60):
            assert bench.wait([bench.submit(room, 0, ROOM_BYTES)])
            goal_bytes = min((room + 1) * ROOM_BYTES + AHEAD_BYTES, memory.num_bytes)
            wait_until_held(memory, goal_bytes)
            assert memory.resident_bytes <= min(goal_bytes + HUGE, memory.num_bytes)
            assert bench.held(room, ROOM_BYTES) == bench.data[:ROOM_BYTES]
        bench.readers.close()


@touches
def test_what_shrinks_and_grows_is_not_touched_beyond(bench: Bench) -> None:
    """Each round shrinks the memory while pages near its end are being made."""
    with SlotMemory(64 * 2**20) as memory:
        bench.arena.close()
        bench.arena = memory
        for num_mib in (64, 20, 48, 5, 64, 1, 33):
            bench.readers.touch_ahead(memory.address, min(memory.num_bytes, num_mib * 2**20))
            memory.resize(num_mib * 2**20)
            bench.readers.touch_ahead(memory.address, memory.num_bytes)
            rooms = range(0, min(NUM_ROOMS, memory.num_bytes // ROOM_BYTES), 3)
            assert bench.wait([bench.submit(r, r * PAGE_BYTES, ROOM_BYTES) for r in rooms])
            for room in rooms:
                begin = room * PAGE_BYTES
                assert bench.held(room, ROOM_BYTES) == bench.data[begin : begin + ROOM_BYTES]
            assert memory.resident_bytes <= memory.num_bytes
        bench.readers.close()


def thread_ids() -> set[str]:
    """The threads of this process. One that was joined may stay listed for a moment."""
    return set(os.listdir("/proc/self/task"))


def wait_until_ended(threads: set[str]) -> None:
    """Return when none of `threads` is listed any more."""
    for _ in range(6000):
        if not threads & thread_ids():
            return
        time.sleep(0.01)
    raise AssertionError(f"{threads & thread_ids()} still run")


@touches
def test_closing_stops_the_making_of_pages(path: Path) -> None:
    for _ in range(20):
        bench = Bench(DirectFile(path), path.read_bytes(), ring=True)
        memory = bench.arena
        before = thread_ids()
        bench.readers.touch_ahead(memory.address, memory.num_bytes)
        begun = thread_ids() - before
        assert len(begun) == 1
        assert bench.wait([bench.submit(0, 0, ROOM_BYTES)])
        bench.readers.close()
        held_bytes = memory.resident_bytes
        time.sleep(0.01)
        assert memory.resident_bytes == held_bytes
        wait_until_ended(begun)
        bench.readers.touch_ahead(memory.address, 0)  # too late for anything to happen
        bench.close()
