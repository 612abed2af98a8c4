"""The engine's pools of two precisions keep the same books as `cache/levels.py`, to the bit of a
score, whatever is asked of them and in whatever order."""

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from haversack.cache.levels import LevelledSlots, PoolBytes
from haversack.cache.precision import HIGH, LOW, SKIP
from haversack.cache.slots import LOADING, NOWHERE, READY
from haversack.devices._native import address_of
from haversack.offload import _native as native

Ints = npt.NDArray[np.int32]


class NativePool:
    """The engine's pool, by the names of the oracle."""

    def __init__(self, num_rows: int, num_experts: int, pool: PoolBytes, num_spare: int) -> None:
        bytes_of = native.PoolBytes(pool.total, pool.slot, pool.least_slots)
        self._address = native.pool_new(num_rows, num_experts, bytes_of, num_spare)
        self.levels = [native.pool_level(self._address, level) for level in (HIGH, LOW)]

    def find(self, row: int, expert: int, wanted: int) -> tuple[int, int]:
        slot = np.empty(1, np.int32)
        level = native.pool_find(self._address, row, expert, wanted, address_of(slot))
        return level, int(slot[0])

    def use(self, row: int, experts: Ints, wanted: Ints) -> None:
        native.pool_use(self._address, row, address_of(experts), address_of(wanted), len(experts))

    def read_levels(self, wanted: Ints) -> list[int]:
        found = wanted.copy()
        native.pool_read_levels(self._address, address_of(found), len(found))
        return found.tolist()

    def claim(self, row: int, experts: Ints, level: int) -> list[int]:
        claimed = np.empty(len(experts), np.int32)
        native.slots_claim(
            self.levels[level], row, address_of(experts), len(experts), address_of(claimed)
        )
        return claimed.tolist()

    def fill(self, level: int, slot: int) -> None:
        native.pool_fill(self._address, level, slot)

    def balance(self) -> list[list[int]]:
        moves = np.empty((1000, 3), np.int32)
        return moves[: native.pool_balance(self._address, address_of(moves))].tolist()

    def next_upgrade(self) -> int:
        return int(native.pool_next_upgrade(self._address))

    def close(self) -> None:
        native.pool_delete(self._address)


class Asked(RuleBasedStateMachine):
    """Any sequence of what the engine may ask. The same is asked of both."""

    @initialize(
        size=st.tuples(st.integers(1, 4), st.integers(2, 8)),
        high=st.integers(2, 20),
        low=st.integers(1, 20),
        num_high=st.integers(2, 14),
        num_spare=st.integers(0, 2),
    )
    def begin(
        self, size: tuple[int, int], high: int, low: int, num_high: int, num_spare: int
    ) -> None:
        pool = PoolBytes((num_high + 1) * high, (high, min(low, high)), (1, 1))
        self.num_rows, self.num_experts = size
        self.oracle = LevelledSlots(range(size[0]), size[1], pool, num_spare=num_spare)
        self.pool = NativePool(*size, pool, num_spare)

    def wishes(self, data: st.DataObject) -> tuple[int, Ints, Ints]:
        """A row, experts of it, and the levels at which they are wanted."""
        row = data.draw(st.integers(0, self.num_rows - 1))
        expert = st.integers(0, self.num_experts - 1)
        found = data.draw(st.dictionaries(expert, st.integers(HIGH, SKIP), min_size=1))
        return row, np.array(list(found), np.int32), np.array(list(found.values()), np.int32)

    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        row, experts, wanted = self.wishes(data)
        found = zip(
            *(each.tolist() for each in self.oracle.find(row, experts, wanted)), strict=True
        )
        for expert, want, (level, slot) in zip(experts, wanted, found, strict=True):
            assert self.pool.find(row, expert, want) == (level, slot)

    @rule(data=st.data(), came=st.booleans())
    def use(self, data: st.DataObject, came: bool) -> None:
        row, experts, wanted = self.wishes(data)
        self.oracle.use(row, experts, wanted)
        self.pool.use(row, experts, wanted)
        _, places = self.oracle.find(row, experts, wanted)
        missing, wanted = experts[places == NOWHERE], wanted[places == NOWHERE]
        levels = self.oracle.read_levels(wanted)
        assert self.pool.read_levels(wanted) == levels.tolist()
        for level in (HIGH, LOW):
            self.claim(row, missing[levels == level], level, came)

    def claim(self, row: int, experts: Ints, level: int, came: bool) -> None:
        table = self.oracle.tables[level]
        absent = experts[table.find(row, experts) == NOWHERE][: table.num_unpinned]
        claimed = self.oracle.claim(row, absent, level).tolist()
        assert self.pool.claim(row, absent, level) == claimed
        for slot in claimed if came else []:
            self.end_a_read(level, slot, True)

    def end_a_read(self, level: int, slot: int, came: bool) -> None:
        table, slots = self.oracle.tables[level], np.array([slot], np.int32)
        if came:
            self.oracle.fill(level, slots)
            self.pool.fill(level, slot)
        else:
            table.drop(slots)
            native.slots_drop(self.pool.levels[level], slot)
        table.unpin(slots)
        native.slots_unpin(self.pool.levels[level], slot)

    def slots_in(self, state: int) -> list[tuple[int, int]]:
        return [
            (level, slot)
            for level in (HIGH, LOW)
            for slot in np.flatnonzero(self.oracle.tables[level]._state == state).tolist()
        ]

    @precondition(lambda self: self.slots_in(LOADING))
    @rule(data=st.data(), came=st.booleans())
    def end_some_read(self, data: st.DataObject, came: bool) -> None:
        self.end_a_read(*data.draw(st.sampled_from(self.slots_in(LOADING))), came)

    @precondition(lambda self: self.slots_in(READY))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        level, slot = data.draw(st.sampled_from(self.slots_in(READY)))
        self.oracle.tables[level].pin(np.array([slot], np.int32))
        native.slots_pin(self.pool.levels[level], slot)

    @rule()
    def balance(self) -> None:
        assert self.pool.balance() == [list(move) for move in self.oracle.balance()]

    @rule(came=st.booleans())
    def upgrade(self, came: bool) -> None:
        best, found = self.oracle.next_upgrade(), self.pool.next_upgrade()
        assert found == (NOWHERE if best is None else best[0] * self.num_experts + best[1])
        if best is not None:
            self.claim(best[0], np.array([best[1]], np.int32), HIGH, came)

    @rule()
    def recover(self) -> None:
        for level in (HIGH, LOW):
            self.oracle.tables[level].recover()
            native.slots_recover(self.pool.levels[level])

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        for table, slots in zip(self.oracle.tables, self.pool.levels, strict=True):
            assert native.slots_fault(slots) is None
            for row in range(self.num_rows):
                found = [native.slots_find(slots, row, e) for e in range(self.num_experts)]
                assert found == table.find(row, np.arange(self.num_experts)).tolist()
            keys = np.empty(1000, np.int32)
            count = native.slots_residents(slots, address_of(keys), len(keys))
            residents = [row * self.num_experts + expert for row, expert in table.residents()]
            assert keys[:count].tolist() == residents

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()


TestAnySequence = Asked.TestCase
TestAnySequence.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
