"""Placement: what of a model lies in the memory of which device. Decided before anything is
loaded, in bytes that add up to each device's budget."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from haversack.devices.budget import MemoryBudget
from haversack.devices.errors import BudgetError, PromptError
from haversack.devices.units import format_bytes, format_need
from haversack.edge.shared_budget import device_memory
from haversack.edge.trunk_plan import TrunkPlan
from haversack.edge.vram import DeviceBudget, rounds_otherwise
from haversack.offload.pool import PoolPlan, all_slots, plan_pools
from haversack.offload.tier import device_slot_bytes
from haversack.quant.gguf import ModelGeometry
from haversack.quant.lowbit import LowCopies

FREE, FIXED = "free", "fixed"  # whether experts may move between memories while a model is open
PLACEMENTS = (FREE, FIXED)
_STAGING_SLOTS = 2  # of each pool: one expert is copied while another is computed
_MOST_STAGING = 0.125  # of a device's room for experts


@dataclass(frozen=True)
class DevicePlan:
    """How `budget_bytes` of a device's memory are spent on one model; they add up.

    `slots` are the slots for experts there, a number for each of the plan's pools, and
    `slot_bytes` their memory; `share` of all experts have one. Experts of long prompts pass through
    `num_staging` slots more of each pool, of `staging_bytes`. `scratch_bytes` are for computing
    there. `rounds_otherwise` says that the device is known to compute with other bits than the CPU.
    `num_layers` are the model's layers there (the output counts as one), with `trunk_bytes` of
    weights, `kv_bytes` of keys and values, and `compute_bytes` of llama.cpp's scratch. `why`
    explains the choice.
    """

    name: str
    description: str
    rounds_otherwise: bool
    budget_bytes: int
    scratch_bytes: int
    slots: tuple[int, ...]
    slot_bytes: int
    share: float
    why: str
    num_layers: int = 0
    trunk_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    num_staging: int = 0
    staging_bytes: int = 0

    @property
    def num_slots(self) -> int:
        return sum(self.slots)

    @property
    def is_used(self) -> bool:
        """Whether the device computes anything of the model."""
        return self.num_slots > 0 or self.num_layers > 0

    @property
    def held(self) -> str:
        """What lies there, in a few signs."""
        layers = f"+{self.num_layers} layers" if self.num_layers else ""
        return f"{self.name}={self.num_slots}{layers}"

    @property
    def planned_bytes(self) -> int:
        return sum(self.parts().values()) + self.slot_bytes

    @property
    def headroom_bytes(self) -> int:
        return self.budget_bytes - self.planned_bytes

    def parts(self) -> dict[str, int]:
        """Return what the model will take there outside slots, by name."""
        return {
            "trunk": self.trunk_bytes,
            "kv": self.kv_bytes,
            "compute": self.compute_bytes,
            "scratch": self.scratch_bytes,
            "staging": self.staging_bytes,
        }

    def budget(self) -> MemoryBudget:
        """Return the plan as named reservations. Raises BudgetError if they exceed the budget."""
        memory = device_memory(self.name, self.budget_bytes)
        for name, num_bytes in self.parts().items():
            memory.reserve(name, num_bytes)
        memory.reserve("slots", self.slot_bytes)
        return memory

    def rows(self) -> list[tuple[str, int]]:
        """Return what people read of it, by name; the last is the budget."""
        parts = [(name, num_bytes) for name, num_bytes in self.parts().items() if num_bytes]
        parts.append(("experts", self.slot_bytes))
        return [*parts, ("free", self.headroom_bytes), ("budget", self.budget_bytes)]

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as values that JSON can hold."""
        sums = {"planned_bytes": self.planned_bytes, "headroom_bytes": self.headroom_bytes}
        return asdict(self) | {"slots": list(self.slots)} | sums


@dataclass(frozen=True)
class Placement:
    """What lies on devices, and `how`: "fixed" or "free"."""

    devices: tuple[DevicePlan, ...] = ()
    how: str = FREE

    @property
    def has_experts(self) -> bool:
        """Whether some expert lies on a device."""
        return any(device.num_slots for device in self.devices)

    def pools_in(
        self, geometry: ModelGeometry, room_bytes: int, low: LowCopies | None = None
    ) -> tuple[PoolPlan, ...]:
        """Return pools of slots in RAM in at most `room_bytes`, but never less than the floor. An
        expert that stays on a device needs none."""
        used = geometry.num_experts_per_tok
        pools = plan_pools(geometry.layers, used, room_bytes, low)
        if self.how != FIXED or not self.has_experts:
            return pools
        floors, whole = plan_pools(geometry.layers, used, 0, low), all_slots(geometry.layers, used)
        counts = [
            max(
                floors[number].num_slots,
                whole[number].num_slots - sum(device.slots[number] for device in self.devices),
            )
            for number in range(len(pools))
        ]
        return tuple(
            replace(pool, num_slots=min(pool.num_slots, count))
            for pool, count in zip(pools, counts, strict=True)
        )


IN_RAM = Placement()  # no device has anything


def checked_placement(placement: str) -> str:
    """Return it. Raises PromptError for one that does not exist."""
    if placement not in PLACEMENTS:
        raise PromptError(f"--placement is {placement!r}: give {', '.join(PLACEMENTS)}")
    return placement


def place_experts(
    pools: Sequence[PoolPlan],
    budgets: Sequence[DeviceBudget],
    scratch_bytes: int,
    trunk: TrunkPlan | None = None,
    how: str = FREE,
) -> tuple[DevicePlan, ...]:
    """Return how each device's budget is spent, in the order of `budgets`: the first holds the
    layers of `trunk`, and each holds the experts that those before it do not. `pools` have a slot
    for every expert of the model, and `scratch_bytes` is what computing takes on a device. Unless
    `how` is fixed, a device that does not hold all has staging, as far as that is a small part of
    it. Raises BudgetError for a budget that does not hold one expert of each pool."""
    left, plans = [pool.num_slots for pool in pools], list[DevicePlan]()
    for number, budget in enumerate(budgets):
        empty = _with_layers(_empty(budget, len(pools)), None if number else trunk)
        plans.append(_with_experts(empty, pools, left, scratch_bytes, how != FIXED))
        left = [count - placed for count, placed in zip(left, plans[-1].slots, strict=True)]
    return tuple(plans)


def least_bytes(pools: Sequence[PoolPlan], scratch_bytes: int) -> int:
    """Return the least that experts take on a device: scratch, and one of each pool."""
    return scratch_bytes + sum(device_slot_bytes(pool.shape) for pool in pools)


def _empty(budget: DeviceBudget, num_pools: int) -> DevicePlan:
    device, slots = budget.device, (0,) * num_pools
    names = (device.name, device.description, rounds_otherwise(device))
    return DevicePlan(*names, budget.limit_bytes, 0, slots, 0, 0.0, "nothing lies there")


def _with_layers(empty: DevicePlan, trunk: TrunkPlan | None) -> DevicePlan:
    if trunk is None:
        return empty
    return replace(
        empty,
        num_layers=trunk.num_layers,
        trunk_bytes=trunk.there.weight_bytes,
        kv_bytes=trunk.there.kv_bytes,
        compute_bytes=trunk.there.compute_bytes,
        why=f"{trunk.num_layers} of {trunk.of_layers} layers (the output is one) with their KV",
    )


def _with_experts(
    plan: DevicePlan,
    pools: Sequence[PoolPlan],
    left: Sequence[int],
    scratch_bytes: int,
    has_staging: bool,
) -> DevicePlan:
    """Return the plan with as many of the experts that are left as it has room for."""
    if not any(left):
        what = (
            "all experts lie on the devices before it" if pools else "there are no routed experts"
        )
        return replace(plan, why=f"{plan.why}; {what}")
    _refuse_too_small(plan, least_bytes(pools, scratch_bytes))
    room_bytes = plan.headroom_bytes - scratch_bytes
    slots, num_staging = slots_in(pools, left, room_bytes), 0
    staging_bytes = _STAGING_SLOTS * sum(device_slot_bytes(pool.shape) for pool in pools)
    if has_staging and slots != tuple(left) and staging_bytes <= _MOST_STAGING * room_bytes:
        num_staging = _STAGING_SLOTS
        slots = slots_in(pools, left, room_bytes - staging_bytes)
    slot_bytes = sum(
        count * device_slot_bytes(pool.shape) for count, pool in zip(slots, pools, strict=True)
    )
    share = sum(slots) / sum(pool.num_slots for pool in pools)
    reason = "all that are left" if list(slots) == list(left) else "as many as its budget holds"
    before = f"{plan.why}, then " if plan.num_layers else ""
    return replace(
        plan,
        scratch_bytes=scratch_bytes,
        slots=slots,
        slot_bytes=slot_bytes,
        share=share,
        num_staging=num_staging,
        staging_bytes=staging_bytes if num_staging else 0,
        why=f"{before}{sum(slots)} experts ({share:.0%}), {reason}",
    )


def _refuse_too_small(plan: DevicePlan, need_bytes: int) -> None:
    if plan.headroom_bytes < need_bytes:
        raise BudgetError(
            f"{plan.name} needs at least {format_need(need_bytes)} for scratch and one expert of"
            f" each shape, its budget is {format_bytes(plan.budget_bytes)}: raise --vram"
            f" {plan.name}=SIZE, or leave it out",
            need_bytes=need_bytes,
            have_bytes=plan.budget_bytes,
        )


def slots_in(pools: Sequence[PoolPlan], most: Sequence[int], room_bytes: int) -> tuple[int, ...]:
    """Return the slots of each pool, at most `most`, that `room_bytes` hold: the same share of the
    experts of every pool, then one more of each where there is room."""
    sizes = [device_slot_bytes(pool.shape) for pool in pools]
    wanted_bytes = sum(count * size for count, size in zip(most, sizes, strict=True))
    share = min(1.0, room_bytes / max(1, wanted_bytes))
    slots = [int(count * share) for count in most]
    left_bytes = room_bytes - sum(n * size for n, size in zip(slots, sizes, strict=True))
    for number, size in enumerate(sizes):
        if slots[number] < most[number] and size <= left_bytes:
            slots[number] += 1
            left_bytes -= size
    return tuple(slots)
