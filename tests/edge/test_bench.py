"""A measurement counts what it says, and the same each time."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from haversack import edge
from haversack.edge.bench import Work, device_bytes_s, measure, random_tokens, replay_of
from haversack.edge.planner import streamed
from haversack.tools.bench.steady_drive import SteadyDrive

TinyModel = Callable[..., Path]

NO_LIMIT_BYTES_S = 1e18
WORK = Work(random_tokens(512, 44, seed=0), prompt_tokens=30, warm_tokens=4)


@pytest.fixture(scope="module")
def model(tiny_model: TinyModel, trunk_dir: Path) -> Iterator[edge.Model]:
    """A tiny model with slots for half of its experts."""
    planned = streamed(edge.plan(tiny_model(), ram="1GiB", ctx=64), 0.5)
    with edge.load(planned, options=edge.LoadOptions(cache_dir=trunk_dir)) as loaded:
        yield loaded


def written_trace(path: Path, *steps: list[int]) -> Path:
    """A recorded routing whose three layers all choose the experts of `steps`."""
    events = [[number, layer, *ids] for number, ids in enumerate(steps) for layer in range(3)]
    np.savez(path, events=np.array(events), n_expert=8)
    return path


def test_random_tokens_repeat_and_lie_in_the_vocabulary() -> None:
    tokens = random_tokens(10, 500, seed=4)
    assert tokens == random_tokens(10, 500, seed=4) != random_tokens(10, 500, seed=5)
    assert set(tokens) == set(range(10))


def test_a_measurement_counts_timed_tokens_alone(model: edge.Model) -> None:
    first, again = (measure(model, WORK, NO_LIMIT_BYTES_S) for _ in range(2))
    for result in (first, again):
        counts = (result.prompt_tokens, result.warm_tokens, result.decode_tokens)
        assert (result.mode, result.trace_steps, *counts) == ("streamed", 0, 30, 4, 10)
        assert result.hits + result.misses == 10 * 3 * 2  # tokens, layers, experts of each
        assert result.bytes_read_per_token > 0
        assert result.decode_s_per_token * 10 == pytest.approx(result.decode_s)
    assert first.logits_sha256 == again.logits_sha256
    assert first.to_dict().keys() == again.to_dict().keys()


def test_a_tokens_seconds_add_up(model: edge.Model) -> None:
    result = measure(model, WORK, NO_LIMIT_BYTES_S)
    parts = (result.compute_s_per_token, result.own_s_per_token, result.wait_s_per_token)
    assert sum(parts) == pytest.approx(result.decode_s_per_token)
    assert min(parts[:2]) > 0


def test_waiting_for_the_drive_is_not_our_own_time(tiny_model: TinyModel, trunk_dir: Path) -> None:
    slow = SteadyDrive(1e9, latency_s=0.03)
    options = edge.LoadOptions(cache_dir=trunk_dir, open_file=slow.open)
    planned = streamed(edge.plan(tiny_model(), ram="1GiB", ctx=64), 0.0)
    with edge.load(planned, options=options) as model:
        result = measure(model, Work([1, 2, 3, 4, 5], 1, 0), slow.bytes_s)
    assert result.wait_s_per_token > slow.latency_s
    assert result.own_s_per_token < result.wait_s_per_token


def test_the_bound_is_the_larger_of_computing_and_reading(model: edge.Model) -> None:
    computed = measure(model, WORK, NO_LIMIT_BYTES_S)
    assert computed.bound_s_per_token == computed.compute_s_per_token
    assert 0 < computed.prefill_bound_s < computed.prefill_s
    read = measure(model, WORK, drive_bytes_s=1.0)
    assert read.bound_s_per_token == read.bytes_read_per_token
    assert read.prefill_bound_s == read.prefill_bytes_read
    ratio = read.decode_s_per_token / read.bound_s_per_token
    assert read.ratio_to_bound == pytest.approx(ratio)


def test_a_recorded_routing_is_forced(model: edge.Model, tmp_path: Path) -> None:
    same = replace(WORK, trace=written_trace(tmp_path / "same.npz", [5, 2]))
    result = measure(model, same, NO_LIMIT_BYTES_S)
    assert (result.trace_steps, result.hits, result.misses) == (1, 60, 0)
    assert result.bytes_read_per_token == 0
    everyone = written_trace(tmp_path / "everyone.npz", [0, 1], [2, 3], [4, 5], [6, 7])
    assert measure(model, replace(WORK, trace=everyone), NO_LIMIT_BYTES_S).misses > 0
    free = measure(model, WORK, NO_LIMIT_BYTES_S)
    assert free.trace_steps == 0 and free.logits_sha256 != result.logits_sha256


def test_a_routing_that_cannot_be_forced_is_refused(model: edge.Model, tmp_path: Path) -> None:
    with pytest.raises(edge.PromptError, match="the trace three has 3 layers of 8 experts, 3 per"):
        replay_of(written_trace(tmp_path / "three.npz", [1, 2, 3]), model.plan)
    resident = edge.plan(model.plan.path, ram="1TiB", ctx=64)
    with pytest.raises(edge.PromptError, match=r"all experts are in memory.*lower --ram"):
        replay_of(written_trace(tmp_path / "fits.npz", [1, 2]), resident)
    assert replay_of(None, resident) is None


def test_the_drive_is_measured_anew(tmp_path: Path) -> None:
    planned = edge.plan(edge.builtin_model(), ram="1GiB", ctx=64)
    assert device_bytes_s(planned, tmp_path) > 0
    (kept,) = tmp_path.glob("disk-*.json")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "bytes_s": 1e12}))
    assert device_bytes_s(planned, tmp_path) < 1e12
