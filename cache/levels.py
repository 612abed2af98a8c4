"""Copies of two precisions in one pool of bytes: slots for HIGH copies and slots for LOW ones.

Each level has a `SlotTable` of its own, in memory of its own, where slots lie a fixed stride apart.
Together they take at most the bytes of the pool, and how these are shared is not fixed. At first
all slots but a few are HIGH, and while some were never used, experts are read HIGH. After that a
copy makes room for a copy of its own level, and `balance`, between passes, moves bytes to the level
whose next copy to leave is worth more. No bytes are wasted but a rest that is smaller than a slot.

A HIGH copy serves every wish, a LOW copy those for LOW and SKIP (`cache/precision.py`). When a HIGH
copy has come, the LOW copy of its expert leaves. The engine keeps the same books in C++
(offload/native/pool.cpp).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haversack.cache.policies import ExpectedUse, Policy, Slots
from haversack.cache.precision import HIGH, LOW, Levels
from haversack.cache.slots import NOWHERE, SlotTable


class Move(NamedTuple):
    """A copy whose bytes are moved from one slot of its level to another."""

    level: int
    source: int
    target: int


@dataclass(frozen=True)
class PoolBytes:
    """The bytes of a pool, of a slot of each level, and how many slots a level has at least."""

    total: int
    slot: tuple[int, int]  # by level
    least_slots: tuple[int, int]

    def __post_init__(self) -> None:
        least = self.slot[HIGH] * self.least_slots[HIGH] + self.slot[LOW] * self.least_slots[LOW]
        if not 0 < self.slot[LOW] <= self.slot[HIGH] or least > self.total:
            raise ValueError(f"{self.total} bytes cannot hold {self.least_slots} of {self.slot}")

    @property
    def first_slots(self) -> tuple[int, int]:
        """How many slots each level has at first."""
        high = (self.total - self.least_slots[LOW] * self.slot[LOW]) // self.slot[HIGH]
        return high, (self.total - high * self.slot[HIGH]) // self.slot[LOW]


class LevelledSlots:
    """Which experts of some layers have a HIGH or a LOW copy in the slots of one pool.

    `layers`, `num_experts`, `policy` and `num_spare` are those of `SlotTable`.
    """

    # With both values recorded routing reads 2 to 3 % more than with one order of eviction for all
    # copies in slots without gaps; with 4 conversions 1 % more still, with a margin of 0.5 5 %.
    MOST_CONVERSIONS = 8  # by one `balance`; each moves the bytes of about one HIGH copy
    MARGIN = 0.9  # a level gives up a slot if that is worth less than this part of the other's

    def __init__(
        self,
        layers: Sequence[int],
        num_experts: int,
        pool: PoolBytes,
        policy: Policy | None = None,
        num_spare: int = 0,
    ) -> None:
        self.pool, self._num_spare = pool, num_spare
        low_cost = pool.slot[LOW] / pool.slot[HIGH]
        self.policy = policy or ExpectedUse(len(layers), num_experts, low_cost)
        self.tables = tuple(
            SlotTable(layers, num_experts, num_slots, self.policy, num_spare, level)
            for level, num_slots in enumerate(pool.first_slots)
        )
        self.is_filling = True  # some HIGH slots were never used

    @property
    def free_bytes(self) -> int:
        """The bytes of the pool that are in no slot."""
        taken = sum(self.tables[level].num_slots * self.pool.slot[level] for level in (HIGH, LOW))
        return self.pool.total - taken

    def find(
        self, layer: int, experts: npt.NDArray[np.integer], wanted: Levels
    ) -> tuple[Levels, Slots]:
        """Return the level and the slot of the copy that serves each expert of `layer`, which is
        `wanted` at these levels; NOWHERE as the slot of those that no copy serves. A copy that is
        there serves before one that is coming."""
        high, low = (table.find(layer, experts) for table in self.tables)
        high_is_ready, low_is_ready = (
            table.is_ready(slots) for table, slots in zip(self.tables, (high, low), strict=True)
        )
        is_low = (wanted != HIGH) & ~high_is_ready & (low_is_ready | (high == NOWHERE))
        return is_low.astype(np.int32) * LOW, np.where(is_low, low, high)

    def use(self, layer: int, experts: npt.NDArray[np.integer], wanted: Levels) -> None:
        """Note that `experts` of `layer` are used now, with a copy or without."""
        self.tables[HIGH].use(layer, experts, wanted)

    def read_levels(self, wanted: Levels) -> Levels:
        """Return the levels at which missing experts, `wanted` at these levels, are read: HIGH in
        place of LOW for the first ones that there are HIGH slots for that were never used. Nothing
        leaves for them, and a HIGH copy serves later wishes that would make a LOW one useless."""
        high, lacking = self.tables[HIGH], int((wanted == HIGH).sum())
        num_free = high.num_empty - self._num_spare - lacking if self.is_filling else 0
        self.is_filling = num_free > 0
        found: Levels = wanted.copy()
        found[np.flatnonzero(wanted == LOW)[: max(0, num_free)]] = HIGH
        return found

    def claim(self, layer: int, experts: npt.NDArray[np.integer], level: int) -> Slots:
        """Give each of `experts` (distinct, without a copy of `level`) a slot of `level`, as
        `SlotTable.claim` does."""
        return self.tables[level].claim(layer, experts)

    def fill(self, level: int, slots: Slots) -> None:
        """Note that the bytes of the copies in these LOADING slots are all there. LOW copies of
        experts that have a HIGH one now lose their slot; pins stay."""
        self.tables[level].fill(slots)
        if level == HIGH:
            self.tables[LOW].drop_ready(self.tables[HIGH].owners(slots))

    # ---------------------------------------------------------------- balance
    def balance(self) -> list[Move]:
        """Give slots to the level that is short of them, between passes. The moves must be carried
        out in their order before any slot is used; a level's new slots are its last ones."""
        moves: list[Move] = []
        short = [table.num_empty <= self._num_spare for table in self.tables]
        for _ in range(self.MOST_CONVERSIONS):
            level = self._level_to_shrink(short)
            if level is None:
                break
            count = self._count(level)
            moves += [Move(level, *move) for move in self.tables[level].shrink(count)]
            other = self.tables[LOW - level]
            other.resize(other.num_slots + self.free_bytes // self.pool.slot[LOW - level])
        return moves

    def _count(self, level: int) -> int:
        """Return how many slots of `level` make room for at least one of the other."""
        lacking = self.pool.slot[LOW - level] - self.free_bytes
        return max(1, -(-lacking // self.pool.slot[level]))

    def _level_to_shrink(self, short: Sequence[bool]) -> int | None:
        """Return the level whose slots are worth less than those of the other, which is `short` of
        slots; None while HIGH slots are unused, or if its last slots are pinned."""
        if self.is_filling:
            return None
        for level in (LOW, HIGH):
            count, table = self._count(level), self.tables[level]
            if not short[LOW - level] or table.num_slots - count < self.pool.least_slots[level]:
                continue
            bound = self.MARGIN * self.tables[LOW - level].least_worth(1)
            if table.least_worth(count) < bound < float("inf") and table.can_shrink(count):
                return level
        return None

    # ---------------------------------------------------------------- upgrade
    def next_upgrade(self) -> tuple[int, int] | None:
        """Return the layer and id of the expert with a LOW copy that gains most from a HIGH one,
        for an idle drive to read; None if a HIGH copy that would leave is worth about as much."""
        low, high = self.tables[LOW], self.tables[HIGH]
        best = low.best_for(HIGH)
        if best is None:
            return None
        layer, expert, worth = best
        has_room = high.num_empty > self._num_spare
        return (layer, expert) if has_room or high.least_worth(1) < self.MARGIN * worth else None
