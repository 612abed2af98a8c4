"""The streamer: demand before guesses, few guesses at a time, and no thread or read left behind."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from haversack.devices.errors import CancelledError, HaversackError, StorageError
from haversack.devices.interrupts import StopFlag
from haversack.devices.storage import Buffer, DirectFile
from haversack.offload.pool import ExpertPool, PoolPlan
from haversack.offload.streamer import AHEAD_READERS, Read, Streamer
from haversack.quant.gguf import ExpertMatrix, read_geometry

NUM_SLOTS = 12


class Gate(DirectFile):
    """A file whose reads wait until they are let through, and are noted in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.open = threading.Semaphore(0)
        self.began: list[int] = []

    def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
        self.began.append(offset)
        assert self.open.acquire(timeout=30)
        super().read_into(buffer, offset, need_bytes)


class Bench:
    """A streamer with `num_readers` over a gated file, and a pool of one layer's experts."""

    def __init__(self, path: Path, num_readers: int) -> None:
        geometry = read_geometry(path)
        layer = geometry.layers[0]
        shape = tuple(matrix.expert_bytes for matrix in layer.matrices)
        self.matrix: ExpertMatrix = layer.matrices[0]
        self.pool = ExpertPool(PoolPlan(shape, (layer.layer,), layer.num_experts, NUM_SLOTS))
        self.files: list[Gate] = []
        self.streamer = Streamer(geometry.paths, num_readers, self._open)
        self.stop = StopFlag()

    def _open(self, path: Path) -> Gate:
        self.files.append(Gate(path))
        return self.files[-1]

    def read(self, expert: int, ahead: bool = False) -> Read:
        return self.streamer.read(self.matrix, expert, (self.pool, 0, expert), ahead)

    def began(self, count: int) -> list[int]:
        """The experts whose reads began, once there are `count`."""
        (file,) = self.files
        end_s = time.monotonic() + 10
        while len(file.began) < count and time.monotonic() < end_s:
            time.sleep(0.001)
        starts = {
            (self.matrix.offset + e * self.matrix.expert_bytes) // 4096 * 4096: e for e in range(8)
        }
        return [starts[offset] for offset in file.began]

    def let_through(self, count: int) -> None:
        self.files[0].open.release(count)

    def close(self) -> None:
        self.let_through(100)
        self.streamer.close()
        self.pool.close()


@pytest.fixture
def bench(tiny_model: Any, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(tiny_model("qwen3moe"), getattr(request, "param", 4))
    yield made
    made.close()


@pytest.mark.parametrize("bench", [1], indirect=True)
def test_demand_goes_before_guesses_whatever_came_first(bench: Bench) -> None:
    first = bench.read(0)
    bench.began(1)
    guess, demand = bench.read(1, ahead=True), bench.read(2)
    bench.let_through(3)
    bench.streamer.wait([first, guess, demand], bench.stop)
    assert bench.began(3) == [0, 2, 1]


def test_few_guesses_are_under_way_at_once(bench: Bench) -> None:
    guesses = [bench.read(expert, ahead=True) for expert in range(4)]
    assert len(bench.began(AHEAD_READERS)) == AHEAD_READERS
    demand = bench.read(5)
    assert bench.began(AHEAD_READERS + 1)[-1] == 5  # a thread was free for it
    bench.let_through(5)
    bench.streamer.wait([*guesses, demand], bench.stop)


@pytest.mark.parametrize("bench", [1], indirect=True)
def test_a_guess_that_is_wanted_waits_with_the_demand(bench: Bench) -> None:
    first = bench.read(0)
    bench.began(1)
    guesses = [bench.read(expert, ahead=True) for expert in (1, 2)]
    bench.streamer.demand(guesses[1:])
    bench.let_through(3)
    bench.streamer.wait([first, *guesses], bench.stop)
    assert bench.began(3) == [0, 2, 1]


@pytest.mark.parametrize("bench", [1], indirect=True)
def test_what_is_cancelled_before_it_begins_never_begins(bench: Bench) -> None:
    under_way = bench.read(0)
    bench.began(1)
    waiting, guess = bench.read(1), bench.read(2, ahead=True)
    bench.streamer.cancel([under_way, waiting, guess])
    assert (under_way.done, waiting.done, guess.done) == (False, True, True)
    bench.let_through(1)
    assert bench.streamer.settle([under_way, waiting, guess]) == [True, False, False]
    assert bench.began(1) == [0]
    with pytest.raises(CancelledError):
        bench.streamer.wait([waiting], bench.stop)


def test_some_that_are_done_are_told(bench: Bench) -> None:
    reads = [bench.read(expert) for expert in range(3)]
    bench.let_through(1)
    done = bench.streamer.wait_for_some(reads, bench.stop)
    assert sum(done) == 1 and reads[done.index(True)].came
    bench.let_through(2)
    bench.streamer.wait(reads, bench.stop)
    assert all(read.came for read in reads)


def test_a_failure_reaches_who_waits_for_it_and_nobody_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: DirectFile, *_: Any) -> None:
        raise StorageError(5, "input/output error")

    healthy = bench.read(0)
    bench.let_through(1)
    bench.streamer.wait([healthy], bench.stop)
    monkeypatch.setattr(Gate, "read_into", failing)
    broken = bench.read(1)
    with pytest.raises(StorageError, match="input/output error"):
        bench.streamer.wait([broken], bench.stop)
    bench.streamer.wait([healthy], bench.stop)
    assert bench.streamer.settle([broken]) == [False]


def test_a_wait_can_be_stopped(bench: Bench) -> None:
    read = bench.read(0)
    threading.Timer(0.05, bench.stop.request).start()
    with pytest.raises(CancelledError, match="waited for the disk"):
        bench.streamer.wait([read], bench.stop)
    assert not read.done


def test_bytes_and_times_are_counted(bench: Bench) -> None:
    reads = [bench.read(expert) for expert in range(4)]
    bench.let_through(4)
    bench.streamer.wait(reads, bench.stop)
    bench.streamer.drain()
    assert bench.streamer.bytes_read == 4 * bench.matrix.expert_bytes
    assert 0 < bench.streamer.busy_s < 10


def num_threads() -> int:
    return psutil.Process().num_threads()


def test_closing_leaves_no_thread_and_takes_no_more_reads(tiny_model: Any) -> None:
    before = num_threads()
    bench = Bench(tiny_model("qwen3moe"), 4)
    assert num_threads() == before + 4
    reads = [bench.read(expert, ahead=True) for expert in range(6)]
    bench.let_through(6)
    bench.streamer.close()
    bench.streamer.close()
    assert all(read.done for read in reads)
    assert num_threads() == before
    with pytest.raises(HaversackError, match="closed"):
        bench.read(7)
    bench.close()
