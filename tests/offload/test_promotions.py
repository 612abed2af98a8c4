"""The engine moves experts up to a device as the rule here does, whatever is asked of both.

A device computes with the experts that lie there while the host computes with its own. An expert
that has moved stays for many passes, so what counts is how often it is used, not how soon.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from haversack.cache.policies import ExpectedUse, Keys
from haversack.cache.precision import HIGH
from haversack.cache.slots import NOWHERE, SlotTable
from haversack.devices._native import address_of
from haversack.offload import _native as native

# Of the coming expert's uses: one that is used less than that leaves, see promotions.cpp.
MOST_SHARE = 0.7


# ------------------------------------------------------------------- the rule
@dataclass(frozen=True)
class Promotion:
    """An expert's copy moves up: its slot on the host is pinned, the one on the device LOADING. If
    another one is `leaving` the device for the host, that goes first, and until then stays READY on
    the device: its slot there is pinned, and `left_slot` of the host's is borrowed for it."""

    key: int
    host_slot: int
    device_slot: int
    leaving: int = NOWHERE
    left_slot: int = NOWHERE


class Promotions:
    """Moves experts from the slots of `host` to those of `device`, which share `rule`.

    `above` are the tables of all devices with slots for these experts, `device` among them. With
    `exclusive` an expert that has moved leaves its slot on the host, and one that leaves the device
    moves to the host.
    """

    def __init__(
        self,
        host: SlotTable,
        device: SlotTable,
        rule: ExpectedUse,
        above: Sequence[SlotTable],
        *,
        exclusive: bool,
    ) -> None:
        self._host, self._device, self._rule = host, device, rule
        self._above, self._exclusive = above, exclusive

    def next(self) -> Promotion | None:
        """Return the next expert to move, between passes: the one that is used most of those on no
        device, if a slot is empty or an expert on the device is used less by a margin, which then
        leaves. None if no expert is worth it."""
        coming = self._most_used()
        if not len(coming) or self._device.num_slots == 0:
            return None
        leaving = None
        if self._device.num_empty == 0:
            leaving = self._least_used()
            if not len(leaving):
                return None
            if self._rule.rates(leaving)[0] >= MOST_SHARE * self._rule.rates(coming)[0]:
                return None
        key, host_slot = int(coming[0]), self._host.slots_of(coming)
        self._host.pin(host_slot)
        if leaving is not None:
            device_slot = self._device.slots_of(leaving)
            if self._exclusive and self._is_worth_a_slot(int(leaving[0])):
                self._device.pin(device_slot)
                there, left = int(device_slot[0]), int(self._host.borrow(1)[0])
                return Promotion(key, int(host_slot[0]), there, int(leaving[0]), left)
            self._device.drop(device_slot)
        return Promotion(key, int(host_slot[0]), self._claim(key))

    def _claim(self, key: int) -> int:
        layer, expert = self._device.place(key)
        return int(self._device.claim(layer, np.array([expert], np.int32))[0])

    def _is_worth_a_slot(self, key: int) -> bool:
        layer, expert = self._host.place(key)
        if self._host.holds(layer, expert):
            return False
        return len(self._host.outlasting(layer, np.array([expert], np.int32))) > 0

    def take_down(self, promotion: Promotion) -> Promotion:
        """Note that the bytes of the expert that is leaving are all on the host: its slot is the
        coming one's. Return what is left of the promotion."""
        left_slot = np.array([promotion.left_slot], np.int32)
        leaving = np.array([promotion.leaving], np.int32)
        if self._host.slots_of(leaving)[0] == NOWHERE:
            self._host.adopt(left_slot, leaving)
            self._host.fill(left_slot)
        self._host.unpin(left_slot)
        device_slot = np.array([promotion.device_slot], np.int32)
        self._device.unpin(device_slot)
        self._device.drop(device_slot)
        return Promotion(promotion.key, promotion.host_slot, self._claim(promotion.key))

    def _most_used(self) -> Keys:
        """Return the expert that is used most of those with a copy on the host alone; of equal ones
        that with the lowest key. Empty if there is none."""
        slots = np.arange(self._host.num_slots, dtype=np.int32)
        slots = slots[self._host.is_ready(slots) & ~self._host.is_pinned(slots)]
        keys = np.sort(self._host.owners(slots))
        for table in self._above:
            keys = keys[table.slots_of(keys) == NOWHERE]
        most: Keys = keys[[self._rule.rates(keys).argmax()]] if len(keys) else keys
        return most

    def _least_used(self) -> Keys:
        """The same of the expert on the device that is used least."""
        slots = np.arange(self._device.num_slots, dtype=np.int32)
        keys = np.sort(self._device.owners(slots[~self._device.is_pinned(slots)]))
        keys = keys[keys != NOWHERE]
        least: Keys = keys[[self._rule.rates(keys).argmin()]] if len(keys) else keys
        return least

    def finish(self, promotion: Promotion, *, came: bool) -> None:
        """Note that the bytes of `promotion` are all there, or that the copies were given up."""
        device_slot = np.array([promotion.device_slot], np.int32)
        host_slot = np.array([promotion.host_slot], np.int32)
        if promotion.leaving != NOWHERE:
            self._host.unpin(np.array([promotion.left_slot], np.int32))
        else:
            (self._device.fill if came else self._device.drop)(device_slot)
        self._device.unpin(device_slot)
        self._host.unpin(host_slot)
        if came and self._exclusive and not self._host.is_pinned(host_slot)[0]:
            self._host.drop(host_slot)


# ----------------------------------------------------------------- both sides
def promotion_of(found: native.Promotion) -> Promotion:
    return Promotion(found.key, found.host_slot, found.device_slot, found.leaving, found.left_slot)


class Twins:
    """Both sides: a host's slots, those of a device, and what moves between them."""

    def __init__(self, num_rows: int, num_experts: int, slots: tuple[int, int], exclusive: bool):
        self.num_rows, self.num_experts = num_rows, num_experts
        rule, layers = ExpectedUse(num_rows, num_experts), range(num_rows)
        self.host = SlotTable(layers, num_experts, slots[0], rule)
        self.device = SlotTable(layers, num_experts, slots[1], rule)
        self.promotions = Promotions(
            self.host, self.device, rule, [self.device], exclusive=exclusive
        )
        shared = native.PoolBytes(slots[0], (1, 1), (0, 0))
        self._pool = native.pool_new(num_rows, num_experts, shared, 0)
        self._host = native.pool_level(self._pool, HIGH)
        self._device = native.slots_on_device(self._host, slots[1])
        self._promotions = native.promotions_new(self._pool, self._device, exclusive)
        self.under_way: list[Promotion] = []

    def load(self, row: int, experts: Sequence[int]) -> None:
        """`experts` are used, and those in no slot are read into one of the host's."""
        given = np.array(experts, np.int32)
        self.host.use(row, given)
        native.slots_use(self._host, row, address_of(given), len(given))
        held = (self.host.holds(row, e) or self.device.holds(row, e) for e in experts)
        absent = given[[not is_held for is_held in held]][: self.host.num_unpinned]
        claimed = np.empty(len(absent), np.int32)
        native.slots_claim(self._host, row, address_of(absent), len(absent), address_of(claimed))
        assert self.host.claim(row, absent).tolist() == claimed.tolist()
        for slot in claimed.tolist():
            for what in ("fill", "unpin"):
                getattr(self.host, what)(np.array([slot], np.int32))
                getattr(native, f"slots_{what}")(self._host, slot)

    def move_next(self) -> None:
        found, expected = native.Promotion(), self.promotions.next()
        assert native.promotions_next(self._promotions, found) == (expected is not None)
        if expected is not None:
            assert expected == promotion_of(found)
            self.under_way.append(expected)

    def go_on(self, index: int, came: bool) -> None:
        """Its bytes came or were given up: of the expert that is leaving, if there is one."""
        done = self.under_way.pop(index)
        one = native.Promotion(*astuple(done))
        if came and done.leaving != NOWHERE:
            native.promotions_take_down(self._promotions, one)
            self.under_way.append(self.promotions.take_down(done))
            assert self.under_way[-1] == promotion_of(one)
            return
        self.promotions.finish(done, came=came)
        native.promotions_finish(self._promotions, one, came)

    def assert_alike(self) -> None:
        for table, slots in ((self.host, self._host), (self.device, self._device)):
            table.check_integrity()
            assert native.slots_fault(slots) is None
            for row in range(self.num_rows):
                found = [native.slots_find(slots, row, e) for e in range(self.num_experts)]
                assert found == table.find(row, np.arange(self.num_experts)).tolist()

    def close(self) -> None:
        native.promotions_delete(self._promotions)
        native.slots_delete(self._device)
        native.pool_delete(self._pool)


class Asked(RuleBasedStateMachine):
    """Any sequence of uses, reads and moves."""

    @initialize(
        num_rows=st.integers(1, 3),
        num_experts=st.integers(2, 8),
        slots=st.tuples(st.integers(1, 12), st.integers(0, 12)),
        exclusive=st.booleans(),
    )
    def begin(
        self, num_rows: int, num_experts: int, slots: tuple[int, int], exclusive: bool
    ) -> None:
        self.twins = Twins(num_rows, num_experts, slots, exclusive)

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        row = data.draw(st.integers(0, self.twins.num_rows - 1))
        expert = st.integers(0, self.twins.num_experts - 1)
        self.twins.load(row, data.draw(st.lists(expert, min_size=1, max_size=6, unique=True)))

    @rule()
    def move_next(self) -> None:
        self.twins.move_next()

    @precondition(lambda self: self.twins.under_way)
    @rule(data=st.data(), came=st.booleans())
    def go_on(self, data: st.DataObject, came: bool) -> None:
        self.twins.go_on(data.draw(st.integers(0, len(self.twins.under_way) - 1)), came)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "twins"):
            self.twins.assert_alike()

    def teardown(self) -> None:
        if hasattr(self, "twins"):
            self.twins.close()


TestAnySequence = Asked.TestCase
TestAnySequence.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def moved(twins: Twins) -> list[tuple[int, int]]:
    """The experts on the device, the most used first, after all that is worth it has moved."""
    while True:
        twins.move_next()
        if not twins.under_way:
            return sorted(twins.device.residents())
        while twins.under_way:
            twins.go_on(0, came=True)


def test_the_experts_that_are_used_most_lie_on_the_device() -> None:
    twins = Twins(2, 4, (8, 2), exclusive=False)
    for number in range(40):
        for row in range(2):
            twins.load(row, [row, 2] if number % 4 == 0 else [row])
    assert moved(twins) == [(0, 0), (1, 1)]
    for _ in range(200):  # another text
        twins.load(0, [3])
        twins.load(1, [1])
    assert moved(twins) == [(0, 3), (1, 1)]
    twins.close()


def test_experts_that_are_used_alike_do_not_take_turns() -> None:
    twins = Twins(1, 4, (4, 2), exclusive=False)
    seen = list[list[tuple[int, int]]]()
    for number in range(100):
        twins.load(0, [number % 4])
        seen.append(moved(twins))
    assert len(seen[-1]) == 2
    assert all(there == seen[-1] for there in seen[-8:])
    twins.close()


def test_an_exclusive_device_leaves_the_host_a_free_slot() -> None:
    twins = Twins(1, 4, (2, 2), exclusive=True)
    twins.load(0, [0, 1])
    assert moved(twins) == [(0, 0), (0, 1)]
    assert twins.host.num_empty == 2
    twins.load(0, [2, 3])
    assert {expert for _, expert in twins.host.residents()} == {2, 3}
    twins.close()


def test_an_expert_that_leaves_an_exclusive_device_moves_to_the_host() -> None:
    twins = Twins(1, 4, (2, 1), exclusive=True)
    twins.load(0, [0])
    assert moved(twins) == [(0, 0)]
    for _ in range(40):
        twins.load(0, [1])
    twins.move_next()
    assert [each.leaving for each in twins.under_way] == [0]
    assert twins.device.residents() == [(0, 0)]  # it is computed there meanwhile
    while twins.under_way:
        twins.go_on(0, came=True)
    assert twins.device.residents() == [(0, 1)]
    assert twins.host.residents() == [(0, 0)]
    twins.close()
