"""The engine's slots keep the same books as `cache/slots.py` and evict as its `ExpectedUse` does,
to the bit of a score, whatever is asked of them and in whatever order."""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from haversack.cache.policies import ExpectedUse
from haversack.cache.precision import HIGH
from haversack.cache.slots import LOADING, READY, SlotTable
from haversack.devices._native import address_of
from haversack.offload import _native as native

Floats = npt.NDArray[np.float64]
COUNTS = ("uses", "last_pass", "last_use")


class NativeSlots:
    """The engine's slots, by the names of the oracle; a row is named by its number."""

    def __init__(self, num_rows: int, num_experts: int, num_slots: int, num_spare: int) -> None:
        self._num_keys = num_rows * num_experts
        self._most_slots = 10 * num_slots
        self._address = native.slots_new(num_rows, num_experts, num_slots, num_spare)

    def find(self, row: int, expert: int) -> int:
        return int(native.slots_find(self._address, row, expert))

    def use(self, row: int, experts: Sequence[int]) -> None:
        given = np.array(experts, np.int32)
        native.slots_use(self._address, row, address_of(given), len(given))

    def claim(self, row: int, experts: Sequence[int]) -> list[int]:
        given, claimed = np.array(experts, np.int32), np.empty(len(experts), np.int32)
        native.slots_claim(self._address, row, address_of(given), len(given), address_of(claimed))
        return claimed.tolist()

    def borrow(self, count: int) -> list[int]:
        borrowed = np.empty(count, np.int32)
        native.slots_borrow(self._address, count, address_of(borrowed))
        return borrowed.tolist()

    def change(self, what: str, slot: int) -> None:
        """`what` is "fill", "drop", "pin" or "unpin"."""
        getattr(native, f"slots_{what}")(self._address, slot)

    def recover(self) -> None:
        native.slots_recover(self._address)

    def resize(self, num_slots: int) -> None:
        native.slots_resize(self._address, num_slots)

    def residents(self) -> list[int]:
        keys = np.empty(self._most_slots, np.int32)
        count = native.slots_residents(self._address, address_of(keys), len(keys))
        return keys[:count].tolist()

    def outlasting(self, row: int, experts: Sequence[int]) -> list[int]:
        given, staying = np.array(experts, np.int32), np.empty(len(experts), np.int32)
        count = native.slots_outlasting(
            self._address, row, address_of(given), len(given), address_of(staying)
        )
        return staying[:count].tolist()

    def uses(self) -> tuple[Floats, Floats]:
        """(uses, last passes and last uses by key), and (pass, row, layers used)."""
        counts, clock = np.empty((len(COUNTS), self._num_keys)), np.empty(3)
        native.slots_uses(self._address, address_of(counts), address_of(clock))
        return counts, clock

    def remember(self, counts: Floats, clock: Floats) -> None:
        native.slots_remember(self._address, address_of(counts), address_of(clock))

    def fault(self) -> str | None:
        told = native.slots_fault(self._address)
        return None if told is None else str(told.decode())

    def close(self) -> None:
        native.slots_delete(self._address)


class Twins:
    """Both tables. The same is asked of both, and their answers are compared."""

    def __init__(self, num_rows: int, num_experts: int, num_slots: int, num_spare: int) -> None:
        self.num_rows, self.num_experts = num_rows, num_experts
        self.table = SlotTable(range(num_rows), num_experts, num_slots, num_spare=num_spare)
        self.slots = NativeSlots(num_rows, num_experts, num_slots, num_spare)

    def use(self, row: int, experts: Sequence[int]) -> None:
        self.table.use(row, np.array(experts, np.int32))
        self.slots.use(row, experts)

    def claim(self, row: int, experts: Sequence[int]) -> list[int]:
        claimed = self.slots.claim(row, experts)
        assert claimed == self.table.claim(row, np.array(experts, np.int32)).tolist()
        return claimed

    def borrow(self, count: int) -> None:
        assert self.slots.borrow(count) == self.table.borrow(count).tolist()

    def change(self, what: str, slot: int) -> None:
        getattr(self.table, what)(np.array([slot], np.int32))
        self.slots.change(what, slot)

    def resize(self, num_slots: int) -> None:
        self.table.resize(num_slots)
        self.slots.resize(num_slots)

    def recover(self) -> None:
        self.table.recover()
        self.slots.recover()

    def remember(self) -> None:
        """Go on from their own counts, as another run would: every expert counts as one that was
        used in its share of the passes, lately or not."""
        policy = self.table.policy
        assert isinstance(policy, ExpectedUse)
        policy.clock[-1] = 1.0  # the unit
        policy.faded[:] = policy.uses / policy.passes / (1 - 2 ** (-1 / policy.HALF_LIFE))
        self.slots.remember(*self.slots.uses())

    def absent(self, row: int, experts: Sequence[int]) -> list[int]:
        """Return the experts without a slot, each once."""
        return [e for e in dict.fromkeys(experts) if not self.table.holds(row, e)]

    def slots_in(self, state: int) -> list[int]:
        return np.flatnonzero(self.table._state == state).tolist()

    def load(self, row: int, experts: Sequence[int]) -> None:
        """`experts` are used, and those without a slot are read into one."""
        self.use(row, experts)
        for slot in self.claim(row, self.absent(row, experts)):
            self.change("fill", slot)
            self.change("unpin", slot)

    def assert_alike(self) -> None:
        assert self.slots.fault() is None
        self.table.check_integrity()
        for row in range(self.num_rows):
            found = [self.slots.find(row, expert) for expert in range(self.num_experts)]
            assert found == self.table.find(row, np.arange(self.num_experts)).tolist()
        residents = [row * self.num_experts + expert for row, expert in self.table.residents()]
        assert self.slots.residents() == residents
        (counts, clock), policy = self.slots.uses(), self.table.policy
        for name, values in zip(COUNTS, counts, strict=True):
            np.testing.assert_array_equal(values, getattr(policy, name)[HIGH])
        np.testing.assert_array_equal(clock, policy.clock[: len(clock)])


class Asked(RuleBasedStateMachine):
    """Any sequence of what the engine may ask."""

    @initialize(
        num_rows=st.integers(1, 4),
        num_experts=st.integers(2, 8),
        num_slots=st.integers(1, 20),
        num_spare=st.integers(0, 3),
    )
    def begin(self, num_rows: int, num_experts: int, num_slots: int, num_spare: int) -> None:
        self.twins = Twins(num_rows, num_experts, num_slots, num_spare)

    def some(self, data: st.DataObject) -> tuple[int, list[int]]:
        """A row, and experts of it."""
        row = data.draw(st.integers(0, self.twins.num_rows - 1))
        expert = st.integers(0, self.twins.num_experts - 1)
        return row, data.draw(st.lists(expert, min_size=1, max_size=8, unique=True))

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        self.twins.use(*self.some(data))

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        row, experts = self.some(data)
        if len(experts) <= self.twins.table.num_unpinned:
            self.twins.load(row, experts)

    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        row, experts = self.some(data)
        absent = self.twins.absent(row, experts)
        self.twins.claim(row, absent[: self.twins.table.num_unpinned])

    @rule(data=st.data())
    def borrow(self, data: st.DataObject) -> None:
        self.twins.borrow(data.draw(st.integers(0, min(3, self.twins.table.num_unpinned))))

    @precondition(lambda self: self.twins.slots_in(LOADING))
    @rule(data=st.data(), what=st.sampled_from(["fill", "drop"]))
    def end_a_read(self, data: st.DataObject, what: str) -> None:
        slot = data.draw(st.sampled_from(self.twins.slots_in(LOADING)))
        self.twins.change(what, slot)
        self.twins.change("unpin", slot)

    @precondition(lambda self: self.twins.slots_in(READY))
    @rule(data=st.data(), what=st.sampled_from(["drop", "pin"]))
    def drop_or_pin(self, data: st.DataObject, what: str) -> None:
        self.twins.change(what, data.draw(st.sampled_from(self.twins.slots_in(READY))))

    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        table = self.twins.table
        pinned = np.flatnonzero(table._pins > (table._state == LOADING)).tolist()
        if pinned:
            self.twins.change("unpin", data.draw(st.sampled_from(pinned)))

    @rule(data=st.data())
    def resize(self, data: st.DataObject) -> None:
        pinned = np.flatnonzero(self.twins.table._pins)
        least = int(pinned.max()) + 1 if len(pinned) else 1
        self.twins.resize(data.draw(st.integers(least, least + 12)))

    @rule()
    def recover(self) -> None:
        self.twins.recover()

    @rule()
    def remember(self) -> None:
        self.twins.remember()

    @rule(data=st.data())
    def compare_what_is_worth_a_slot(self, data: st.DataObject) -> None:
        row, experts = self.some(data)
        absent = self.twins.absent(row, experts)
        if len(absent) <= self.twins.table.num_unpinned:
            worth = self.twins.table.outlasting(row, np.array(absent, np.int32))
            assert self.twins.slots.outlasting(row, absent) == worth.tolist()

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "twins"):
            self.twins.assert_alike()

    def teardown(self) -> None:
        if hasattr(self, "twins"):
            self.twins.slots.close()


TestAnySequence = Asked.TestCase
TestAnySequence.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_thousands_of_passes_evict_alike() -> None:
    """So many passes that the unit in which fading uses are counted is begun anew."""
    rng, twins = random.Random(0), Twins(2, 16, num_slots=12, num_spare=1)
    for number in range(5_400):
        for row in range(2):
            favourites = range(number // 500 % 8, 16)  # which change now and then
            twins.load(row, rng.sample(favourites, 3))
        if number % 200 == 0:
            twins.assert_alike()
    assert twins.table.policy.clock[-1] < 1e50  # the unit
    twins.assert_alike()
    twins.slots.close()


def test_a_new_text_counts_how_often_experts_were_used_not_how_lately() -> None:
    twins = Twins(1, 8, num_slots=8, num_spare=0)
    for experts, num_passes in (([0], 300), ([1], 100), ([2], 1)):
        for _ in range(num_passes):
            twins.load(0, experts)
    assert twins.slots.residents() == [1, 2, 0]
    twins.remember()
    assert twins.slots.residents() == [0, 1, 2]
    for _ in range(40):
        twins.load(0, [1])
    assert twins.slots.residents() == [1, 0, 2]
    twins.assert_alike()
    twins.slots.close()


def test_a_fault_is_told() -> None:
    twins = Twins(1, 4, num_slots=2, num_spare=0)
    (slot,) = twins.slots.claim(0, [3])
    twins.slots.change("unpin", slot)
    assert twins.slots.fault() == "a loading slot is not pinned"
    twins.slots.change("unpin", slot)
    assert twins.slots.fault() == "a slot was unpinned more often than pinned"
    twins.slots.close()
