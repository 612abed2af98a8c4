"""Which expert lies in which slot: by example, and against a plain model of the table."""

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from haversack.cache.policies import Slots
from haversack.cache.slots import NOWHERE, READY, SlotTable
from haversack.tools.routing.policies import Lru

LAYERS = (1, 2, 5)  # a dense layer lies before and between them


def some(*numbers: int) -> npt.NDArray[np.int32]:
    return np.array(numbers, np.int32)


def filled(table: SlotTable, layer: int, *experts: int) -> Slots:
    """Use and read `experts`. Return their slots, which are ready and may be evicted."""
    table.use(layer, some(*experts))
    slots = table.claim(layer, some(*experts))
    table.fill(slots)
    table.unpin(slots)
    return slots


def where(table: SlotTable, layer: int, *experts: int) -> list[int]:
    table.check_integrity()
    return table.find(layer, some(*experts)).tolist()


def are_ready(table: SlotTable, slots: Slots) -> bool:
    return bool((table._state[slots] == READY).all())


# ------------------------------------------------------------------- examples
def test_an_expert_has_no_slot_until_it_claims_one() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=4)
    assert where(table, 5, 7, 0) == [NOWHERE, NOWHERE]
    slots = table.claim(5, some(7, 3))
    assert where(table, 5, 7, 0, 3) == [slots[0], NOWHERE, slots[1]]
    assert where(table, 1, 7, 3) == [NOWHERE, NOWHERE]  # the same number in another layer


def test_a_slot_is_ready_when_it_is_filled() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=4)
    slots = table.claim(1, some(0, 1))
    assert not are_ready(table, slots)
    table.fill(slots[:1])
    assert are_ready(table, slots[:1])
    assert not are_ready(table, slots)
    table.fill(slots[1:])
    assert are_ready(table, slots)
    table.check_integrity()


def test_claimed_slots_are_pinned_until_unpinned() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=4)
    slots = table.claim(1, some(0, 1, 2))
    assert table.num_unpinned == 1
    table.fill(slots)
    table.unpin(slots[:1])
    assert table.num_unpinned == 2
    table.claim(2, some(0, 1))
    assert where(table, 1, 0, 1, 2) == [NOWHERE, slots[1], slots[2]]


def test_the_policy_says_who_is_evicted() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3, policy=Lru(len(LAYERS), 8))
    first, second, third = (filled(table, 1, expert)[0] for expert in (0, 1, 2))
    table.use(1, some(0))
    assert filled(table, 2, 6).tolist() == [second]
    assert filled(table, 2, 7).tolist() == [third]
    assert where(table, 1, 0, 1, 2) == [first, NOWHERE, NOWHERE]
    assert where(table, 2, 6, 7) == [second, third]


def test_who_pins_twice_unpins_twice() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=2)
    slots = filled(table, 1, 0)
    table.pin(slots)
    table.pin(slots)
    table.unpin(slots)
    assert table.num_unpinned == 1
    table.unpin(slots)
    assert table.num_unpinned == 2


def test_a_dropped_expert_is_gone_and_its_slot_goes_first() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=2)
    old, new = filled(table, 1, 0), filled(table, 1, 1)
    table.drop(new)
    assert where(table, 1, 0, 1) == [old[0], NOWHERE]
    assert not are_ready(table, new)
    assert filled(table, 2, 4).tolist() == new.tolist()
    table.drop(new)
    table.drop(new)  # an empty slot may be dropped
    table.check_integrity()


def test_a_read_that_failed_drops_its_slot_and_then_unpins_it() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=2)
    slots = table.claim(1, some(0, 1))
    table.fill(slots[:1])
    table.drop(slots[1:])
    assert table.num_unpinned == 0  # pins stay
    table.unpin(slots)
    assert where(table, 1, 0, 1) == [slots[0], NOWHERE]
    assert table.num_unpinned == 2


def test_borrowed_slots_belong_to_no_expert_and_come_back_empty() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3)
    old, middle = filled(table, 1, 0), filled(table, 1, 1)
    borrowed = table.borrow(2)  # the one never used, and the oldest
    assert sorted(borrowed.tolist()) == sorted([2, old[0]])
    assert where(table, 1, 0, 1) == [NOWHERE, middle[0]]
    assert not are_ready(table, borrowed)
    assert table.num_unpinned == 1
    table.unpin(borrowed)
    assert table.num_unpinned == 3
    assert set(filled(table, 2, 3, 4).tolist()) == set(borrowed.tolist())


# --------------------------------------------------------------------- misuse
def test_more_slots_than_are_unpinned_cannot_be_had() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3)
    ready = filled(table, 1, 0)
    table.claim(1, some(1, 2))
    with pytest.raises(AssertionError, match="2 more slots wanted, 1 unpinned"):
        table.claim(2, some(0, 1))
    with pytest.raises(AssertionError, match="3 more slots wanted, 1 unpinned"):
        table.borrow(3)
    assert where(table, 1, 0) == ready.tolist()  # nothing was evicted on the way


def test_residents_are_told_the_last_to_go_first() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=6, policy=Lru(3, 8))
    filled(table, 5, 7)
    filled(table, 1, 2, 3)
    table.claim(2, some(0))  # not there yet
    table.use(5, some(7))
    assert table.residents() == [(5, 7), (1, 3), (1, 2)]


def test_who_outlasts_whom() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3, policy=Lru(3, 8))
    table.use(2, some(4, 5))
    assert table.outlasting(2, some(4, 5, 6)).tolist() == [4, 5, 6]  # there is room for all
    filled(table, 1, 0)
    assert table.outlasting(2, some(4, 5)).tolist() == [4, 5]
    assert table.outlasting(2, some(4, 5, 6)).tolist() == [4, 5]  # one must go: who was never used
    pinned = filled(table, 1, 1, 2)
    assert table.outlasting(2, some(4, 5)).tolist() == []  # all that lie there were used later
    table.use(2, some(5))
    assert table.outlasting(2, some(4, 5)).tolist() == [5]
    table.pin(pinned)
    table.use(1, some(0))
    assert table.outlasting(2, some(5)).tolist() == []  # those pinned will not make room


def test_only_a_loading_slot_can_be_filled() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3)
    ready = filled(table, 1, 0)
    for slots in (ready, table.borrow(1)):
        with pytest.raises(AssertionError, match="only a loading slot"):
            table.fill(slots)


def test_the_check_sees_a_pin_given_back_twice() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3)
    table.unpin(filled(table, 1, 0))
    with pytest.raises(AssertionError, match="more often than pinned"):
        table.check_integrity()


def test_the_check_sees_a_loading_slot_without_a_pin() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3)
    table.unpin(table.claim(1, some(0)))
    with pytest.raises(AssertionError, match="loading slot is not pinned"):
        table.check_integrity()


def test_the_check_sees_an_expert_that_claimed_twice() -> None:
    table = SlotTable(LAYERS, num_experts=8, num_slots=3)
    table.claim(1, some(0))
    table.claim(1, some(0))
    with pytest.raises(AssertionError, match="owner"):
        table.check_integrity()


# ----------------------------------------------------- against a plain model
@dataclass
class Slot:
    """The expected state of a slot."""

    owner: tuple[int, int] | None = None  # layer, expert
    ready: bool = False
    pins: int = 0


class PlainTable:
    """The slot table as lists and loops. It checks the real one after each operation."""

    def __init__(self, num_experts: int, num_slots: int) -> None:
        self.table = SlotTable(LAYERS, num_experts, num_slots, Lru(len(LAYERS), num_experts))
        self.num_experts = num_experts
        self.last_use: dict[tuple[int, int] | None, int] = {}
        self.slots = [Slot() for _ in range(num_slots)]
        self.clock = 0

    def home(self, layer: int, expert: int) -> int:
        owners = [slot.owner for slot in self.slots]
        return owners.index((layer, expert)) if (layer, expert) in owners else NOWHERE

    def unpinned(self) -> list[int]:
        return [number for number, slot in enumerate(self.slots) if slot.pins == 0]

    def next_to_go(self, count: int) -> list[int]:
        def rank(number: int) -> tuple[int, int, tuple[int, int]]:
            owner = self.slots[number].owner
            if owner is None:
                return -1, number, (0, 0)
            return self.last_use[owner], 0, owner

        return sorted(self.unpinned(), key=rank)[:count]

    def numbers(self, *, owned: bool, ready: bool | None = None, pinned: bool) -> list[int]:
        return [
            number
            for number, slot in enumerate(self.slots)
            if (slot.owner is not None) == owned
            and ready in (None, slot.ready)
            and (slot.pins > 0) == pinned
        ]

    def lease(self, layer: int, experts: list[int]) -> None:
        """Pin those that have a slot, claim slots for the others."""
        found = self.table.find(layer, some(*experts))
        assert found.tolist() == [self.home(layer, expert) for expert in experts]
        held = found[found != NOWHERE]
        self.table.pin(held)
        self.table.use(layer, some(*experts))
        self.clock += 1
        self.last_use |= {(layer, expert): self.clock for expert in experts}
        for number in map(int, held):
            self.slots[number].pins += 1
        missing = [expert for expert in experts if self.home(layer, expert) == NOWHERE]
        if len(missing) > len(self.unpinned()):
            with pytest.raises(AssertionError, match="unpinned"):
                self.table.claim(layer, some(*missing))
            return
        expected = self.next_to_go(len(missing))
        assert self.table.claim(layer, some(*missing)).tolist() == expected
        for number, expert in zip(expected, missing, strict=True):
            self.slots[number] = Slot((layer, expert), pins=1)

    def borrow(self, count: int) -> None:
        expected = self.next_to_go(count)
        assert self.table.borrow(count).tolist() == expected
        for number in expected:
            self.slots[number] = Slot(pins=1)

    def fill(self, number: int) -> None:
        self.table.fill(some(number))
        self.slots[number].ready = True

    def drop(self, number: int) -> None:
        self.table.drop(some(number))
        self.slots[number] = Slot(pins=self.slots[number].pins)

    def unpin(self, number: int) -> None:
        self.table.unpin(some(number))
        self.slots[number].pins -= 1

    def check(self) -> None:
        self.table.check_integrity()
        for layer in LAYERS:
            homes = [self.home(layer, expert) for expert in range(self.num_experts)]
            assert self.table.find(layer, np.arange(self.num_experts)).tolist() == homes
        for number, slot in enumerate(self.slots):
            assert are_ready(self.table, some(number)) == slot.ready
        assert self.table.num_unpinned == len(self.unpinned())


def one_operation(plain: PlainTable, rng: random.Random) -> None:
    loading = plain.numbers(owned=True, ready=False, pinned=True)
    ready = plain.numbers(owned=True, ready=True, pinned=True)
    idle = plain.numbers(owned=True, ready=True, pinned=False)
    borrowed = plain.numbers(owned=False, pinned=True)
    draw = rng.random()
    if draw < 0.35:
        experts = rng.sample(range(plain.num_experts), rng.randint(1, 3))
        plain.lease(rng.choice(LAYERS), experts)
    elif draw < 0.4:
        plain.borrow(rng.randint(0, len(plain.unpinned())))
    elif draw < 0.6 and loading:
        plain.fill(rng.choice(loading))
    elif draw < 0.65 and (owned := loading + ready + idle):
        plain.drop(rng.choice(owned))
    elif pinned := ready + borrowed:
        plain.unpin(rng.choice(pinned))


@pytest.mark.parametrize("num_slots", [3, 6, 12, 24])
def test_the_table_does_what_the_plain_one_does(num_slots: int) -> None:
    plain, rng = PlainTable(num_experts=6, num_slots=num_slots), random.Random(num_slots)
    for _ in range(2500):
        one_operation(plain, rng)
        plain.check()
    assert plain.clock > 500
