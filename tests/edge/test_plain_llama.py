"""Plain llama.cpp on another device computes the CPU's bits where that device does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.edge.plain_llama import PlainLlama, PlainPlacement, has_expert_cache
from haversack.edge.replay import Replay, Trace
from haversack.offload.simulated import Link, SimulatedDevice
from haversack.quant.gguf import read_geometry
from haversack.tools.models.architectures import TinyShape

MIB = 1024**2
SHAPE = TinyShape(num_experts=16, num_experts_per_tok=4)
TOKENS = list(range(20, 36))
Logits = npt.NDArray[np.float32]


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(256 * MIB, Link(1e12, latency_s=0)) as made:
        yield made


@pytest.fixture(scope="module")
def path(tiny_model: Any) -> Path:
    found: Path = tiny_model("qwen3moe", shape=SHAPE)
    return found


def logits(
    path: Path, placement: PlainPlacement | None = None, replay: Replay | None = None
) -> Logits:
    with PlainLlama(path, 64, 1, replay=replay, placement=placement) as plain:
        return plain.logits(TOKENS, 8)


@pytest.mark.parametrize("num_cpu_layers", [0, 1, 99])
def test_layers_with_experts_on_the_cpu(
    path: Path, device: SimulatedDevice, num_cpu_layers: int
) -> None:
    found = logits(path, PlainPlacement(device.address, num_cpu_layers))
    assert device.counts().num_graphs > 0
    np.testing.assert_array_equal(found, logits(path))


def test_a_model_on_a_device_leaves_nothing_there(path: Path, device: SimulatedDevice) -> None:
    used = []
    for num_cpu_layers in (99, 0):
        with PlainLlama(path, 64, 1, placement=PlainPlacement(device.address, num_cpu_layers)):
            used.append(device.counts().used_bytes)
        assert device.counts().used_bytes == 0
    assert used[1] - used[0] >= read_geometry(path).expert_bytes


def test_a_routing_is_forced_there_too(path: Path, device: SimulatedDevice) -> None:
    geometry = read_geometry(path)
    rng = np.random.default_rng(0)
    layers = [
        np.stack([rng.permutation(16)[:4] for _ in TOKENS]).astype(np.int64)
        for _ in range(len(geometry.layers))
    ]
    trace = Trace("made", 16, layers)
    expected = logits(path, replay=Replay(trace, geometry))
    found = logits(path, PlainPlacement(device.address, 1), Replay(trace, geometry))
    np.testing.assert_array_equal(found, expected)
    assert (expected != logits(path)).any()


def test_a_cache_of_experts(path: Path, device: SimulatedDevice) -> None:
    if not has_expert_cache():
        pytest.skip("this build of llama.cpp has no cache for experts")
    found = logits(path, PlainPlacement(device.address, 99, cache_bytes=32 * MIB))
    np.testing.assert_array_equal(found, logits(path))
