"""The store brings the right bytes, keeps its books through failures, and leaves nothing behind."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.devices._native import array_at
from haversack.devices.errors import CancelledError, StorageError
from haversack.devices.interrupts import StopFlag
from haversack.devices.storage import DirectFile
from haversack.offload.pool import plan_pools
from haversack.offload.store import ExpertStore, Group, Lease
from haversack.offload.streamer import Streamer
from haversack.quant.gguf import ExpertMatrix, ModelGeometry, read_geometry
from haversack.tools.models.architectures import TinyShape

NUM_EXPERTS, NUM_LAYERS = 16, 3


@pytest.fixture(params=[256, 160], ids=["whole pages", "any bytes"])
def geometry(request: pytest.FixtureRequest, tiny_model: Any) -> ModelGeometry:
    """A model whose experts' matrices are, or are not, whole pages."""
    shape = TinyShape(num_experts=NUM_EXPERTS, moe_intermediate_size=request.param)
    return read_geometry(tiny_model("qwen3moe", expert_type="Q8_0", shape=shape))


class WatchedFile(DirectFile):
    """Its reads go through Python, where a test can change them."""


class Bench:
    """A store over `geometry` with `num_slots` slots, its streamer, and the model's true bytes."""

    def __init__(self, geometry: ModelGeometry, num_slots: int) -> None:
        floor = plan_pools(geometry.layers, num_experts_per_tok=num_slots // 2, num_bytes=0)
        self.stop = StopFlag()
        self.streamer = Streamer(geometry.paths, open_file=WatchedFile)
        self.store = ExpertStore(geometry, floor, self.streamer, self.stop)
        self.layers = geometry.layers
        self._content = np.fromfile(geometry.path, np.uint8)

    def truth(self, matrix: ExpertMatrix, expert: int) -> np.ndarray[Any, Any]:
        start = matrix.offset + expert * matrix.expert_bytes
        return self._content[start : start + matrix.expert_bytes]

    def assert_true(self, matrix: ExpertMatrix, group: Group) -> None:
        for expert, address in zip(group.experts, group.addresses, strict=True):
            found = array_at(address, (matrix.expert_bytes,), np.uint8)
            np.testing.assert_array_equal(found, self.truth(matrix, int(expert)))

    def assert_lease_true(self, lease: Lease) -> None:
        for index, matrix in enumerate(lease.layer.matrices):
            seen: list[int] = []
            for group in self.store.groups(lease, index):
                self.assert_true(matrix, group)
                seen += group.experts.tolist()
            assert sorted(seen) == sorted(lease.experts.tolist())

    def close(self) -> None:
        self.streamer.close()
        self.store.check_integrity()
        self.store.close()


@pytest.fixture
def bench(geometry: ModelGeometry) -> Iterator[Bench]:
    made = Bench(geometry, num_slots=8)
    yield made
    made.close()


def test_a_lease_holds_the_files_bytes(bench: Bench) -> None:
    for layer in bench.layers:
        lease = bench.store.lease(layer.layer, np.array([3, 15, 0, 7]))
        bench.assert_lease_true(lease)
        bench.store.release(lease)


def test_what_stays_is_not_read_again(bench: Bench) -> None:
    first = bench.store.lease(0, np.array([1, 2]))
    bench.assert_lease_true(first)
    bench.store.release(first)
    read_bytes = bench.streamer.bytes_read
    again = bench.store.lease(0, np.array([2, 1]))
    bench.assert_lease_true(again)
    bench.store.release(again)
    assert bench.streamer.bytes_read == read_bytes == 2 * bench.layers[0].expert_bytes
    assert (bench.store.hits, bench.store.misses) == (2, 2)


def test_waves_bring_each_matrix_once_through_few_slots(bench: Bench) -> None:
    held = bench.store.lease(0, np.array([5, 9]))
    bench.assert_lease_true(held)
    bench.store.release(held)
    everyone = np.arange(NUM_EXPERTS)
    visit = bench.store.visit(0, everyone)
    for index, matrix in enumerate(bench.layers[0].matrices):
        before, seen = bench.streamer.bytes_read, list[int]()
        with closing(bench.store.waves(visit, index)) as groups:  # type: ignore[type-var]
            for group in groups:
                bench.assert_true(matrix, group)
                seen += group.experts.tolist()
        assert sorted(seen) == everyone.tolist()
        read = bench.streamer.bytes_read - before
        assert read == (NUM_EXPERTS - 2) * matrix.expert_bytes  # 5 and 9 stay to the last
        bench.store.check_integrity()
    bench.store.leave(visit)
    assert bench.store.pool(0).table.num_unpinned == 8


def test_a_visit_leaves_slots_for_who_is_not_there(bench: Bench) -> None:
    held = bench.store.lease(0, np.arange(8))  # all slots
    bench.assert_lease_true(held)
    bench.store.release(held)
    visit = bench.store.visit(0, np.arange(NUM_EXPERTS))
    table, reserve = bench.store.pool(0).table, bench.store._reserve
    assert table.num_unpinned == reserve == 8 - len(visit.resident)
    for group in bench.store.waves(visit, 1):
        bench.assert_true(bench.layers[0].matrices[1], group)
    bench.store.leave(visit)


def test_waves_of_one_slot(geometry: ModelGeometry) -> None:
    """A model of one expert per token has two slots at its floor. One holds an expert that the
    batch uses, so a single slot is left for all others."""
    bench = Bench(replace(geometry, num_experts_per_tok=1), num_slots=2)
    lease = bench.store.lease(0, np.array([5]))
    bench.assert_lease_true(lease)
    bench.store.release(lease)
    visit = bench.store.visit(0, np.arange(NUM_EXPERTS))
    assert len(visit.resident) == 1
    for index, matrix in enumerate(bench.layers[0].matrices):
        seen = list[int]()
        with closing(bench.store.waves(visit, index)) as groups:  # type: ignore[type-var]
            for group in groups:
                bench.assert_true(matrix, group)
                seen += group.experts.tolist()
        assert sorted(seen) == list(range(NUM_EXPERTS))
    bench.store.leave(visit)
    assert bench.store.pool(0).table.num_unpinned == 2
    bench.close()


def test_waves_left_early_let_go_of_their_slots(bench: Bench) -> None:
    visit = bench.store.visit(1, np.arange(NUM_EXPERTS))
    with closing(bench.store.waves(visit, 0)) as groups:  # type: ignore[type-var]
        next(groups)
    bench.store.leave(visit)
    bench.store.check_integrity()
    lease = bench.store.lease(1, np.arange(8))  # all slots are free to be claimed
    bench.assert_lease_true(lease)
    bench.store.release(lease)


def test_a_failed_read_fails_the_lease_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: DirectFile, *_: Any) -> None:
        raise StorageError(5, f"{file.path}: input/output error")

    monkeypatch.setattr(WatchedFile, "read_into", failing)
    lease = bench.store.lease(0, np.array([1, 2, 3]))
    with pytest.raises(StorageError, match="input/output error"):
        list(bench.store.groups(lease, 0))
    bench.store.release(lease)
    bench.store.check_integrity()
    monkeypatch.undo()
    again = bench.store.lease(0, np.array([1, 2, 3]))
    assert len(again.missing) == 3  # what failed is not taken for there
    bench.assert_lease_true(again)
    bench.store.release(again)


def test_a_stopped_wait_ends_soon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy, go_on = DirectFile.read_into, threading.Event()

    def stuck(file: DirectFile, *arguments: Any) -> None:
        go_on.wait(timeout=30)
        healthy(file, *arguments)

    monkeypatch.setattr(WatchedFile, "read_into", stuck)
    lease = bench.store.lease(0, np.array([1, 2]))
    threading.Timer(0.05, bench.stop.request).start()
    with pytest.raises(CancelledError):
        list(bench.store.groups(lease, 0))
    go_on.set()
    bench.store.release(lease)  # waits for what had begun: it writes into slots
    bench.store.check_integrity()


# -------------------------------------------------------------------- guesses
def test_a_right_guess_is_not_read_again(bench: Bench) -> None:
    assert bench.store.read_ahead(1, np.array([3, 4])) == 2
    lease = bench.store.lease(1, np.array([3, 4, 5]))
    bench.assert_lease_true(lease)
    bench.store.release(lease)
    assert bench.streamer.bytes_read == 3 * bench.layers[1].expert_bytes
    assert (bench.store.guessed, bench.store.guessed_right) == (2, 2)


def test_a_guess_that_came_in_time_is_a_hit(bench: Bench) -> None:
    bench.store.read_ahead(1, np.array([3]))
    while bench.streamer.bytes_read < bench.layers[1].expert_bytes:
        threading.Event().wait(0.001)
    bench.streamer.drain()
    lease = bench.store.lease(1, np.array([3]))
    assert not lease.reads and (bench.store.hits, bench.store.misses) == (1, 0)
    bench.assert_lease_true(lease)
    bench.store.release(lease)


def test_a_wrong_guess_is_let_go_and_gives_its_slot_back(bench: Bench) -> None:
    bench.store.read_ahead(1, np.array([3, 4]))
    for _ in range(2):  # what was under way when the layer chose is looked at when it comes again
        lease = bench.store.lease(1, np.array([8]))
        bench.assert_lease_true(lease)
        bench.store.release(lease)
        bench.streamer.drain()
    bench.store.check_integrity()
    assert bench.store.pool(1).table.num_unpinned == 8
    assert bench.store.guessed_right == 0


def test_what_could_have_been_foreseen_is_counted_where_somebody_foresaw(bench: Bench) -> None:
    def choose(*experts: int) -> None:
        lease = bench.store.lease(1, np.array(experts))
        bench.assert_lease_true(lease)
        bench.store.release(lease)

    choose(1, 2)  # nobody foresaw anything
    assert bench.store.foreseeable == 0
    bench.store.read_ahead(1, np.array([1, 3]))
    bench.store.read_ahead(1, np.array([4]))  # by another layer, for the same choice
    choose(1, 3, 4, 5)  # 1 was in memory, 5 nobody foresaw
    assert (bench.store.guessed_right, bench.store.foreseeable) == (2, 3)
    bench.store.read_ahead(1, np.array([3]))  # nothing to read, and yet foreseen
    choose(3, 6)
    assert (bench.store.guessed_right, bench.store.foreseeable) == (2, 4)
    bench.store.read_ahead(1, np.array([7]))
    bench.store.withdraw()
    choose(8)
    assert bench.store.foreseeable == 4


def test_a_guess_let_go_and_then_wanted_is_read_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy, go_on, begun = DirectFile.read_into, threading.Event(), threading.Event()

    def stuck(file: DirectFile, *arguments: Any) -> None:
        begun.set()
        go_on.wait(timeout=30)
        healthy(file, *arguments)

    monkeypatch.setattr(WatchedFile, "read_into", stuck)
    bench.store.read_ahead(1, np.array([3]))
    assert begun.wait(timeout=30)
    other = bench.store.lease(1, np.array([8]))
    go_on.set()
    bench.assert_lease_true(other)
    bench.store.release(other)
    lease = bench.store.lease(1, np.array([3]))
    bench.assert_lease_true(lease)
    bench.store.release(lease)


def test_guesses_leave_slots_for_a_token_and_spare_what_is_likely(bench: Bench) -> None:
    lease = bench.store.lease(1, np.array([1]))
    bench.assert_lease_true(lease)
    bench.store.release(lease)
    bench.store.read_ahead(1, np.array([1, *range(2, 16)]))
    table = bench.store.pool(1).table
    assert table.num_unpinned == 2 + 1  # a token's two experts, and the likely one
    assert table.are_ready(table.find(1, np.array([1])))
    bench.store.withdraw()
    assert table.num_unpinned == 8
    bench.store.check_integrity()


def test_a_batch_guesses_what_leaves_slots_for_any_other_choice(
    geometry: ModelGeometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, go_on = Bench(geometry, num_slots=NUM_EXPERTS + 6), threading.Event()
    healthy = DirectFile.read_into

    def stuck(file: DirectFile, *arguments: Any) -> None:
        go_on.wait(timeout=30)
        healthy(file, *arguments)

    monkeypatch.setattr(WatchedFile, "read_into", stuck)
    bench.store._reserve = 2
    bench.store.read_ahead_of_batch(1, np.arange(10))
    assert bench.store.guessed == 6  # under way, and in nobody's way
    lease = bench.store.lease(1, np.arange(4, NUM_EXPERTS))
    go_on.set()
    bench.assert_lease_true(lease)
    bench.store.release(lease)
    assert (bench.store.guessed_right, bench.store.needed) == (2, NUM_EXPERTS - 4)
    bench.store.drop_guesses()
    table = bench.store.pool(1).table
    assert table.num_unpinned == NUM_EXPERTS + 6
    bench.close()


def test_a_batch_without_slots_to_spare_guesses_nothing(bench: Bench) -> None:
    bench.store.read_ahead_of_batch(1, np.arange(10))
    assert bench.store.guessed == 0 and bench.store.pool(1).table.num_unpinned == 8


def test_a_failed_guess_is_read_again_when_it_is_wanted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(file: DirectFile, *_: Any) -> None:
        raise StorageError(5, "input/output error")

    monkeypatch.setattr(WatchedFile, "read_into", failing)
    bench.store.read_ahead(1, np.array([3]))
    bench.streamer.drain()
    bench.streamer.settle(bench.store._guesses[1][0].reads)
    monkeypatch.undo()
    lease = bench.store.lease(1, np.array([3]))
    bench.assert_lease_true(lease)
    bench.store.release(lease)


@pytest.mark.parametrize("num_slots", [10, NUM_EXPERTS + 6])
def test_ten_thousand_random_steps_keep_the_books(
    num_slots: int, geometry: ModelGeometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases, guesses, waves, failures, early ends in any order: never a wrong byte or a lost
    slot."""
    bench, rng = Bench(geometry, num_slots), random.Random(0)
    healthy = DirectFile.read_into

    def unreliable(file: DirectFile, *arguments: Any) -> None:
        if rng.random() < 0.02:
            raise StorageError(5, "input/output error")
        healthy(file, *arguments)

    monkeypatch.setattr(WatchedFile, "read_into", unreliable)
    steps = 0
    while steps < 10_000:
        layer = rng.choice(bench.layers)
        count = rng.choice([1, 2, 2, 2, 4, 10, 16])
        experts = np.array(rng.sample(range(NUM_EXPERTS), count))
        steps += count
        try:
            if rng.random() < 0.5:
                likely = rng.sample(range(NUM_EXPERTS), rng.randint(1, 4))
                bench.store.read_ahead(rng.choice(bench.layers).layer, np.array(likely))
            if count > 2 and rng.random() < 0.5:
                bench.store.withdraw()
                popular = rng.sample(range(NUM_EXPERTS), rng.randint(1, NUM_EXPERTS))
                bench.store.read_ahead_of_batch(layer.layer, np.array(popular))
            elif count > 2:
                bench.store.withdraw()
            if bench.store.fits(layer.layer, count):
                one_lease(bench, rng, layer.layer, experts)
            else:
                some_waves(bench, rng, layer.layer, experts)
        except StorageError:
            pass
        bench.store.check_integrity()
    assert bench.store.hits > 0 and bench.store.misses > 0
    assert 0 < bench.store.guessed_right < bench.store.guessed
    assert bench.store.guessed_right < bench.store.foreseeable
    bench.store.withdraw()
    assert all(pool.table.num_unpinned == pool.plan.num_slots for pool in bench.store.pools)
    bench.close()


def one_lease(bench: Bench, rng: random.Random, layer: int, experts: np.ndarray[Any, Any]) -> None:
    lease = bench.store.lease(layer, experts)
    try:
        if rng.random() < 0.9:
            bench.assert_lease_true(lease)
    finally:
        bench.store.release(lease)


def some_waves(bench: Bench, rng: random.Random, layer: int, experts: np.ndarray[Any, Any]) -> None:
    index, visit = rng.randrange(3), bench.store.visit(layer, experts)
    try:
        with closing(bench.store.waves(visit, index)) as groups:  # type: ignore[type-var]
            for group in groups:
                bench.assert_true(bench.layers[layer].matrices[index], group)
                if rng.random() < 0.1:
                    return
    finally:
        bench.store.leave(visit)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing"):
        Streamer([tmp_path / "nothing.gguf"])


def test_a_lease_that_fails_halfway_leaves_nothing_that_looks_filled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots are claimed before their reads start: if starting fails, they must not stay claimed."""
    experts, begun = np.array([1, 2, 3]), list[int]()
    read = Streamer.read

    def exhausted(streamer: Streamer, *arguments: Any) -> Any:
        begun.append(1)
        if len(begun) == 5:
            raise RuntimeError("can't start new thread")
        return read(streamer, *arguments)

    monkeypatch.setattr(Streamer, "read", exhausted)
    with pytest.raises(RuntimeError, match="new thread"):
        bench.store.lease(0, experts)
    monkeypatch.undo()
    bench.store.recover()
    bench.store.check_integrity()
    assert bench.store.pool(0).table.num_unpinned == 8
    again = bench.store.lease(0, experts)
    assert len(again.missing) == 3
    bench.assert_lease_true(again)
    bench.store.release(again)
