"""Python's part in an engine's device tiers: what it is told of them, and what lies there."""

from collections.abc import Iterator, Sequence

import numpy as np

from haversack.devices import _native as devices
from haversack.devices.errors import BudgetError, HaversackError
from haversack.devices.units import format_bytes
from haversack.offload import _native as native
from haversack.offload.pool import ExpertPool
from haversack.offload.tier import DeviceTier, TierCounts, tier_slot_bytes


class EngineTiers:
    """The tiers of one engine, the fastest first, with slots for experts of `pools`."""

    def __init__(self, tiers: Sequence[DeviceTier], pools: Sequence[ExpertPool]) -> None:
        self._tiers, self._pools = tiers, pools

    @property
    def has_fixed(self) -> bool:
        """Return whether some tier is filled at load."""
        return any(tier.fixed for tier in self._tiers)

    def add_to(self, address: int | None, work_bytes: int) -> None:
        """Give the engine at `address` its tiers, each with `work_bytes` besides slots. Raises
        BudgetError if a device has not the memory."""
        for tier in self._tiers:
            num_slots = np.array(tier.num_slots, np.int32)
            assert len(num_slots) == len(self._pools), "a tier has a number of slots for each pool"
            plan = native.TierPlan(
                tier.device,
                devices.address_of(num_slots),
                work_bytes,
                tier.num_staging,
                tier.exclusive,
                tier.fixed,
            )
            if not native.engine_add_tier(address, plan):
                raise self._refused(tier, work_bytes)

    def _refused(self, tier: DeviceTier, work_bytes: int) -> BudgetError:
        need_bytes = work_bytes + tier_slot_bytes(tier, [pool.plan for pool in self._pools])
        return BudgetError(
            f"{tier.name} does not give {format_bytes(need_bytes)} for experts: lower --vram",
            need_bytes=need_bytes,
            have_bytes=0,
        )

    def failure(self, tier: int) -> HaversackError:
        """Return the error of a pass in which the device of a tier failed."""
        return HaversackError(
            f"{self._tiers[tier].name} failed while it computed experts; from now on it is not"
            " used: try the call again, or load the model anew"
        )

    def counts(self, address: int | None) -> tuple[TierCounts, ...]:
        """Return what each tier did."""
        states = [native.engine_tier_state(address, n).contents for n in range(len(self._tiers))]
        return tuple(
            TierCounts(tier.name, s.hits, s.promoted, s.moved_bytes, s.streamed, bool(s.is_lost))
            for tier, s in zip(self._tiers, states, strict=True)
        )

    def slots_of(self, address: int | None, pool: int) -> Iterator[tuple[int, int]]:
        """Yield the address of each tier's slots for a pool, and their number; not of a tier that
        has none."""
        for place, tier in enumerate(self._tiers):
            if tier.num_slots[pool]:
                yield native.engine_tier_slots(address, place, pool), tier.num_slots[pool]
