"""Forecasts: what the laws say of a plan, what runs teach, and when nothing is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from haversack import edge
from haversack.edge.decoding import Decoding
from haversack.edge.forecasting import (
    LIKELY,
    MEASURED,
    ROUGH,
    DeviceCosts,
    Facts,
    fixed_s,
    forecast_of,
    known_facts,
    prefill_tok_s,
    read_bytes_per_token,
    record_of,
    used_bytes,
    weights_bytes,
)
from haversack.edge.hits import found_of, miss_rate
from haversack.edge.model_plan import Plan
from haversack.edge.placement import DevicePlan, Placement
from haversack.edge.planner import streamed, with_ram
from haversack.edge.run_records import RunRecord, read_records, record_key
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
SHAPE = TinyShape(num_hidden_layers=4, num_experts=16, num_experts_per_tok=4)
FACTS = Facts(drive_bytes_s=1e9, weights_bytes_s=1e9)


@pytest.fixture(scope="module")
def planned(tiny_model: TinyModel) -> Plan:
    return streamed(edge.plan(tiny_model(shape=SHAPE), ram="2GiB", ctx=256, threads=1), 0.5)


def test_misses_fall_from_all_to_none() -> None:
    rates = [miss_rate(share, 16 * share) for share in (0, 0.1, 0.3, 0.6, 0.9, 1, 1.2)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1 and rates[-2:] == [0, 0]


def test_a_token_reads_its_misses(planned: Plan) -> None:
    read_bytes, hit_rate = read_bytes_per_token(planned)
    assert read_bytes == pytest.approx((1 - hit_rate) * used_bytes(planned))
    assert read_bytes_per_token(edge.plan(planned.path, ram="2GiB", ctx=256)) == (0, 1)


def test_more_memory_is_never_slower(planned: Plan) -> None:
    span = range(planned.floor_bytes, planned.full_bytes + 1, 100_000)
    found = [forecast_of(with_ram(planned, ram_bytes), FACTS) for ram_bytes in span]
    speeds = [each.tok_s for each in found if each is not None]
    assert len(speeds) == len(span) > 3 and speeds == sorted(speeds)


def test_reads_hide_behind_computing_in_part(planned: Plan) -> None:
    found = forecast_of(planned, FACTS)
    assert found is not None and found.confidence == LIKELY
    assert found.compute_s_per_token == weights_bytes(planned) / 1e9 + fixed_s(planned)
    read_s = found.bytes_read_per_token / 1e9
    assert 0.5 * read_s < found.wait_s_per_token < read_s
    assert found.low_tok_s < found.tok_s < found.high_tok_s
    assert found.tok_s == pytest.approx(1 / (found.compute_s_per_token + found.wait_s_per_token))


def test_layers_take_time_beside_their_weights(planned: Plan) -> None:
    """So a tiny model is not forecast to be as fast as its few weights are read, and what it
    measures does not slow down the forecasts of large ones."""
    instant = replace(FACTS, weights_bytes_s=1e15)
    found = forecast_of(with_ram(planned, planned.full_bytes), instant)
    assert found is not None and found.tok_s == pytest.approx(1 / fixed_s(planned), rel=1e-3)
    compute_s = fixed_s(planned) + weights_bytes(planned) / 1e10
    record = record_of(planned, Decoding(100, 100 * compute_s), FACTS)
    assert record is not None and record.weights_bytes_s == pytest.approx(1e10, rel=0.5)
    again = forecast_of(planned, replace(FACTS, record=record))
    assert again is not None and again.compute_s_per_token == pytest.approx(compute_s)


def test_without_facts_nothing_is_said(planned: Plan) -> None:
    assert forecast_of(planned, Facts()) is None
    assert forecast_of(planned, Facts(weights_bytes_s=1e9)) is None  # the drive is not known
    found = forecast_of(planned, Facts(drive_bytes_s=1e9, memory_bytes_s=1e10))
    assert found is not None and found.confidence == ROUGH


def test_a_run_is_forecast_again_as_it_was(planned: Plan) -> None:
    run = Decoding(100, 2.0, 0.5, 1500, 100, 50 * used_bytes(planned))
    record = record_of(planned, run, FACTS)
    assert record is not None
    found = forecast_of(planned, replace(FACTS, record=record))
    assert found is not None and found.confidence == MEASURED
    assert found.tok_s == pytest.approx(50)
    assert found.bytes_read_per_token == pytest.approx(used_bytes(planned) / 2)
    assert found.wait_s_per_token == pytest.approx(0.005)
    resident = with_ram(planned, planned.full_bytes)
    assert forecast_of(resident, replace(FACTS, record=record)).tok_s == pytest.approx(  # type: ignore[union-attr]
        1 / 0.015
    )


def test_short_runs_teach_nothing(planned: Plan) -> None:
    assert record_of(planned, Decoding(10, 1.0, 0.5, 10, 10, 10), FACTS) is None
    assert record_of(planned, Decoding(100, 1.0, 1.0, 10, 10, 10), FACTS) is None


def test_what_runs_measure_is_kept_and_used(planned: Plan, tmp_path: Path) -> None:
    options = edge.LoadOptions(cache_dir=tmp_path, speculate="off")
    with edge.load(planned, options=options) as model:
        generation = model.generate([1, 2, 3], 120, temperature=0)
        assert len(generation.text.split()) == 120 and model.stats().forecast_tok_s == 0
        stats = model.stats()
        assert 0 < stats.decode_wait_s < stats.decode_s
        assert stats.decode_hits + stats.decode_misses == stats.tokens * 4 * 4
    (record,) = read_records(tmp_path).values()
    assert record.was_streamed and record.threads == 1 and record.compute_s > 0
    facts = known_facts(planned, tmp_path, measure=False)
    assert facts.record == record and facts.weights_bytes_s == record.weights_bytes_s
    with edge.load(planned.path, ram="2GiB", ctx=256, threads=1, options=options) as model:
        assert model.plan.mode == "resident"
        assert model.stats().forecast_tok_s == pytest.approx(1 / record.compute_s)


def test_a_run_that_asks_for_no_traces_leaves_none(planned: Plan, tmp_path: Path) -> None:
    options = edge.LoadOptions(cache_dir=tmp_path, warm_start=False)
    with edge.load(planned, options=options) as model:
        assert model.generate([1, 2, 3], 60, temperature=0).text
    assert read_records(tmp_path) == {}


# ------------------------------------------------------------------------ devices
def with_device(planned: Plan, share: float, placement: str = "free") -> Plan:
    """Return the plan with slots for a share of the experts on a device."""
    slots = tuple(int(share * pool.num_experts * len(pool.layers)) for pool in planned.pools)
    device = DevicePlan("CUDA0", "a GPU", True, 2**30, 0, slots, 0, share, "")
    return replace(planned, placed=Placement((device,), placement))


def test_a_device_hides_behind_the_cpu_or_the_cpu_behind_it(planned: Plan) -> None:
    fast = replace(FACTS, devices={"CUDA0": DeviceCosts(1e12, 1e-9)})
    slow = replace(FACTS, devices={"CUDA0": DeviceCosts(1e12, 1.0)})
    alone_s = forecast_of(planned, FACTS).compute_s_per_token  # type: ignore[union-attr]
    times = [
        forecast_of(with_device(planned, 0.5), facts).compute_s_per_token  # type: ignore[union-attr]
        for facts in (fast, slow)
    ]
    trunk_s = planned.trunk_bytes / 1e9
    assert trunk_s < times[0] < 0.6 * (alone_s - trunk_s) + trunk_s
    assert 3 < times[1] < 4.1  # a call in nearly each of four layers


def test_what_lies_on_a_device_is_not_read(planned: Plan) -> None:
    shares = [0, 0.25, 0.5]
    found = [read_bytes_per_token(with_device(planned, share))[0] for share in shares]
    assert found == sorted(found, reverse=True) and found[-1] == 0  # the other half is in RAM


def test_a_fixed_placement_is_used_as_much_as_it_is_large(planned: Plan) -> None:
    free, fixed = (with_device(planned, 0.25, how) for how in ("free", "fixed"))
    (hot,), (even,) = (found_of(each, planned.pools[0]).on_devices for each in (free, fixed))
    assert even == 0.25 < hot
    told = forecast_of(fixed, FACTS)
    assert told is not None and told.on_devices == (0.25,)


def test_a_device_that_was_left_alone_is_told_as_in_the_last_run(planned: Plan) -> None:
    record = RunRecord(0.02, 1e9, 1, True, on_devices=True, device_shares={"CUDA0": 0.01})
    told = forecast_of(with_device(planned, 0.25), replace(FACTS, record=record))
    assert told is not None and told.on_devices == (0.01,)


def test_a_run_on_devices_does_not_teach_what_the_cpu_computes(planned: Plan) -> None:
    run = Decoding(100, 2.0, 0.5, 1500, 100, 50 * used_bytes(planned))
    record = record_of(with_device(planned, 0.25), run, FACTS)
    assert record is not None and record.on_devices
    assert record_key(with_device(planned, 0.25), Path()) != record_key(planned, Path())


# ------------------------------------------------------------------------ prompts
def test_prompts_are_forecast_after_a_run(planned: Plan) -> None:
    assert forecast_of(planned, FACTS).prefill_tok_s == 0  # type: ignore[union-attr]
    run, prompts = Decoding(100, 2.0, 0.5), Decoding(1000, 3.0, 1.0)
    record = record_of(planned, run, FACTS, prompts)
    assert record is not None and record.prompt_bytes_s == 500 * weights_bytes(planned)
    known = replace(FACTS, record=record)
    resident = with_ram(planned, planned.full_bytes)
    assert forecast_of(resident, known).prefill_tok_s == pytest.approx(500)  # type: ignore[union-attr]
    speeds = [prefill_tok_s(streamed(planned, share), known) for share in (0.25, 0.5, 1)]
    assert speeds == sorted(speeds) and speeds[0] < speeds[-1] == pytest.approx(500)


def test_short_prompts_say_nothing_of_longer_ones(planned: Plan) -> None:
    record = record_of(planned, Decoding(100, 2.0, 0.5), FACTS, Decoding(20, 1.0))
    assert record is not None and record.prompt_bytes_s == 0


def test_a_forecast_measures_what_is_not_known(tmp_path: Path) -> None:
    planned = edge.plan(edge.builtin_model(), ram="2GiB", threads=2)
    found = edge.forecast(planned, tmp_path)
    assert found is not None and found.confidence == ROUGH and found.bytes_read_per_token == 0
    assert found.hit_rate == 1 and "tok/s" in str(found)
