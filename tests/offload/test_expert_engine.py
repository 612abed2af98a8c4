"""The engine between its slots and its drive: what fails, fails one call, and no bit is another
because of faults, cancellations, predictions or the number of slots.

`tests/native/test_engine.cpp` has the same of single reads; here llama.cpp computes real models.
"""

import itertools
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack import edge
from haversack.cache.precision import HIGH
from haversack.devices._native import address_of
from haversack.devices.errors import CancelledError, HaversackError, StorageError
from haversack.edge.plain_llama import PlainLlama
from haversack.edge.planner import streamed
from haversack.offload import _native as native
from haversack.offload.expert_engine import BEING_READ, HELD_WHOLE
from haversack.offload.pool import slot_bytes
from haversack.tools.models.architectures import TinyShape

SHAPE = TinyShape(num_hidden_layers=3, num_experts=16, num_experts_per_tok=4)
PREFILL, CTX, THREADS = 40, 128, 2
TOKENS = np.random.default_rng(1).integers(0, SHAPE.vocab_size, PREFILL + 60).tolist()
FLOOR, ALL = 2 * SHAPE.num_experts_per_tok, SHAPE.num_hidden_layers * SHAPE.num_experts


@pytest.mark.parametrize("warm", [False, True])
def test_slots_grow_and_shrink_between_passes(tiny_model: Any, trunk_dir: Path, warm: bool) -> None:
    path = tiny_model("qwen3moe", shape=SHAPE)
    planned = streamed(edge.plan(path, ram="2GiB", ctx=CTX, threads=THREADS), 0.5)
    options = edge.LoadOptions(cache_dir=trunk_dir, warm_start=warm)
    if warm:
        with edge.load(planned, options=options) as model:
            model.logits(TOKENS, PREFILL)
    numbers = (ALL, FLOOR, 20, ALL, 30, 21, FLOOR)
    rows: list[Any] = []
    with edge.load(planned, options=options) as model:
        experts = model._loop.engine.experts
        assert experts is not None
        (pool,) = experts.pools
        address = pool.address(0)
        experts.resize(0, FLOOR)
        for row in model.iter_logits(TOKENS, PREFILL):
            rows.append(row.copy())
            experts.resize(0, numbers[len(rows) % len(numbers)])
            model.check_integrity()
            assert pool.address(0) == address
            assert pool.resident_bytes <= pool.num_slots * slot_bytes(planned.pools[0].shape)
        assert pool.resident_bytes > 0
    with PlainLlama(path, CTX, THREADS) as plain:
        np.testing.assert_array_equal(np.stack(rows), plain.logits(TOKENS, PREFILL))


# --------------------------------------------------------------------- faults
SMALL = TinyShape(num_hidden_layers=3, num_experts=16)
CHOSEN = {0: (0, 1), 1: (2, 3), 2: (4, 5)}
MOMENTS = [
    pytest.param(0.0, 1, id="a token misses"),
    pytest.param(0.6, 40, id="a batch misses"),
    pytest.param(0.0, 40, id="waves"),
]


@pytest.fixture
def path(tiny_model: Any) -> Path:
    made: Path = tiny_model("qwen3moe", shape=SMALL)
    return made


def input_output_error() -> StorageError:
    return StorageError(5, "input/output error")


@pytest.mark.parametrize("number", [1, 2, 9])
@pytest.mark.parametrize("fault", ["the read fails", "the call is cancelled"])
@pytest.mark.parametrize(("share", "prefill"), MOMENTS)
def test_a_fault_ends_its_call_and_the_next_one_has_its_bits(
    share: float, prefill: int, fault: str, number: int, path: Path, open_model: Any
) -> None:
    model, numbers = open_model(path, share), itertools.count(1)
    expected = model.logits(TOKENS[:60], prefill)
    model.experts.predict_by_routers(False)  # a prefetch that fails would be read again

    def on_read(_: int) -> None:
        if next(numbers) == number:
            if fault == "the read fails":
                raise input_output_error()
            model.engine.stop.request()
            time.sleep(0.2)  # so that the pass waits for it

    model.drive.on_read = on_read
    with pytest.raises(StorageError if fault == "the read fails" else CancelledError):
        model.logits(TOKENS[:60], prefill)
    model.engine.stop.clear()
    assert model.num_unpinned() == model.num_slots()
    np.testing.assert_array_equal(model.logits(TOKENS[:60], prefill), expected)


def test_a_call_that_reads_nothing_is_cancelled_too(path: Path, open_model: Any) -> None:
    model = open_model(path, 1.0)
    expected = model.logits(TOKENS[:8], 1)

    def cancel(_: int) -> None:
        model.engine.stop.request()

    model.experts.predict_by(cancel)
    misses = model.experts.misses
    with pytest.raises(CancelledError):
        model.rows(TOKENS[:1])
    assert model.experts.misses == misses
    model.engine.stop.clear()
    model.experts.predict_by_routers(True)
    np.testing.assert_array_equal(model.logits(TOKENS[:8], 1), expected)


@pytest.mark.parametrize(("share", "prefill"), MOMENTS)
def test_an_expert_that_is_missed_is_read_once(
    share: float, prefill: int, path: Path, open_model: Any
) -> None:
    model = open_model(path, share)
    model.experts.predict_by_routers(False)
    model.logits(TOKENS[:60], prefill)
    expert_bytes = model.geometry.layers[0].expert_bytes
    assert model.bytes_read == model.experts.misses * expert_bytes > 0


def test_an_expert_without_its_bytes_is_not_multiplied(path: Path, open_model: Any) -> None:
    model = open_model(path, 1.0)
    expected = model.logits(TOKENS[:60], 40)
    other = open_model(path, 1.0)
    everyone = np.arange(SMALL.num_experts, dtype=np.int32)
    slots, pool = np.empty_like(everyone), native.engine_slots(other.experts.address, 0, HIGH)
    native.slots_claim(pool, 1, address_of(everyone), len(everyone), address_of(slots))
    with pytest.raises(AssertionError, match="the books of the slots were wrong"):
        other.logits(TOKENS[:60], 40)
    np.testing.assert_array_equal(other.logits(TOKENS[:60], 40), expected)


# ----------------------------------------------------------------- prefetches
def wait_for(event: threading.Event) -> None:
    assert event.wait(timeout=60)


def forced_logits(model: Any, predicted: dict[int, tuple[int, ...]] | None = None) -> Any:
    model.force(CHOSEN, predicted)
    return model.logits(TOKENS[:12], 1)


class Prefetched:
    """The reads of expert 9 of layer 1 do `then` once they have `begun`, before layer 1 chooses:
    layer 0 waits for that."""

    def __init__(self, model: Any, then: Callable[[], None]) -> None:
        self.begun = threading.Event()
        self._model, self._then = model, then
        model.drive.on_read = self._on_read

    def _on_read(self, offset: int) -> None:
        if self._model.is_read_of(offset, 0, CHOSEN[0][0]):
            assert self.begun.wait(timeout=60)
        if self._model.is_read_of(offset, 1, 9):
            self.begun.set()
            self._then()


def test_a_prefetch_that_fails_and_is_not_needed_fails_nothing(path: Path, open_model: Any) -> None:
    def fail() -> None:
        raise input_output_error()

    expected = forced_logits(open_model(path))
    model = open_model(path, 0.3)
    prefetched = Prefetched(model, fail)
    np.testing.assert_array_equal(forced_logits(model, {1: (9,)}), expected)
    assert prefetched.begun.is_set()
    assert model.num_unpinned() == model.num_slots()


def test_a_prefetch_that_was_given_up_and_is_needed_then_is_read_whole(
    path: Path, open_model: Any
) -> None:
    def run(model: Any) -> Any:
        chosen = dict(CHOSEN)
        model.force(chosen, {1: (9,)})
        model.engine.context.decode(TOKENS[:1])
        chosen[1] = (9, 10)
        threading.Timer(0.2, go.set).start()
        model.engine.context.decode(TOKENS[1:2])
        return model.engine.context.logits()

    go = threading.Event()
    expected = run(open_model(path))
    go.clear()
    model = open_model(path, 0.3)
    prefetched = Prefetched(model, lambda: wait_for(go))
    np.testing.assert_array_equal(run(model), expected)
    assert prefetched.begun.is_set()
    assert model.num_unpinned() == model.num_slots()


def test_closing_waits_for_prefetches_under_way(path: Path, open_model: Any) -> None:
    model, go = open_model(path, 0.3), threading.Event()
    prefetched = Prefetched(model, lambda: wait_for(go))
    model.force(CHOSEN, {1: (9, 10)})
    model.engine.context.decode(TOKENS[:1])
    assert prefetched.begun.is_set()
    closing = threading.Thread(target=model.close)
    closing.start()
    go.set()
    closing.join(timeout=60)
    assert not closing.is_alive()


def test_an_expert_that_is_being_read_is_seen(path: Path, open_model: Any) -> None:
    model, seen = open_model(path, 0.3), list[int]()
    Prefetched(model, lambda: seen.append(model.experts.held_copies()[1][9]))
    forced_logits(model, {1: (9,)})
    model.wait_until_idle()  # the read that looks may be behind
    held = {each for layer in model.experts.held_copies().values() for each in layer}
    assert seen[0] == BEING_READ
    assert {HELD_WHOLE} < held <= {0, HELD_WHOLE, BEING_READ}  # prefetches may go on after a pass


def test_prefetches_are_counted(path: Path, open_model: Any) -> None:
    model, chosen, predicted = open_model(path, 1.0), dict(CHOSEN), dict[int, tuple[int, ...]]()
    model.force(chosen, predicted)

    def counts() -> tuple[int, ...]:
        found = model.experts.prefetch_counts()
        return found.started, found.right, found.possible, found.needed

    model.engine.context.decode(TOKENS[:1])
    assert counts() == (0, 0, 0, 6)
    predicted[1], chosen[1] = (2, 8, 9), (8, 10)  # 2 is there, 9 is wrong, 10 is not predicted
    model.engine.context.decode(TOKENS[1:2])
    assert counts() == (2, 1, 2, 8)
    predicted[1], chosen[1] = (8,), (8, 11)  # nothing to read, and still a prediction
    model.engine.context.decode(TOKENS[2:3])
    assert counts() == (2, 1, 3, 9)


def test_a_batch_prefetches_what_the_next_layer_chooses(tiny_model: Any, open_model: Any) -> None:
    path = tiny_model("qwen3moe", shape=TinyShape(num_hidden_layers=5, num_experts=16))
    tokens = TOKENS[:60]
    expected = open_model(path, 1.0).logits(tokens, len(tokens))
    model = open_model(path, 0.6)
    for _ in range(3):  # the first batch shows the routers
        np.testing.assert_array_equal(model.logits(tokens, len(tokens)), expected)
    counts = model.experts.prefetch_counts()
    assert 0 < counts.right <= counts.started <= counts.needed
    assert model.num_unpinned() == model.num_slots()


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_prediction_that_raises_ends_the_call(
    share: float, num_rows: int, path: Path, open_model: Any
) -> None:
    class StrangeError(Exception):
        pass

    def strange(_: int) -> None:
        raise StrangeError("from Python")

    model = open_model(path, share)
    expected = model.rows(TOKENS[:num_rows])
    model.experts.predict_by(strange)
    with pytest.raises(StrangeError, match="from Python"):
        model.rows(TOKENS[:num_rows])
    model.experts.check_integrity()
    model.experts.predict_by_routers(True)
    np.testing.assert_array_equal(model.rows(TOKENS[:num_rows]), expected)


@pytest.mark.parametrize("experts", [[16], [-1], [3, 3], list(range(40))])
def test_a_prediction_of_experts_that_do_not_exist_ends_the_call(
    experts: list[int], path: Path, open_model: Any
) -> None:
    model = open_model(path)
    expected = model.logits(TOKENS[:60], 40)
    model.experts.predict_by(lambda _: np.array(experts))
    with pytest.raises(HaversackError, match=r"of layer 1 (are asked for|is predicted twice)"):
        model.logits(TOKENS[:60], 40)
    model.experts.predict_by_routers(True)
    np.testing.assert_array_equal(model.logits(TOKENS[:60], 40), expected)


# ------------------------------------------------------------------ few slots
@pytest.mark.parametrize("share", [0.0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6])
def test_one_expert_per_token_leaves_a_single_slot_for_waves(
    share: float, tiny_model: Any, open_model: Any
) -> None:
    shape = TinyShape(num_experts=8, num_experts_per_tok=1)
    path, tokens = tiny_model("qwen3moe", shape=shape), TOKENS[:30]
    model, expected = open_model(path, share), {}
    with PlainLlama(path, CTX, 1) as plain:
        for prefill in (1, 30, 1, 30, 30):
            if prefill not in expected:
                expected[prefill] = plain.logits(tokens, prefill)
            np.testing.assert_array_equal(model.logits(tokens, prefill), expected[prefill])
    assert model.num_unpinned() == model.num_slots()


# ----------------------------------------------------------------- everything
@pytest.mark.slow
@pytest.mark.parametrize(("share", "failing"), [(0.15, 0.001), (0.6, 0.004)])
def test_thousands_of_layers_with_predictions_and_failures(
    share: float, failing: float, path: Path, open_model: Any
) -> None:
    """Tokens, batches, predictions that are right and wrong, pools that change, and now and then a
    read that fails: never another bit, a slot that stays pinned or one that looks filled."""
    rng, model, tokens = random.Random(0), open_model(path, share), TOKENS[:40]
    whole = open_model(path, 1.0)
    expected = {prefill: whole.logits(tokens, prefill) for prefill in (1, 30)}
    num_slots, num_passes, num_failed = model.num_slots(), 0, 0

    def on_read(_: int) -> None:
        if rng.random() < failing:
            raise input_output_error()

    def predict(layer: int) -> Any:
        return np.array(rng.sample(range(SMALL.num_experts), rng.randint(1, 6)))

    model.drive.on_read = on_read
    while num_passes < 700 or num_failed <= 3:  # threads draw in any order
        if rng.random() < 0.5:
            model.experts.predict_by(predict)
        else:
            model.experts.predict_by_routers(True)
        model.experts.resize(0, rng.randint(4, num_slots))
        prefill = rng.choice([1, 30])
        num_passes += len(tokens) - prefill + 1
        try:
            np.testing.assert_array_equal(model.logits(tokens, prefill), expected[prefill])
        except StorageError:
            num_failed += 1
        model.experts.check_integrity()
        if rng.random() < 0.3:
            assert model.num_unpinned() == model.num_slots()
    counts = model.experts.prefetch_counts()
    assert 0 < counts.right < counts.started
