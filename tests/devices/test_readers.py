"""Reads into memory, by io_uring and by threads: the same bytes, errors and books."""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from haversack.devices._native import own
from haversack.devices.errors import StorageError
from haversack.devices.memory import PAGE_BYTES, SlotMemory, address_of
from haversack.devices.pace import Pace, PacedFile
from haversack.devices.readers import Read, Readers, Request
from haversack.devices.storage import DirectFile

FILE_BYTES = 700 * PAGE_BYTES + 1234
ROOM_BYTES = 64 * PAGE_BYTES
NUM_ROOMS = 100  # more than may be under way at once


def never() -> bool:
    return False


class Bench:
    """Readers of one file of known bytes, and rooms to read into."""

    def __init__(self, file: DirectFile, data: bytes, ring: bool) -> None:
        self.file, self.data = file, data
        self.arena = SlotMemory(NUM_ROOMS * ROOM_BYTES)
        self.readers = Readers([file], 4, 2, ring=ring)

    def request(self, room: int, offset: int, num_bytes: int, target: int = 0) -> Read:
        """A read of `num_bytes` at `offset`, as the streamer makes it."""
        residue = offset % PAGE_BYTES
        length = -(-(residue + num_bytes) // PAGE_BYTES) * PAGE_BYTES
        address = address_of(self.arena.bytes) + room * ROOM_BYTES
        start, need = offset - residue, residue + num_bytes
        request = Request(address, start, length, need, residue, target, num_bytes, 0)
        return Read(self.readers, request, ahead=False)

    def held(self, room: int, num_bytes: int, target: int = 0) -> bytes:
        begin = room * ROOM_BYTES + target
        return self.arena.bytes[begin : begin + num_bytes].tobytes()

    def close(self) -> None:
        self.readers.close()
        self.file.close()
        self.arena.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "experts"
    path.write_bytes(np.random.default_rng(3).bytes(FILE_BYTES))
    return path


@pytest.fixture(params=[True, False], ids=["ring", "threads"])
def bench(path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(DirectFile(path), path.read_bytes(), ring=request.param)
    if request.param and not bench.readers.by_ring:
        bench.close()
        pytest.skip("this system has no io_uring, or no direct reads")
    yield bench
    bench.close()


def test_many_reads_bring_the_bytes_asked_for_to_where_they_are_to_lie(bench: Bench) -> None:
    random = np.random.default_rng(5)
    for _ in range(5):
        places = [int(place) for place in random.integers(0, FILE_BYTES - 50_000, NUM_ROOMS)]
        sizes = [int(size) for size in random.integers(1, 50_000, NUM_ROOMS)]
        target = int(random.integers(0, PAGE_BYTES))
        reads = [
            bench.request(room, *place, target)
            for room, place in enumerate(zip(places, sizes, strict=True))
        ]
        bench.readers.submit(reads)
        assert bench.readers.wait(reads, True, never)
        assert all(read.came for read in reads)
        for room, (place, size) in enumerate(zip(places, sizes, strict=True)):
            assert bench.held(room, size, target) == bench.data[place : place + size]
    counts = bench.readers.counts()
    assert counts.num_reading == counts.num_ahead == 0
    assert counts.busy_s > 0


def test_the_last_bytes_of_a_file_come_and_none_behind_them(bench: Bench) -> None:
    last = bench.request(0, FILE_BYTES - 5000, 5000)
    behind = bench.request(1, FILE_BYTES - 5000, 5001)
    bench.readers.submit([last, behind])
    assert bench.readers.wait([last, behind], True, never)
    assert bench.held(0, 5000) == bench.data[-5000:]
    assert last.came
    assert not behind.came
    assert "the file ends there" in str(behind.error)


def test_what_the_system_says_reaches_who_asked(bench: Bench) -> None:
    bench.file.close()
    read = bench.request(0, 0, 5000)
    bench.readers.submit([read])
    assert bench.readers.wait([read], True, never)
    assert not read.came
    assert "Bad file descriptor" in str(read.error)


def test_closing_waits_for_what_is_under_way_and_cancels_the_rest(bench: Bench) -> None:
    reads = [bench.request(room, 0, 60 * PAGE_BYTES) for room in range(NUM_ROOMS)]
    bench.readers.submit(reads)
    bench.readers.close()
    assert all(read.done for read in reads)
    assert bench.readers.counts().num_reading == 0
    for room, read in enumerate(reads):
        if read.came:
            assert bench.held(room, 60 * PAGE_BYTES) == bench.data[: 60 * PAGE_BYTES]


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "threads"])
def test_a_paced_file_takes_its_time(path: Path, ring: bool) -> None:
    pace = Pace(bytes_s=50 * ROOM_BYTES, latency_s=0.01)
    bench = Bench(PacedFile(path, pace, direct=None), path.read_bytes(), ring)
    try:
        reads = [bench.request(room, 0, ROOM_BYTES) for room in range(5)]
        began_s = time.perf_counter()
        bench.readers.submit(reads)
        assert bench.readers.wait(reads, True, never)
        assert time.perf_counter() - began_s >= 0.11
        assert bench.held(4, ROOM_BYTES) == bench.data[:ROOM_BYTES]
    finally:
        bench.close()


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "threads"])
def test_no_read_of_a_paced_file_comes_early_and_all_come_though_nobody_waits(
    path: Path, ring: bool
) -> None:
    pace = Pace(bytes_s=100 * ROOM_BYTES, latency_s=0.0)  # a room takes 10 ms
    bench = Bench(PacedFile(path, pace, direct=None), path.read_bytes(), ring)

    def wait_for(read: Read) -> float:
        assert bench.readers.wait([read], True, never)
        return time.perf_counter()

    try:
        reads = [bench.request(room, 0, ROOM_BYTES) for room in range(12)]
        began_s = time.perf_counter()
        bench.readers.submit(reads)
        with ThreadPoolExecutor(3) as pool:
            ended_s = list(pool.map(wait_for, [reads[3], reads[5], reads[7]]))
        for end_s, due_s in zip(ended_s, [0.04, 0.06, 0.08], strict=True):
            assert due_s - 0.005 < end_s - began_s
        while not reads[-1].came:
            time.sleep(0.01)
        assert all(read.came for read in reads)
    finally:
        bench.close()


@pytest.mark.parametrize("ring", [True, False], ids=["ring", "threads"])
def test_a_wait_looks_up_though_others_reads_come(path: Path, ring: bool) -> None:
    pace = Pace(bytes_s=20 * ROOM_BYTES, latency_s=0.0)  # a room takes 50 ms, all 5 s
    bench = Bench(PacedFile(path, pace, direct=None), path.read_bytes(), ring)
    try:
        reads = [bench.request(room, 0, ROOM_BYTES) for room in range(NUM_ROOMS)]
        bench.readers.submit(reads)
        assert not bench.readers.wait(reads, True, lambda: True)
    finally:
        bench.close()


def test_a_system_that_grants_no_thread_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "readers_new", lambda *_: None)
    with DirectFile(path) as file, pytest.raises(StorageError, match="raise ulimit -u"):
        Readers([file], 4, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="a property of Linux")
def test_a_file_of_another_class_is_read_by_its_own_method(path: Path) -> None:
    class Other(DirectFile):
        pass

    bench = Bench(Other(path), path.read_bytes(), ring=True)
    try:
        assert not bench.readers.by_ring
        read = bench.request(0, 4321, 5000)
        bench.readers.submit([read])
        assert bench.readers.wait([read], True, never)
        assert bench.held(0, 5000) == bench.data[4321:9321]
    finally:
        bench.close()


@pytest.mark.parametrize("pace", [None, Pace(2e9, 1e-4)], ids=["plain", "paced"])
def test_moved_reads_of_many_threads_are_whole_when_they_are_done(
    pace: Pace | None, path: Path
) -> None:
    """Their bytes land where pages begin and are moved to the start of their room. Threads that
    wait, settle, demand and cancel must see either all bytes in place or a read that never came."""
    num_bytes, num_rounds = 5 * PAGE_BYTES + 77, 40
    file = DirectFile(path) if pace is None else PacedFile(path, pace, direct=None)
    bench = Bench(file, path.read_bytes(), ring=True)

    def work(thread: int) -> int:
        rng, num_came = np.random.default_rng(thread), 0
        for _ in range(num_rounds):
            offsets = rng.integers(1, FILE_BYTES - num_bytes, 8).tolist()
            rooms = range(8 * thread, 8 * thread + 8)
            reads = [bench.request(r, at, num_bytes) for r, at in zip(rooms, offsets, strict=True)]
            bench.readers.submit(reads)
            match int(rng.integers(4)):
                case 0:
                    bench.readers.settle(reads)
                case 1:
                    bench.readers.cancel(reads)
                    bench.readers.settle(reads)
                case 2:
                    bench.readers.wait(reads, False, never)
                    bench.readers.settle(reads)
                case _:
                    bench.readers.demand(reads)
                    bench.readers.wait(reads, True, never)
            for room, at, read in zip(rooms, offsets, reads, strict=True):
                assert read.done
                if read.came:
                    num_came += 1
                    assert bench.held(room, num_bytes) == bench.data[at : at + num_bytes]
        return num_came

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > num_rounds
    bench.readers.drain()
    assert bench.readers.counts().num_reading == 0
    bench.close()


# ---------------------------------------------------------- pages made ahead of reads
AHEAD_BYTES = 16 * 2**20
HUGE = 2 * 2**20

touches = pytest.mark.skipif(
    sys.platform != "linux" or tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14),
    reason="the kernel makes no pages without writing to them",
)


def wait_until_held(memory: SlotMemory, num_bytes: int) -> None:
    """Return when so much of `memory` is resident."""
    for _ in range(6000):
        if memory.resident_bytes >= num_bytes:
            return
        time.sleep(0.01)
    raise AssertionError(f"{memory.resident_bytes} bytes are resident, not {num_bytes}")


@touches
def test_pages_are_made_a_bounded_distance_ahead_of_reads(bench: Bench) -> None:
    with SlotMemory(64 * 2**20, 40 * 2**20) as memory:
        bench.arena.close()
        bench.arena = memory
        bench.readers.touch_ahead(memory.address, memory.num_bytes)
        assert memory.resident_bytes == 0  # nothing was read yet
        for room in (0, 60):
            read = bench.request(room, 0, ROOM_BYTES)
            bench.readers.submit([read])
            assert bench.readers.wait([read], True, never) and read.came
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
            reads = [bench.request(room, room * PAGE_BYTES, ROOM_BYTES) for room in rooms]
            bench.readers.submit(reads)
            assert bench.readers.wait(reads, True, never)
            for room in rooms:
                begin = room * PAGE_BYTES
                assert bench.held(room, ROOM_BYTES) == bench.data[begin : begin + ROOM_BYTES]
            assert memory.resident_bytes <= memory.num_bytes
        bench.readers.close()


@touches
def test_closing_stops_the_making_of_pages(path: Path) -> None:
    for _ in range(20):
        bench = Bench(DirectFile(path), path.read_bytes(), ring=True)
        memory = bench.arena
        before = len(os.listdir("/proc/self/task"))
        bench.readers.touch_ahead(memory.address, memory.num_bytes)
        assert len(os.listdir("/proc/self/task")) == before + 1
        read = bench.request(0, 0, ROOM_BYTES)
        bench.readers.submit([read])
        bench.readers.wait([read], True, never)
        bench.readers.close()
        held_bytes = memory.resident_bytes
        assert len(os.listdir("/proc/self/task")) < before
        time.sleep(0.01)
        assert memory.resident_bytes == held_bytes
        bench.readers.touch_ahead(memory.address, 0)  # too late for anything to happen
        bench.close()
