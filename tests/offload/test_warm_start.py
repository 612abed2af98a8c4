"""A warm start brings back what lay in slots, in nobody's way, and never changes a number."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from haversack.cache.slots import NOWHERE
from haversack.devices._native import array_at
from haversack.devices.errors import StorageError
from haversack.devices.interrupts import StopFlag
from haversack.devices.storage import DirectFile
from haversack.offload.pool import plan_pools
from haversack.offload.resident_file import Expert, Residents
from haversack.offload.store import ExpertStore, Lease
from haversack.offload.streamer import AHEAD_READERS, Streamer
from haversack.offload.warm_start import PORTION
from haversack.quant.gguf import ModelGeometry, read_geometry
from haversack.tools.models.architectures import TinyShape

NUM_EXPERTS, PER_TOKEN, SLOTS = 16, 2, 24
LAYERS = (0, 1, 2)
USED = [(layer, expert) for layer in LAYERS for expert in range(8)]  # as many as there are slots


@pytest.fixture(scope="module")
def geometry(tiny_model: Any) -> ModelGeometry:
    shape = TinyShape(num_hidden_layers=len(LAYERS), num_experts=NUM_EXPERTS)
    return read_geometry(tiny_model("qwen3moe", expert_type="Q8_0", shape=shape))


class WatchedFile(DirectFile):
    """Its reads go through Python, where a test can change them."""


class Drive:
    """Files whose reads wait until it is let `go`; `fails` makes them fail then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.fails = threading.Event(), False
        self.begun = threading.Semaphore(0)
        healthy = WatchedFile.read_into

        def read_into(file: WatchedFile, *arguments: Any) -> None:
            self.begun.release()
            assert self.go.wait(timeout=30)
            if self.fails:
                raise StorageError(5, f"{file.path}: input/output error")
            healthy(file, *arguments)

        monkeypatch.setattr(WatchedFile, "read_into", read_into)


class Bench:
    """A store with `num_slots` slots, and what its model's file holds."""

    def __init__(self, geometry: ModelGeometry, num_slots: int = SLOTS) -> None:
        (plan,) = plan_pools(geometry.layers, num_slots // 2, num_bytes=0)
        assert plan.num_slots == num_slots
        self.streamer = Streamer(geometry.paths, num_readers=8, open_file=WatchedFile)
        self.store = ExpertStore(geometry, [plan], self.streamer, StopFlag())
        self.table = self.store.pools[0].table
        self._content = np.fromfile(geometry.path, np.uint8)

    def use(self, layer: int, *experts: int) -> Lease:
        """One lease, compared with the file."""
        lease = self.store.lease(layer, np.array(experts, np.int32))
        self.store.check_integrity()
        for index, matrix in enumerate(lease.layer.matrices):
            for group in self.store.groups(lease, index):
                for expert, address in zip(group.experts.tolist(), group.addresses, strict=True):
                    start = matrix.offset + expert * matrix.expert_bytes
                    found = array_at(address, (matrix.expert_bytes,), np.uint8)
                    expected = self._content[start : start + matrix.expert_bytes]
                    np.testing.assert_array_equal(found, expected)
        self.store.release(lease)
        self.store.check_integrity()
        return lease

    @property
    def num_ahead(self) -> int:
        return int(self.streamer.readers.counts().num_ahead)

    @property
    def num_reading(self) -> int:
        return int(self.streamer.readers.counts().num_reading)

    def wait_until_idle(self) -> None:
        while self.num_ahead or self.num_reading:
            threading.Event().wait(0.001)

    def residents(self) -> set[Expert]:
        found = self.store.residents()
        assert found is not None
        return set(found.experts)

    def close(self) -> None:
        self.streamer.close()
        self.store.check_integrity()
        self.store.close()


Make = Callable[..., Bench]


@pytest.fixture
def make(geometry: ModelGeometry) -> Iterator[Make]:
    """A function that makes benches, all closed at the end."""
    made: list[Bench] = []

    def give(num_slots: int = SLOTS) -> Bench:
        made.append(Bench(geometry, num_slots))
        return made[-1]

    yield give
    for bench in made:
        bench.close()


@pytest.fixture
def saved(make: Make) -> Residents:
    """What a run leaves that used `USED`, the later experts of a layer more often."""
    bench = make()
    for repeat in range(4):
        for layer in LAYERS:
            for expert in range(2 * repeat, 8, 2):
                bench.use(layer, expert, expert + 1)
    residents = bench.store.residents()
    assert residents is not None and set(residents.experts) == set(USED)
    return residents


# -------------------------------------------------------------------- at rest
def test_a_store_that_was_not_used_has_nothing_to_leave(make: Make, saved: Residents) -> None:
    bench = make()
    assert bench.store.residents() is None
    bench.store.start_warm(saved)
    assert bench.store.residents() is None


def test_what_lay_in_slots_comes_back_by_itself(make: Make, saved: Residents) -> None:
    bench = make()
    bench.store.start_warm(saved)
    bench.wait_until_idle()
    before = bench.streamer.bytes_read
    lease = bench.use(*saved.experts[0])
    assert before == (SLOTS - PER_TOKEN) * lease.layer.expert_bytes  # room is left for a token
    assert not lease.reads and bench.streamer.bytes_read == before


def test_the_most_valuable_come_first(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make(num_slots=8)
    bench.store.start_warm(saved)
    drive.go.set()
    bench.wait_until_idle()
    bench.store.withdraw()
    assert set(bench.table.residents()) == set(saved.experts[: 8 - PER_TOKEN])
    assert all(expert >= 2 for _, expert in bench.table.residents())  # 0 and 1 were used least


def test_a_larger_pool_takes_all(make: Make, saved: Residents) -> None:
    bench = make(num_slots=40)
    bench.store.start_warm(saved)
    bench.wait_until_idle()
    bench.store.withdraw()
    assert set(bench.table.residents()) == set(USED)
    assert bench.table.num_unpinned == 40


def test_the_policy_knows_from_the_start_who_is_worth_keeping(make: Make, saved: Residents) -> None:
    bench = make()
    bench.store.start_warm(saved)
    assert bench.table.policy.uses.tolist() == saved.memories[0]["uses"].tolist()
    for name, values in bench.table.policy.memory().items():
        np.testing.assert_allclose(values, saved.memories[0][name])


@pytest.mark.parametrize(
    "experts", [[(3, 0)], [(0, NUM_EXPERTS)], [(0, -1)]], ids=["layer", "expert", "negative"]
)
def test_another_models_experts_are_refused(
    experts: list[Expert], make: Make, saved: Residents
) -> None:
    bench = make()
    with pytest.raises(ValueError, match="experts that this model does not have"):
        bench.store.start_warm(Residents(experts, saved.memories))
    with pytest.raises(ValueError, match="experts that this model does not have"):
        bench.store.start_warm(Residents(saved.experts, []))
    with pytest.raises(ValueError, match="another rule, or of other experts"):
        bench.store.start_warm(Residents(saved.experts, [{"uses": np.zeros(3)}]))
    assert bench.table.num_unpinned == SLOTS and not bench.num_ahead


# --------------------------------------------------------------- at work
def test_a_token_goes_first_and_cuts_the_queue(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make()
    bench.store.start_warm(saved)
    for _ in range(AHEAD_READERS):
        assert drive.begun.acquire(timeout=30)
    lease = bench.store.lease(1, np.array([14, 15], np.int32))
    for _ in range(2 * len(lease.layer.matrices)):  # all of them, though reads ahead came earlier
        assert drive.begun.acquire(timeout=30)
    assert not drive.begun.acquire(blocking=False)
    assert bench.table.num_unpinned == SLOTS - PORTION - 2
    bench.store.check_integrity()
    drive.go.set()
    bench.store.release(lease)
    for _ in range(20):  # tokens later, all is there that these tokens left a place
        bench.use(1, 14, 15)
        bench.wait_until_idle()
    bench.store.withdraw()
    assert bench.table.num_unpinned == SLOTS
    assert len(set(bench.table.residents()) & set(USED)) == SLOTS - 2


def test_an_expert_that_is_wanted_on_its_way_is_read_once(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make()
    bench.store.start_warm(saved)
    assert drive.begun.acquire(timeout=30)
    threading.Timer(0.05, drive.go.set).start()
    lease = bench.use(*saved.experts[1])
    assert lease.missing.tolist() == [0] and not lease.reads[-1][0].ahead
    bench.wait_until_idle()
    bench.store.withdraw()
    num_came = len(bench.table.residents())
    assert bench.streamer.bytes_read == num_came * lease.layer.expert_bytes


def test_a_prompt_finds_every_slot_and_the_rest_comes_after_it(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make()
    bench.store.start_warm(saved)
    assert drive.begun.acquire(timeout=30)
    threading.Timer(0.05, drive.go.set).start()
    bench.store.withdraw()  # waits for no more than what had begun
    assert bench.table.num_unpinned == SLOTS
    assert len(bench.table.residents()) <= AHEAD_READERS
    bench.use(2, *range(6))  # a small batch
    assert not bench.num_ahead
    for _ in range(20):
        bench.use(2, 0, 1)
        bench.wait_until_idle()
    assert bench.residents() >= set(saved.experts[: SLOTS - PER_TOKEN])
    expert_bytes = bench.use(2, 0).layer.expert_bytes
    assert bench.streamer.bytes_read <= (SLOTS + AHEAD_READERS) * expert_bytes


def test_what_is_worth_less_than_what_lies_there_is_left_out(make: Make, saved: Residents) -> None:
    bench = make()
    for _ in range(12):  # more often than any that was saved
        for layer in LAYERS:
            for first in range(8, 16, 2):
                bench.use(layer, first, first + 1)
    better = bench.store.residents()
    assert better is not None and not set(better.experts) & set(USED)
    bench.store._warm_start.start(Residents(saved.experts, better.memories))
    bench.wait_until_idle()
    bench.use(0, 8, 9)
    assert bench.residents() == set(better.experts)


# ------------------------------------------------------------------- failures
def test_reads_that_fail_are_left_out(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make()
    drive.fails = True
    drive.go.set()
    bench.store.start_warm(saved)
    bench.wait_until_idle()
    drive.fails = False
    bench.use(*saved.experts[0])
    bench.wait_until_idle()
    bench.store.withdraw()
    assert bench.table.num_unpinned == SLOTS
    assert len(bench.table.residents()) == 1


def test_an_expert_half_of_which_failed_is_read_again_when_wanted(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    healthy, failed = WatchedFile.read_into, list[int]()
    stuck = threading.Event()

    def read_into(file: WatchedFile, *arguments: Any) -> None:
        if not failed:
            failed.append(1)
            raise StorageError(5, "input/output error")
        assert stuck.wait(timeout=30)
        healthy(file, *arguments)

    monkeypatch.setattr(WatchedFile, "read_into", read_into)
    bench.store.start_warm(Residents(saved.experts[:1], saved.memories))
    while not failed or bench.num_reading < AHEAD_READERS:
        threading.Event().wait(0.001)
    threading.Timer(0.05, stuck.set).start()
    bench.use(*saved.experts[0])


def test_after_a_failed_call_it_goes_on(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make()
    bench.store.start_warm(saved)
    bench.store.lease(0, np.array([14, 15], np.int32))  # and the call fails
    threading.Timer(0.05, drive.go.set).start()
    bench.store.recover()
    bench.store.check_integrity()
    assert bench.table.num_unpinned == SLOTS
    for _ in range(20):
        bench.use(0, 14, 15)
        bench.wait_until_idle()
    bench.store.withdraw()
    assert len(set(bench.table.residents()) & set(USED)) == SLOTS - 2


def test_closing_begins_no_read_more(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make()
    bench.store.start_warm(saved)
    for _ in range(AHEAD_READERS):
        assert drive.begun.acquire(timeout=30)
    threading.Timer(0.05, drive.go.set).start()
    bench.streamer.close()
    assert not drive.begun.acquire(blocking=False)


def test_what_had_not_come_is_left_for_the_next_start(
    make: Make, saved: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, bench = Drive(monkeypatch), make()
    bench.store.start_warm(saved)
    threading.Timer(0.05, drive.go.set).start()
    bench.use(0, 14, 15)
    bench.streamer.close()
    left = bench.store.residents()
    assert left is not None
    assert set(left.experts) == {(0, 14), (0, 15)} | set(saved.experts[: SLOTS - 2])
    assert bench.table.find(2, np.array([15]))[0] == NOWHERE
