"""The engine moves experts up to a device as `cache/tiers.py` does, whatever is asked of both."""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from haversack.cache.policies import ExpectedUse
from haversack.cache.precision import HIGH
from haversack.cache.slots import NOWHERE, SlotTable
from haversack.cache.tiers import Promotion, Promotions
from haversack.devices._native import address_of
from haversack.offload import _native as native


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
