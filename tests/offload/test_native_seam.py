"""The library's way of a single token is the Python one's, to the bit and to the last slot."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack import edge
from haversack.devices.ggml import GraphNode
from haversack.devices.storage import Buffer, DirectFile
from haversack.edge.planner import streamed
from haversack.offload.native_seam import NativeSeam
from haversack.offload.seam import Seam, Watcher
from haversack.tools.models.architectures import TinyShape

TOKENS = [1 + 7 * i % 200 for i in range(60)]


def planned_with(tiny_model: Any, num_layers: int, share: float) -> edge.Plan:
    shape = TinyShape(num_experts=16, num_hidden_layers=num_layers)
    path = tiny_model("qwen3moe", shape=shape)
    return streamed(edge.plan(path, ram="1GiB", ctx=128, threads=1), share)


@pytest.fixture
def planned(tiny_model: Any) -> edge.Plan:
    """Slots for a few experts more than a token uses."""
    return planned_with(tiny_model, TinyShape().num_hidden_layers, 0.15)


@pytest.fixture
def roomy(tiny_model: Any) -> edge.Plan:
    """Slots for more experts than two layers have: batches read ahead."""
    return planned_with(tiny_model, 5, 0.6)


@pytest.fixture
def model(planned: edge.Plan, trunk_dir: Path) -> Iterator[edge.Model]:
    with edge.load(
        planned, options=edge.LoadOptions(warm_start=False, cache_dir=trunk_dir)
    ) as loaded:
        yield loaded


def seam_of(model: edge.Model) -> NativeSeam:
    seam = model._engine.seam
    assert isinstance(seam, NativeSeam)
    return seam


def books_of(model: edge.Model) -> list[dict[str, Any]]:
    assert model._engine.store is not None
    return [
        {name: np.copy(value) for name, value in pool.table.books().items()}
        for pool in model._engine.store.pools
    ]


def ignore(layer: int, ids: npt.NDArray[np.int32], choice: GraphNode) -> None:
    """A watcher that wants nothing but that no guess is made: guesses depend on time."""


def test_it_keeps_the_same_books_as_python(planned: edge.Plan, trunk_dir: Path) -> None:
    rows, books, counts = [], [], []
    for native in (True, False):
        options = edge.LoadOptions(warm_start=False, cache_dir=trunk_dir, native=native)
        with edge.load(planned, options=options) as model:
            model.watch_routing(ignore)
            found = [model.logits(TOKENS, prefill) for prefill in (1, 9, 40)]
            rows.append(np.concatenate(found))
            books.append(books_of(model))
            counts.append((model.stats().hits, model.stats().misses, model.stats().bytes_read))
            model.check_integrity()
    assert (rows[0] == rows[1]).all()
    assert counts[0] == counts[1] and min(counts[0]) > 0
    for ours, pythons in zip(*books, strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], pythons[name], err_msg=name)


def test_guesses_change_no_bit(planned: edge.Plan, trunk_dir: Path) -> None:
    options = edge.LoadOptions(warm_start=False, cache_dir=trunk_dir, native=False)
    with edge.load(planned, options=options) as plain:
        plain.watch_routing(ignore)
        expected = plain.logits(TOKENS, prefill=7)
    with edge.load(
        planned, options=edge.LoadOptions(warm_start=False, cache_dir=trunk_dir)
    ) as model:
        for _ in range(3):
            seam_of(model)._payoff.on = True
            assert (model.logits(TOKENS, prefill=7) == expected).all()
            model.check_integrity()
        assert 0 < model.stats().prefetched_right <= model.stats().prefetched


def test_a_read_that_fails_fails_the_call_and_no_more(
    planned: edge.Plan, trunk_dir: Path, model: edge.Model
) -> None:
    expected = model.logits(TOKENS, prefill=1)

    class Failing(DirectFile):
        broken = False

        def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
            if Failing.broken:
                raise edge.StorageError(5, "input/output error")
            super().read_into(buffer, offset, need_bytes)

    options = edge.LoadOptions(warm_start=False, cache_dir=trunk_dir, open_file=Failing)
    with edge.load(planned, options=options) as failing:
        failing.logits(TOKENS, prefill=1)
        Failing.broken = True
        with pytest.raises(edge.StorageError, match="input/output error"):
            failing.logits(TOKENS, prefill=1)
        Failing.broken = False
        failing.check_integrity()
        assert (failing.logits(TOKENS, prefill=1) == expected).all()


def expected_logits(planned: edge.Plan, trunk_dir: Path, prefill: int) -> npt.NDArray[np.float32]:
    """With every expert in a slot, and nothing guessed."""
    options = edge.LoadOptions(warm_start=False, cache_dir=trunk_dir)
    with edge.load(streamed(planned), options=options) as model:
        return model.logits(TOKENS, prefill)


def test_a_batch_reads_ahead_what_the_next_layer_chooses(roomy: edge.Plan, trunk_dir: Path) -> None:
    expected = expected_logits(roomy, trunk_dir, len(TOKENS))
    with edge.load(roomy, options=edge.LoadOptions(warm_start=False, cache_dir=trunk_dir)) as ahead:
        for _ in range(3):  # the first batch shows the routers
            assert (ahead.logits(TOKENS, prefill=len(TOKENS)) == expected).all()
            ahead.check_integrity()
        stats = ahead.stats()
        assert 0 < stats.prefetched_right <= stats.prefetched <= stats.needed
        store = ahead._engine.store
        assert store is not None
        assert all(pool.table.num_unpinned == pool.plan.num_slots for pool in store.pools)


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "failing"), [("planned", 0.001), ("roomy", 0.004)])
def test_ten_thousand_layers_with_guesses_and_failures(
    slots: str, failing: float, request: pytest.FixtureRequest, trunk_dir: Path
) -> None:
    """Tokens, batches, guesses, and now and then a read that fails: never a wrong bit, a lost slot
    or one that looks filled."""
    rng, planned = random.Random(0), request.getfixturevalue(slots)
    expected = {n: expected_logits(planned, trunk_dir, prefill=n) for n in (1, 2, 30)}

    class Unreliable(DirectFile):
        def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
            if rng.random() < failing:
                raise edge.StorageError(5, "input/output error")
            super().read_into(buffer, offset, need_bytes)

    options = edge.LoadOptions(warm_start=False, cache_dir=trunk_dir, open_file=Unreliable)
    num_layers, num_failed = 0, 0
    with edge.load(planned, options=options) as unreliable:
        store = unreliable._engine.store
        assert store is not None
        while num_layers < 10_000:
            store.odds.chances[:] = 1.0  # a random model's routers would soon be trusted no more
            seam_of(unreliable)._payoff.on = rng.random() < 0.8
            prefill = rng.choice([1, 2, 30])
            try:
                for row, right in zip(
                    unreliable.iter_logits(TOKENS, prefill), expected[prefill], strict=True
                ):
                    assert (row == right).all()
                    unreliable.check_integrity()
                    num_layers += len(planned.geometry.layers)
            except edge.StorageError:
                num_failed += 1
            unreliable.check_integrity()
        assert num_failed > 10 and store.guessed_right > 1_000
        seam_of(unreliable)._withdraw()
        assert all(pool.table.num_unpinned == pool.plan.num_slots for pool in store.pools)


def test_a_file_cut_short_is_named(planned: edge.Plan, model: edge.Model) -> None:
    num_bytes = planned.path.stat().st_size
    content = planned.path.read_bytes()
    try:
        with planned.path.open("r+b") as file:
            file.truncate(num_bytes // 4)
        with pytest.raises(edge.StorageError, match="the file ends there") as raised:
            for _ in range(20):
                model.logits(TOKENS, prefill=1)
        assert planned.path.name in str(raised.value)
        model.check_integrity()
    finally:
        planned.path.write_bytes(content)


def test_a_wait_can_be_stopped(planned: edge.Plan, trunk_dir: Path) -> None:
    go_on = threading.Event()

    class Stuck(DirectFile):
        def read_into(self, buffer: Buffer, offset: int, need_bytes: int) -> None:
            go_on.wait(20)
            super().read_into(buffer, offset, need_bytes)

    options = edge.LoadOptions(warm_start=False, cache_dir=trunk_dir, open_file=Stuck)
    with edge.load(planned, options=options) as model:
        stop = model._engine.stop
        threading.Timer(0.3, stop.request).start()
        threading.Timer(0.6, go_on.set).start()
        with pytest.raises(edge.CancelledError, match="waited for the disk"):
            model.logits(TOKENS, prefill=1)
        model.check_integrity()
        assert np.isfinite(model.logits(TOKENS, prefill=1)).all()


@pytest.mark.parametrize("method", ["_choose", "_foresee", "_compute"])
def test_any_exception_of_pythons_reaches_the_caller(
    method: str, model: edge.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StrangeError(Exception):
        pass

    def strange(*_: Any) -> bool:
        raise StrangeError("from Python")

    expected = model.logits(TOKENS, prefill=9)
    model.watch_routing(ignore, lambda _: None)  # Python is asked what it foresees
    monkeypatch.setattr(Seam, method, strange)
    with pytest.raises(StrangeError, match="from Python"):
        model.logits(TOKENS, prefill=9)
    monkeypatch.undo()
    model.check_integrity()
    assert (model.logits(TOKENS, prefill=9) == expected).all()


def changing(model: edge.Model, change: Callable[[], None]) -> Watcher:
    """A watcher that does `change` in layer 1."""
    return lambda layer, *_: change() if layer == 1 else None


def test_a_product_with_another_choice_is_refused(model: edge.Model) -> None:
    state = seam_of(model)._path.state

    def mislead() -> None:
        state.choice = 12345

    model.watch_routing(changing(model, mislead))
    with pytest.raises(edge.BindingError, match="another choice of experts"):
        model.logits([1, 2], prefill=1)
    model.watch_routing(None)
    assert np.isfinite(model.logits([1, 2], prefill=1)).all()


def test_a_graph_that_hides_a_product_is_refused(model: edge.Model) -> None:
    state = seam_of(model)._path.state

    def overlook() -> None:
        state.num_seen -= 1

    model.watch_routing(changing(model, overlook))
    with pytest.raises(edge.BindingError, match="8 of 9 expert products"):
        model.logits([1, 2], prefill=1)


def test_a_slot_that_is_not_filled_is_not_multiplied(model: edge.Model) -> None:
    """Books that lie: an expert is said to be in a slot that nobody filled."""
    model.logits(TOKENS, prefill=1)
    assert model._engine.store is not None
    state = model._engine.store.pools[0].table.books()["state"]
    kept = state.copy()

    def empty() -> None:
        state[:] = 1  # LOADING

    model.watch_routing(changing(model, empty))
    with pytest.raises(AssertionError, match="books were wrong"):
        model.logits(TOKENS, prefill=1)
    state[:] = kept
