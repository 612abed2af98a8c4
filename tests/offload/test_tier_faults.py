"""A device that fails, over the simulated one: its call has one error, and the model goes on on the
host with the same bits."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haversack.devices.errors import BudgetError, HaversackError
from haversack.edge.plain_llama import PlainLlama
from haversack.offload.simulated import Link, SimulatedDevice
from haversack.tools.models.architectures import TinyShape

CTX, THREADS, PREFILL = 256, 1, 20
SHAPE = TinyShape(num_hidden_layers=2, num_experts=16, num_experts_per_tok=4)
TOKENS = np.random.default_rng(2).integers(0, SHAPE.vocab_size, 26).tolist()


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    """Tests name it before `open_model`, so that it ends after the models on it."""
    with SimulatedDevice(1 << 28, Link(12e9)) as made:
        yield made


@pytest.fixture
def path(tiny_model: Any) -> Any:
    return tiny_model("qwen3moe", shape=SHAPE)


def expected_logits(path: Any, prefill: int) -> Any:
    with PlainLlama(path, CTX, THREADS) as plain:
        return plain.logits(TOKENS, prefill)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_gpus_copies_and_graphs_keep_the_bits(
    share: float, device: Any, path: Any, open_model: Any
) -> None:
    model = open_model(path, 0.25, tiers=[{"device": device, "share": share, "fixed": True}])
    for prefill in (1, PREFILL):
        np.testing.assert_array_equal(model.logits(TOKENS, prefill), expected_logits(path, prefill))
    assert model.experts.tier_counts()[0].hits > 0


@pytest.mark.parametrize("prefill", [1, PREFILL])
@pytest.mark.parametrize("what", ["graph", "synchronize"])
def test_a_device_that_fails_in_a_pass_ends_that_pass_alone(
    what: str, prefill: int, device: Any, path: Any, open_model: Any
) -> None:
    model = open_model(path, 0.25, tiers=[{"device": device, "share": 0.5, "fixed": True}])
    device.fail(what, 2)
    with pytest.raises(HaversackError, match="failed while it computed experts"):
        model.logits(TOKENS, prefill)
    (counts,) = model.experts.tier_counts()
    assert counts.is_lost
    model.experts.check_integrity()
    np.testing.assert_array_equal(model.logits(TOKENS, prefill), expected_logits(path, prefill))
    assert model.experts.tier_counts()[0].hits == counts.hits


def test_memory_that_a_device_refuses_ends_the_load(
    device: Any, path: Any, open_model: Any
) -> None:
    device.fail("allocation", 2)
    with pytest.raises(BudgetError, match="does not give"):
        open_model(path, tiers=[{"device": device, "share": 0.5, "fixed": True}])
    model = open_model(path, tiers=[{"device": device, "share": 0.5, "fixed": True}])
    np.testing.assert_array_equal(model.logits(TOKENS, 1), expected_logits(path, 1))


def test_the_second_of_two_devices_fails_while_it_is_filled(
    device: Any, path: Any, open_model: Any
) -> None:
    with SimulatedDevice(1 << 28, Link(12e9)) as second:
        second.fail("copy")
        both = [{"device": each, "share": 0.25, "fixed": True} for each in (device, second)]
        with pytest.raises(HaversackError, match=f"{second.name} failed"):
            open_model(path, 0.25, tiers=both)


def test_a_copy_up_that_fails_ends_one_pass(device: Any, path: Any, open_model: Any) -> None:
    model = open_model(path, 1.0, tiers=[{"device": device, "share": 0.5}])
    expected = model.logits(TOKENS, 1)
    device.fail("copy", 5)
    with pytest.raises(HaversackError, match="failed while it computed experts"):
        while True:  # its copies are under way beside the passes
            np.testing.assert_array_equal(model.logits(TOKENS, 1), expected)
    assert model.experts.tier_counts()[0].is_lost
    assert model.num_unpinned() == model.num_slots()
    np.testing.assert_array_equal(model.logits(TOKENS, 1), expected)


def test_a_device_that_failed_is_sent_nothing_more(
    device: Any, path: Path, open_model: Any
) -> None:
    model = open_model(path, 1.0, tiers=[{"device": device, "share": 0.5}])
    device.fail("copy")
    with pytest.raises(HaversackError, match="failed while it computed experts"):
        while True:
            model.logits(TOKENS, 1)
    model.logits(TOKENS, 1)
    assert device.counts().num_copies == 0


@pytest.mark.parametrize("nth", [1, 2, 7])
@pytest.mark.parametrize("what", ["copy", "graph", "synchronize"])
def test_a_device_that_fails_while_a_batch_passes_through_it(
    what: str, nth: int, device: Any, path: Any, open_model: Any
) -> None:
    model = open_model(path, 1.0, tiers=[{"device": device, "share": 0.125, "num_staging": 2}])
    model.stream_all()
    expected = expected_logits(path, PREFILL)
    for _ in range(3):
        np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), expected)
    assert model.experts.tier_counts()[0].streamed > 0
    model.num_unpinned()  # nothing moves up meanwhile
    device.fail(what, nth)
    with pytest.raises(HaversackError, match="failed while it computed experts"):
        model.logits(TOKENS, PREFILL)
    lost = model.experts.tier_counts()[0]
    assert lost.is_lost
    for _ in range(2):
        np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), expected)
    assert model.experts.tier_counts()[0].streamed == lost.streamed
    assert model.num_unpinned() == model.num_slots()


def test_a_read_that_fails_while_a_batch_passes_through_a_device(
    device: Any, path: Path, open_model: Any
) -> None:
    model = open_model(path, 0.5, tiers=[{"device": device, "share": 0.125, "num_staging": 2}])
    model.stream_all()
    expected = expected_logits(path, PREFILL)
    np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), expected)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "no answer")

    model.drive.on_read = fail
    with pytest.raises(OSError, match="no answer"):
        model.logits(TOKENS, PREFILL)
    model.drive.on_read = lambda _: None
    np.testing.assert_array_equal(model.logits(TOKENS, PREFILL), expected)
    (counts,) = model.experts.tier_counts()
    assert counts.streamed > 0 and not counts.is_lost
    assert model.num_unpinned() == model.num_slots()


def test_a_device_that_fails_beside_a_read_is_told_by_the_next_call(
    device: Any, path: Path, open_model: Any
) -> None:
    model = open_model(path, 0.0, tiers=[{"device": device, "share": 0.125, "exclusive": True}])
    expected = model.logits(TOKENS, 1)
    while not any(key < SHAPE.num_experts for key in model.on_device()):  # of the first layer
        np.testing.assert_array_equal(model.logits(TOKENS, 1), expected)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "no answer")

    model.drive.on_read = fail
    device.fail("synchronize")
    with pytest.raises(OSError, match="no answer"):
        model.logits(TOKENS, PREFILL)
    model.drive.on_read = lambda _: None
    lost = model.experts.tier_counts()[0]
    assert lost.is_lost
    model.experts.check_integrity()
    with pytest.raises(HaversackError, match="failed while it computed experts"):
        model.logits(TOKENS, 1)
    for _ in range(3):
        np.testing.assert_array_equal(model.logits(TOKENS, 1), expected)
    assert model.experts.tier_counts()[0] == lost
    assert not model.on_device()


@pytest.mark.parametrize("how", [{"fixed": True}, {"exclusive": True}, {}])
def test_one_slot_on_the_device_and_the_fewest_on_the_host(
    how: dict[str, bool], device: Any, path: Any, open_model: Any
) -> None:
    one = 1 / (SHAPE.num_hidden_layers * SHAPE.num_experts)
    model = open_model(path, 0.0, tiers=[{"device": device, "share": one, **how}])
    assert model.tiers[0].num_slots == (1,)
    for prefill in (1, PREFILL, 1):
        np.testing.assert_array_equal(model.logits(TOKENS, prefill), expected_logits(path, prefill))
    assert len(model.on_device()) <= 1
    assert model.num_unpinned() == model.num_slots()
