"""A warm start brings back what lay in slots, in nobody's way, and never changes a number.

`tests/edge/test_warm_model.py` has the same of whole models and of the file between two runs.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.devices.errors import StorageError
from haversack.offload.resident_file import Expert, Residents
from haversack.offload.simulated import Link, SimulatedDevice
from haversack.tools.models.architectures import TinyShape

NUM_EXPERTS, PER_TOKEN, SLOTS = 16, 2, 24
LAYERS = (0, 1, 2)
USED = {(layer, expert) for layer in LAYERS for expert in range(8)}  # as many as there are slots
TOKENS = [1 + 7 * i % 200 for i in range(30)]


@pytest.fixture
def path(tiny_model: Any) -> Path:
    shape = TinyShape(num_hidden_layers=len(LAYERS), num_experts=NUM_EXPERTS)
    made: Path = tiny_model("qwen3moe", expert_type="Q8_0", shape=shape)
    return made


def with_slots(open_model: Any, path: Path, num_slots: int = SLOTS) -> Any:
    model = open_model(path, 1.0)
    model.experts.resize(0, num_slots)
    return model


def use(model: Any, *pairs: tuple[int, int]) -> None:
    """One token for each pair of experts, which it uses in every layer."""
    chosen: dict[int, tuple[int, ...]] = {}
    model.force(chosen)
    for pair in pairs:
        chosen.update(dict.fromkeys(LAYERS, pair))
        model.engine.context.decode(TOKENS[:1])
        model.experts.check_integrity()


def held(model: Any) -> set[Expert]:
    """The experts in slots, once no read is under way."""
    assert model.num_unpinned() == model.num_slots()
    (host, *_) = model.experts._slots_of(0)
    return set(model.experts._residents_of(0, *host))


@pytest.fixture
def saved(path: Path, open_model: Any) -> Residents:
    """What a run leaves that used `USED`, the later experts of a layer more often."""
    model = with_slots(open_model, path)
    use(model, *[(e, e + 1) for repeat in range(4) for e in range(2 * repeat, 8, 2)])
    residents: Residents | None = model.experts.residents()
    assert residents is not None and set(residents.experts) == USED
    return residents


def test_an_engine_that_was_not_used_has_nothing_to_leave(
    path: Path, open_model: Any, saved: Residents
) -> None:
    model = with_slots(open_model, path)
    assert model.experts.residents() is None
    model.experts.start_warm(saved)
    assert model.experts.residents() is None


def test_what_lay_in_slots_comes_back_by_itself(
    path: Path, open_model: Any, saved: Residents
) -> None:
    model = with_slots(open_model, path)
    model.experts.start_warm(saved)
    model.wait_until_idle()
    before, expert_bytes = model.bytes_read, model.geometry.layers[0].expert_bytes
    assert before == (SLOTS - PER_TOKEN) * expert_bytes  # room is left for a token
    use(model, (6, 7))  # used most
    assert model.bytes_read == before
    assert (model.experts.hits, model.experts.misses) == (6, 0)


@pytest.mark.parametrize("num_slots", [8, SLOTS, 40])
def test_the_most_valuable_come_as_far_as_there_are_slots(
    num_slots: int, path: Path, open_model: Any, saved: Residents
) -> None:
    model = with_slots(open_model, path, num_slots)
    model.experts.start_warm(saved)
    model.wait_until_idle()
    assert held(model) == set(saved.experts[: num_slots - PER_TOKEN])


def test_the_rule_knows_from_the_start_what_is_worth_keeping(
    path: Path, open_model: Any, saved: Residents
) -> None:
    model = with_slots(open_model, path)
    model.experts.start_warm(saved)
    for name, values in model.experts._memory_of(0).items():
        np.testing.assert_array_equal(values, saved.memories[0][name])


@pytest.mark.parametrize("expert", [(3, 0), (0, NUM_EXPERTS), (0, -1)])
def test_another_models_experts_are_refused(
    expert: Expert, path: Path, open_model: Any, saved: Residents
) -> None:
    model = with_slots(open_model, path)
    with pytest.raises(ValueError, match="experts that this model does not have"):
        model.experts.start_warm(Residents([expert], saved.memories))
    with pytest.raises(ValueError, match="experts that this model does not have"):
        model.experts.start_warm(Residents(saved.experts, []))
    with pytest.raises(ValueError, match="another rule, or of other experts"):
        model.experts.start_warm(Residents(saved.experts, [{"uses": np.zeros(3)}]))
    assert held(model) == set()


@pytest.mark.parametrize("prefill", [1, 20])
def test_no_bit_is_another_while_it_warms(
    prefill: int, path: Path, open_model: Any, saved: Residents
) -> None:
    expected = with_slots(open_model, path).logits(TOKENS, prefill)
    model = with_slots(open_model, path)
    model.experts.start_warm(saved)
    np.testing.assert_array_equal(model.logits(TOKENS, prefill), expected)
    assert model.num_unpinned() == SLOTS


def test_reads_that_fail_are_left_out(path: Path, open_model: Any, saved: Residents) -> None:
    def fail(_: int) -> None:
        raise StorageError(5, "input/output error")

    model = with_slots(open_model, path)
    model.drive.on_read = fail
    model.experts.start_warm(saved)
    model.wait_until_idle()
    model.drive.on_read = lambda _: None
    use(model, (6, 7))
    assert held(model) == {(layer, expert) for layer in LAYERS for expert in (6, 7)}


def test_after_a_failed_call_it_goes_on(path: Path, open_model: Any, saved: Residents) -> None:
    model = with_slots(open_model, path)

    def fail(offset: int) -> None:
        if model.is_read_of(offset, 1, 14):
            raise StorageError(5, "input/output error")

    model.drive.on_read = fail
    model.experts.start_warm(saved)
    with pytest.raises(StorageError):
        use(model, (14, 15))
    model.drive.on_read = lambda _: None
    for _ in range(20):
        use(model, (14, 15))
        model.wait_until_idle()
    assert len(held(model) & USED) == SLOTS - 3 * PER_TOKEN


def test_what_had_not_come_is_left_for_the_next_start(
    path: Path, open_model: Any, saved: Residents
) -> None:
    model, go = with_slots(open_model, path), threading.Event()

    def hold_back(offset: int) -> None:
        wanted = any(model.is_read_of(offset, layer, e) for layer in LAYERS for e in (14, 15))
        assert wanted or go.wait(timeout=60)

    model.drive.on_read = hold_back
    model.experts.start_warm(saved)
    threading.Timer(0.2, go.set).start()
    use(model, (14, 15))
    left = model.experts.residents()
    assert left is not None
    used = {(layer, expert) for layer in LAYERS for expert in (14, 15)}
    assert used < set(left.experts)
    assert len(set(left.experts) & USED) >= SLOTS - PER_TOKEN - len(used)


# -------------------------------------------------------------------- devices
def test_what_lies_on_an_exclusive_device_alone_is_left_too(path: Path, open_model: Any) -> None:
    with SimulatedDevice(1 << 28, Link(1e12, latency_s=0)) as device:
        there = {"device": device, "share": 0.25, "exclusive": True}
        model = open_model(path, 0.5, tiers=[there])
        expected = model.logits(TOKENS, 1)
        while not model.on_device() - model.on_host():  # it moves up beside the passes
            np.testing.assert_array_equal(model.logits(TOKENS, 1), expected)
        assert model.num_unpinned() == model.num_slots()
        left = model.experts.residents()
        assert left is not None
        keys = [LAYERS.index(layer) * NUM_EXPERTS + expert for layer, expert in left.experts]
        assert len(set(keys)) == len(keys)
        assert set(keys) == model.on_host() | model.on_device()
        model.close()
        again = open_model(path, 0.5, tiers=[there])
        again.experts.start_warm(left)
        np.testing.assert_array_equal(again.logits(TOKENS, 1), expected)
        again.close()
