"""The devices of a loaded model: its part of their memory, and what they do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

from haversack.devices import guard
from haversack.devices.backends import Device, find_device
from haversack.devices.errors import BudgetError, PromptError
from haversack.devices.ledger import Entry, Lease, device_leases
from haversack.devices.trunk_placement import LayersOn, TrunkPlacement
from haversack.devices.units import format_bytes
from haversack.edge.cache_dir import modules_folder
from haversack.edge.model_plan import Plan
from haversack.edge.placement import FIXED, DevicePlan
from haversack.edge.shared_budget import device_memory
from haversack.offload.tier import DeviceTier, TierCounts


@dataclass(frozen=True)
class DeviceUse:
    """What a model has of a device, and what the device did since the model was loaded.

    `taken_bytes` is how much less memory the device said to be free once the model was loaded; it
    is 0 of devices that do not tell. `hits` are uses of experts that lay there, `promoted` experts
    moved there with `moved_bytes`, and `streamed` were copied there to be computed for one batch of
    a prompt. A device that `is_lost` failed and is used no more.
    """

    name: str
    budget_bytes: int
    planned_bytes: int
    taken_bytes: int
    slots: int
    hits: int = 0
    promoted: int = 0
    moved_bytes: int = 0
    streamed: int = 0
    is_lost: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        return asdict(self)


class _Share:
    """One device's plan, its handle and the model's part of its memory."""

    def __init__(self, plan: DevicePlan, device: Device, lease: Lease) -> None:
        self.plan, self.device, self.lease = plan, device, lease
        self._free_bytes, self.taken_bytes = device.memory().free_bytes, 0

    def look(self) -> None:
        """Note what the device has less since it was opened."""
        self.taken_bytes = max(0, self._free_bytes - self.device.memory().free_bytes)

    def tier(self, *, exclusive: bool, fixed: bool) -> DeviceTier:
        return DeviceTier(
            self.device.address,
            self.plan.name,
            self.plan.slots,
            exclusive=exclusive,
            fixed=fixed,
            num_staging=self.plan.num_staging,
        )


_in_use = Counter[str]()  # devices of all models, by name
_in_use_lock = Lock()


def _note_use(names: Sequence[str], times: int) -> None:
    """Have what is told where llama.cpp gives up name these devices so many times more, or less."""
    with _in_use_lock:
        _in_use.update({name: times for name in names})
        used = ", ".join(name for name, count in _in_use.items() if count > 0)
        guard.advise(
            f"; a model uses {used}: if its server or driver failed, start that again"
            " (`haversack backend serve` starts a server), or load without --vram"
            if used
            else ""
        )


class ModelDevices:
    """The devices of a plan, whose memory is leased until `close`.

    Raises DeviceError for one that is gone, BudgetError if other models of the budget or other
    programs took its memory since it was planned; nothing is leased then.
    """

    def __init__(self, planned: Plan) -> None:
        self._planned = planned
        self._shares, self._names = list[_Share](), list[str]()
        try:
            for plan in planned.devices:
                self._shares.append(self._share(plan))
            self._names = [share.plan.name for share in self._shares]
            _note_use(self._names, 1)
        except BaseException:
            self.close()
            raise

    def _share(self, plan: DevicePlan) -> _Share:
        device = find_device(plan.name, modules_folder(None))
        memory, shared = device.memory(), self._planned.shared
        if memory.total_bytes and plan.planned_bytes > memory.free_bytes:
            raise BudgetError(
                f"{plan.name} has {format_bytes(memory.free_bytes)} free, the model needs"
                f" {format_bytes(plan.planned_bytes)} there: end what else uses the device, or"
                f" lower --vram {plan.name}=SIZE",
                need_bytes=plan.planned_bytes,
                have_bytes=memory.free_bytes,
            )
        own = shared and shared.devices[plan.name]
        budget = own or device_memory(plan.name, plan.budget_bytes)
        lease = device_leases.lease(budget, "model", plan.parts(), plan.slot_bytes)
        return _Share(plan, device, lease)

    def tiers(self) -> tuple[DeviceTier, ...]:
        """Return the tiers that the plan's slots make, the fastest first."""
        exclusive, fixed = self._planned.is_exclusive, self._planned.placement == FIXED
        used = [share for share in self._shares if share.plan.num_slots]
        return tuple(share.tier(exclusive=exclusive, fixed=fixed) for share in used)

    def trunk(self) -> TrunkPlacement | None:
        """Return which layers lie on devices; None if none does."""
        layers = [
            LayersOn(share.device, share.plan.num_layers)
            for share in self._shares
            if share.plan.num_layers
        ]
        # so that runs repeat, and equal those of the CPU where the device has its bits
        rows_alone = self._planned.placement == FIXED or not any(
            share.plan.rounds_otherwise for share in self._shares
        )
        return TrunkPlacement(tuple(layers), rows_alone=rows_alone) if layers else None

    def loaded(self) -> None:
        """Note what was taken, once the model is loaded."""
        for share in self._shares:
            share.lease.grow(sum(share.plan.parts().values()))
            share.look()

    def entries(self, name: str) -> tuple[list[Entry], int]:
        """Return the parts of a device's budget, and the budget. Raises PromptError for a device
        that the model does not have."""
        share = next((share for share in self._shares if share.plan.name == name), None)
        if share is None:
            names = ", ".join(["ram", *(each.plan.name for each in self._shares)])
            raise PromptError(f"the model has no budget of {name!r}: give one of {names}")
        return share.lease.entries(share.plan.slot_bytes), share.plan.budget_bytes

    def uses(self, counts: Sequence[TierCounts]) -> list[DeviceUse]:
        """Return what the model has of each device; `counts` are its tiers'."""
        by_name = {each.name: each for each in counts}
        return [_use(share, by_name.get(share.plan.name)) for share in self._shares]

    def close(self) -> None:
        """Give the memory back to the budgets, after it was freed; may be called twice."""
        names, self._names = self._names, []
        _note_use(names, -1)
        for share in self._shares:
            share.lease.close()


def _use(share: _Share, counts: TierCounts | None) -> DeviceUse:
    plan = share.plan
    sizes = (plan.name, plan.budget_bytes, plan.planned_bytes, share.taken_bytes, plan.num_slots)
    if counts is None:
        return DeviceUse(*sizes)
    done = (counts.hits, counts.promoted, counts.moved_bytes)
    return DeviceUse(*sizes, *done, counts.streamed, counts.is_lost)
