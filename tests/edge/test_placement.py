"""Experts are placed on devices in bytes that add up, and what does not fit is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack import edge
from haversack.devices.backends import Device
from haversack.edge.placement import (
    DevicePlan,
    checked_placement,
    place_experts,
    slots_in,
)
from haversack.edge.placement_view import reasons
from haversack.edge.vram import DeviceBudget
from haversack.offload.pool import PoolPlan
from haversack.offload.tier import tier_host_bytes
from haversack.tools.models.architectures import TinyShape

TinyModel = Callable[..., Path]
MIB = 2**20
POOLS = (PoolPlan((1000, 1000, 2000), (0, 1, 2), 8, 24), PoolPlan((3000, 3000), (3,), 4, 4))
ALL_BYTES = 24 * 4000 + 4 * 6000


def device(name: str, limit_bytes: int) -> DeviceBudget:
    return DeviceBudget(Device(name, "a device", "GPU", 0), limit_bytes)


def assert_adds_up(plan: DevicePlan) -> None:
    assert plan.planned_bytes + plan.headroom_bytes == plan.budget_bytes
    assert plan.planned_bytes <= plan.budget_bytes
    plan.budget().check_integrity()


@given(st.integers(10_000, 2 * ALL_BYTES))
def test_a_budget_is_never_exceeded_and_hardly_wasted(limit_bytes: int) -> None:
    (plan,) = place_experts(POOLS, [device("CUDA0", limit_bytes)], 0)
    assert_adds_up(plan)
    assert plan.slot_bytes == sum(
        n * sum(pool.shape) for n, pool in zip(plan.slots, POOLS, strict=True)
    )
    is_all = plan.slots == (24, 4)
    assert is_all == (limit_bytes >= ALL_BYTES)
    assert is_all or plan.headroom_bytes < 4000 + 6000


def test_pools_get_the_same_share() -> None:
    assert slots_in(POOLS, [24, 4], ALL_BYTES // 2) == (12, 2)
    assert slots_in(POOLS, [24, 4], ALL_BYTES // 2 + 3999) == (12, 2)
    assert slots_in(POOLS, [24, 4], ALL_BYTES // 2 + 4000) == (13, 2)


def test_a_second_device_holds_what_the_first_does_not() -> None:
    budgets = [device("CUDA0", ALL_BYTES // 2), device("CUDA1", ALL_BYTES), device("CUDA2", 1)]
    first, second, third = place_experts(POOLS, budgets, 0)
    assert (first.slots, second.slots, third.slots) == ((12, 2), (12, 2), (0, 0))
    assert "all that are left" in second.why and "before it" in third.why
    for plan in (first, second, third):
        assert_adds_up(plan)


def test_scratch_is_part_of_the_budget() -> None:
    (plan,) = place_experts(POOLS, [device("CUDA0", ALL_BYTES)], 6000)
    assert plan.rows()[0] == ("scratch", 6000) and plan.num_slots < 28
    assert_adds_up(plan)


def test_experts_of_prompts_have_staging_where_it_is_a_small_part() -> None:
    pools = (PoolPlan((1000, 1000, 2000), (0, 1, 2), 8, 256), PoolPlan((3000, 3000), (3,), 4, 64))
    staging_bytes = 2 * (4000 + 6000)
    for limit_bytes in (20_000, 8 * staging_bytes - 1, 8 * staging_bytes, 1_000_000, 10_000_000):
        (plan,) = place_experts(pools, [device("CUDA0", limit_bytes)], 0)
        assert_adds_up(plan)
        has_staging = 8 * staging_bytes <= limit_bytes and plan.slots != (256, 64)
        assert (plan.num_staging, plan.staging_bytes) == (
            (2, staging_bytes) if has_staging else (0, 0)
        )
        (fixed,) = place_experts(pools, [device("CUDA0", limit_bytes)], 0, None, "fixed")
        assert fixed.num_staging == fixed.staging_bytes == 0


def test_a_budget_below_one_expert_is_refused_with_numbers() -> None:
    with pytest.raises(edge.BudgetError, match=r"CUDA0 needs at least .* raise --vram") as caught:
        place_experts(POOLS, [device("CUDA0", 9_999)], 0)
    assert (caught.value.need_bytes, caught.value.have_bytes) == (10_000, 9_999)


def test_a_model_without_experts_leaves_a_device_empty() -> None:
    (plan,) = place_experts((), [device("CUDA0", 10)], 0)
    assert plan.planned_bytes == 0 and "no routed experts" in plan.why


def test_a_placement_has_a_name() -> None:
    assert checked_placement("fixed") == "fixed"
    with pytest.raises(edge.PromptError, match="'pinned': give free, fixed"):
        checked_placement("pinned")


# --------------------------------------------------------------------- whole plans
@pytest.fixture(scope="module")
def model(tiny_model: TinyModel) -> Path:
    return tiny_model("qwen3moe", shape=TinyShape(num_hidden_layers=4, num_experts=16))


def test_a_plan_with_a_device_says_where_each_expert_can_lie(
    model: Path, rpc_device: Device
) -> None:
    vram = {rpc_device.name: "8MiB"}
    roomy = edge.plan(model, ram="4GiB", ctx=256, batch=16, vram=vram)
    alone = edge.plan(model, ram="4GiB", ctx=256, batch=16)
    host_bytes = tier_host_bytes(roomy.geometry.layers, 16, roomy.geometry.num_experts_per_tok)
    more_bytes = roomy.costs.streamed_scratch_bytes - alone.costs.streamed_scratch_bytes
    assert more_bytes == host_bytes > 0
    floor_bytes = roomy.floor_bytes + 2 * MIB  # the process may grow between two plans
    planned = edge.plan(model, ram=floor_bytes, ctx=256, batch=16, vram=vram)
    (placed,) = planned.devices
    assert_adds_up(placed)
    assert planned.mode == "streamed" and 0 < placed.num_slots
    told = "\n".join(reasons(planned))
    assert f"{rpc_device.name}: {placed.num_slots} experts" in told and "RAM: " in told
    assert "llama.cpp's bits" in told
    shown = json.loads(json.dumps(planned.to_dict()))["devices"][0]
    assert shown["planned_bytes"] + shown["headroom_bytes"] == shown["budget_bytes"]


def test_all_experts_in_ram_still_use_the_device(model: Path, rpc_device: Device) -> None:
    vram = f"{rpc_device.name}=64MiB"
    free = edge.plan(model, ram="1GiB", ctx=256, vram=vram, placement="free")
    assert free.mode == "streamed" and free.devices[0].slots == (64,)
    assert free.pools[0].num_slots == 64 and not free.is_exclusive
    assert "slots for all experts" in "\n".join(reasons(free))


def test_what_stays_on_a_device_has_no_slot_in_ram(model: Path, rpc_device: Device) -> None:
    whole = edge.plan(model, ram="1GiB", ctx=256, vram=f"{rpc_device.name}=64MiB").devices[0]
    vram = {rpc_device.name: whole.scratch_bytes + whole.slot_bytes // 2}
    planned = edge.plan(model, ram="1GiB", ctx=256, vram=vram, placement="fixed")
    assert planned.devices[0].num_slots + planned.pools[0].num_slots == 64
    assert planned.is_exclusive and not any("drive" in line for line in reasons(planned))


def test_what_is_said_of_devices_needs_one(model: Path) -> None:
    for ram in ("1GiB", edge.Budget("1GiB")):
        with pytest.raises(edge.PromptError, match="--placement is fixed, but no device is given"):
            edge.plan(model, ram, 256, placement="fixed")
        with pytest.raises(edge.PromptError, match=r"--trunk is device, but .*: give --vram, or"):
            edge.plan(model, ram, 256, trunk="device")
    assert not edge.plan(model, "1GiB", 256, placement="free", trunk="host").devices


def test_without_a_device_nothing_is_said_of_one(model: Path) -> None:
    planned = edge.plan(model, ram="1GiB", ctx=256)
    assert planned.mode == "resident" and planned.devices == () and reasons(planned) == []
