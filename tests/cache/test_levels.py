"""Copies of two precisions in one pool: by example, and any sequence of requests against its
promises."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from haversack.cache.levels import LevelledSlots, Move, PoolBytes
from haversack.cache.precision import HIGH, LOW, SKIP
from haversack.cache.slots import NOWHERE, READY
from haversack.tools.routing.policies import Lru

ROWS, EXPERTS = 2, 8


def some(*numbers: int) -> npt.NDArray[np.int32]:
    return np.array(numbers, np.int32)


def pool_of(total: int, high: int = 10, low: int = 4, least: tuple[int, int] = (1, 1)) -> PoolBytes:
    return PoolBytes(total, (high, low), least)


def made(pool: PoolBytes) -> LevelledSlots:
    return LevelledSlots(range(ROWS), EXPERTS, pool, Lru(ROWS, EXPERTS))


def load(slots: LevelledSlots, layer: int, level: int, *experts: int) -> list[int]:
    """Use `experts` at `level` and read them; return their slots."""
    slots.use(layer, some(*experts), np.full(len(experts), level))
    claimed = slots.claim(layer, some(*experts), level)
    slots.fill(level, claimed)
    slots.tables[level].unpin(claimed)
    return claimed.tolist()


def served(slots: LevelledSlots, layer: int, expert: int, wanted: int) -> tuple[int, int]:
    found, places = slots.find(layer, some(expert), some(wanted))
    return int(found[0]), int(places[0])


def sizes(slots: LevelledSlots) -> list[int]:
    return [table.num_slots for table in slots.tables]


# ------------------------------------------------------------------- examples
def test_a_high_copy_serves_every_wish_and_a_low_one_only_low_wishes() -> None:
    slots = made(pool_of(100))
    (high,) = load(slots, 0, HIGH, 3)
    (low,) = load(slots, 0, LOW, 5)
    for wanted in (HIGH, LOW, SKIP):
        assert served(slots, 0, 3, wanted) == (HIGH, high)
    assert served(slots, 0, 5, HIGH)[1] == NOWHERE
    assert served(slots, 0, 5, LOW) == served(slots, 0, 5, SKIP) == (LOW, low)
    assert served(slots, 1, 3, SKIP)[1] == NOWHERE


def test_a_low_copy_stays_until_the_high_one_has_come() -> None:
    slots = made(pool_of(100))
    (low,) = load(slots, 0, LOW, 5)
    (high,) = slots.claim(0, some(5), HIGH)
    assert slots.tables[LOW].find(0, some(5)).tolist() == [low]
    slots.fill(HIGH, some(high))
    assert slots.tables[LOW].find(0, some(5)).tolist() == [NOWHERE]
    assert served(slots, 0, 5, LOW) == (HIGH, high)


def test_at_first_all_slots_but_a_few_are_high() -> None:
    slots = made(pool_of(34, least=(1, 2)))
    assert sizes(slots) == [2, 3] and slots.free_bytes == 2
    load(slots, 0, LOW, 2, 3, 4)
    load(slots, 1, LOW, 4)  # evicts a LOW copy
    load(slots, 0, HIGH, 0)
    assert sizes(slots) == [2, 3]
    assert served(slots, 0, 2, LOW)[1] == NOWHERE
    assert served(slots, 0, 0, LOW)[1] != NOWHERE


def test_experts_are_read_high_until_every_slot_was_used() -> None:
    slots = made(pool_of(38))
    assert sizes(slots) == [3, 2]
    wanted = some(LOW, HIGH, SKIP, LOW, LOW)
    assert slots.read_levels(wanted).tolist() == [HIGH, HIGH, SKIP, HIGH, LOW]
    load(slots, 0, HIGH, 0)
    assert slots.read_levels(wanted).tolist() == [HIGH, HIGH, SKIP, LOW, LOW]
    load(slots, 0, HIGH, 1, 2)
    assert slots.read_levels(wanted).tolist() == wanted.tolist()
    slots.tables[HIGH].drop(some(0))
    assert slots.read_levels(wanted).tolist() == wanted.tolist()


def mostly_low() -> LevelledSlots:
    """Return slots with a HIGH copy of 0 and LOW copies of 1 to 6, in all bytes of the pool."""
    slots = made(pool_of(34, least=(1, 3)))
    load(slots, 0, HIGH, 7)
    load(slots, 0, HIGH, 0)
    load(slots, 0, LOW, 1, 2, 3)
    assert slots.balance() == []  # HIGH slots may still be unused
    slots.read_levels(some(LOW))
    assert slots.balance() == [Move(HIGH, 1, 0)]
    load(slots, 0, LOW, 4, 5, 6)
    assert sizes(slots) == [1, 6] and slots.free_bytes == 0
    return slots


def test_bytes_move_to_the_level_whose_copies_are_worth_more() -> None:
    slots = mostly_low()
    for _ in range(10):
        load(slots, 1, HIGH, 0)
        load(slots, 0, HIGH, 0)
    load(slots, 0, LOW, 7)  # takes the slot of 1, the oldest: slot 0
    assert slots.balance() == [Move(LOW, 4, 1), Move(LOW, 5, 2)]  # 2, 3 and 4 left
    assert sizes(slots) == [2, 3] and slots.free_bytes == 2
    for expert in (5, 6, 7):
        assert served(slots, 0, expert, LOW)[1] != NOWHERE
    assert slots.balance() == []


def test_a_pinned_last_slot_is_not_moved() -> None:
    slots = mostly_low()
    for _ in range(20):
        load(slots, 1, HIGH, 0)
        load(slots, 0, HIGH, 0)
    slots.tables[LOW].pin(some(5))
    assert slots.balance() == [] and sizes(slots) == [1, 6]


def test_a_level_keeps_its_least_slots() -> None:
    slots = made(pool_of(34, least=(1, 3)))
    load(slots, 0, HIGH, 7, 0)
    load(slots, 0, LOW, 1, 2, 3)
    slots.read_levels(some(LOW))
    for _ in range(20):
        load(slots, 1, HIGH, 0, 1)
    assert slots.balance() == [] and sizes(slots) == [2, 3]


def test_the_low_copy_that_gains_most_is_upgraded() -> None:
    slots = made(pool_of(18))
    assert slots.next_upgrade() is None and sizes(slots) == [1, 2]
    load(slots, 0, LOW, 1)
    load(slots, 0, LOW, 2)
    assert slots.next_upgrade() == (0, 2)  # the one used last; there is room
    load(slots, 0, HIGH, 3)
    assert slots.next_upgrade() is None  # the HIGH copy was used later
    for _ in range(10):
        slots.use(0, some(1), some(LOW))
    assert slots.next_upgrade() == (0, 1)


@pytest.mark.parametrize("wrong", [(13, 10, 4), (100, 4, 10), (100, 10, 0)])
def test_a_pool_that_cannot_be_is_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot hold"):
        pool_of(*wrong)


# ------------------------------------------------------------ any sequence
class Asked(RuleBasedStateMachine):
    """Any sequence of what the engine may ask, with one expert's name written into each slot."""

    @initialize(high=st.integers(2, 20), low=st.integers(1, 20), num_high=st.integers(2, 12))
    def begin(self, high: int, low: int, num_high: int) -> None:
        pool = PoolBytes((num_high + 1) * high, (high, min(low, high)), (1, 1))
        self.slots = LevelledSlots(range(ROWS), EXPERTS, pool)
        self.memory: dict[tuple[int, int], int] = {}  # (level, slot): the key whose bytes lie there
        self.coming: list[tuple[int, int, int]] = []  # level, slot, key

    @rule(data=st.data(), layer=st.integers(0, ROWS - 1))
    def use(self, data: st.DataObject, layer: int) -> None:
        wanted = data.draw(st.dictionaries(st.integers(0, EXPERTS - 1), st.integers(HIGH, SKIP)))
        if not wanted:
            return
        experts, levels = some(*wanted), some(*wanted.values())
        found, places = self.slots.find(layer, experts, levels)
        for expert, want, level, place in zip(experts, levels, found, places, strict=True):
            if place != NOWHERE:
                assert level == HIGH or want != HIGH
                self.expect(level, place, layer * EXPERTS + expert)
        self.slots.use(layer, experts, levels)
        for level in (HIGH, LOW):
            missing = experts[(places == NOWHERE) & (levels == level)]
            self.claim(layer, missing[: self.slots.tables[level].num_unpinned], level)
        self.slots.read_levels(levels)

    def claim(self, layer: int, experts: npt.NDArray[np.int32], level: int) -> None:
        absent = experts[self.slots.tables[level].find(layer, experts) == NOWHERE]
        claimed = self.slots.claim(layer, absent, level)
        for expert, slot in zip(absent.tolist(), claimed.tolist(), strict=True):
            self.coming.append((level, slot, layer * EXPERTS + expert))

    def expect(self, level: int, slot: int, key: int) -> None:
        if self.slots.tables[level]._state[slot] == READY:
            assert self.memory[level, slot] == key

    @rule(came=st.booleans(), first=st.booleans())
    def end_a_read(self, came: bool, first: bool) -> None:
        if not self.coming:
            return
        level, slot, key = self.coming.pop(0 if first else -1)
        if came:
            self.memory[level, slot] = key
            self.slots.fill(level, some(slot))
        else:
            self.slots.tables[level].drop(some(slot))
        self.slots.tables[level].unpin(some(slot))

    @rule()
    def balance(self) -> None:
        for level, source, target in self.slots.balance():
            self.memory[level, target] = self.memory[level, source]

    @rule()
    def upgrade(self) -> None:
        best = self.slots.next_upgrade()
        if best is not None and self.slots.tables[HIGH].num_unpinned:
            self.claim(best[0], some(best[1]), HIGH)

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "slots"):
            return
        assert self.slots.free_bytes >= 0
        for level, table in zip((HIGH, LOW), self.slots.tables, strict=True):
            table.check_integrity()
            assert table.num_slots >= 1
            for slot in np.flatnonzero(table._state == READY).tolist():
                assert self.memory[level, slot] == table.owners(some(slot))[0]


TestAnySequence = Asked.TestCase
TestAnySequence.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
