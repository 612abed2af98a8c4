"""How much memory open models hold, and how much the rest of the process."""

import gc
import threading

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.devices.budget import MemoryBudget
from haversack.devices.errors import BudgetError
from haversack.devices.ledger import Entry, Lease, Ledger, steady_figure
from haversack.devices.memory import SlotMemory

MIB = 2**20


def lease(ledger: Ledger, slots_bytes: int = 0, **parts: int) -> Lease:
    """Make a lease of a budget of its own that is just large enough."""
    budget = MemoryBudget("ram", slots_bytes + sum(parts.values()), knob="raise --ram")
    return ledger.lease(budget, "model", parts, slots_bytes)


def touched(num_bytes: int) -> npt.NDArray[np.uint8]:
    return np.ones(num_bytes, np.uint8)


# ---------------------------------------------------------------- a steady figure
def test_a_plain_process_has_the_least_figure() -> None:
    assert steady_figure(30 * MIB, 64 * MIB) == 64 * MIB
    assert steady_figure(56 * MIB, 64 * MIB) == 64 * MIB


def test_a_figure_stays_while_the_process_changes_little() -> None:
    figure = steady_figure(100 * MIB, 64 * MIB)
    assert figure == 132 * MIB
    for measured in (98, 110, 124, 80, 70):
        assert steady_figure(measured * MIB, figure) == figure


def test_memory_that_went_is_not_in_the_figure() -> None:
    assert steady_figure(40 * MIB, steady_figure(700 * MIB, 64 * MIB)) == 64 * MIB


@given(st.integers(0, 2**40), st.integers(2**26, 2**40))
def test_a_figure_always_holds_what_was_measured(measured: int, last: int) -> None:
    figure = steady_figure(measured, last)
    assert figure >= measured + 8 * MIB
    assert figure <= measured + 64 * MIB
    assert steady_figure(measured, figure) == figure


# -------------------------------------------------------------------- the ledger
def test_other_peoples_memory_counts_while_it_is_held() -> None:
    ledger = Ledger()
    before = ledger.process_bytes()
    array = touched(600 * MIB)
    assert ledger.process_bytes() >= before + 500 * MIB
    del array
    assert abs(ledger.process_bytes() - before) <= 64 * MIB


def test_memory_freed_in_small_pieces_is_no_ones() -> None:
    """The C library would keep the memory, because it lies below a block still in use."""
    ledger = Ledger()
    before = ledger.others_bytes()
    pieces = [np.ones(50_000, np.uint8) for _ in range(2000)]
    kept = np.ones(50_000, np.uint8)
    assert ledger.others_bytes() - before > 90 * MIB
    del pieces
    gc.collect()
    assert ledger.others_bytes() - before < 8 * MIB
    assert kept.all()


def test_what_a_model_takes_is_not_the_others() -> None:
    ledger = Ledger()
    before = ledger.others_bytes()
    model = lease(ledger, slots_bytes=100 * MIB, trunk=200 * MIB)
    with ledger.measured(model):
        weights = touched(150 * MIB)
    assert abs(model.held_bytes - 150 * MIB) < MIB
    assert abs(ledger.others_bytes() - before) < MIB
    assert abs(ledger.untouched_bytes() - 150 * MIB) < MIB
    with ledger.measured(model):
        too_much = touched(80 * MIB)
    assert model.held_bytes == 200 * MIB  # it was not planned: the process has to hold it
    assert abs(ledger.others_bytes() - before - 30 * MIB) < MIB
    del weights, too_much
    model.close()
    assert abs(ledger.others_bytes() - before) < MIB


def test_slots_count_as_they_are_touched() -> None:
    ledger = Ledger()
    before = ledger.others_bytes()
    lease(ledger, slots_bytes=64 * MIB)
    with SlotMemory(64 * MIB) as arena:
        assert ledger.untouched_bytes() == 64 * MIB
        arena.bytes[: 24 * MIB] = 1
        assert ledger.untouched_bytes() == 40 * MIB
        assert abs(ledger.others_bytes() - before) < MIB


def test_a_plan_beside_a_load_of_another_thread_takes_the_last_figure() -> None:
    ledger = Ledger()
    before, figures = ledger.process_bytes(), list[int]()
    with ledger.loading:
        half_a_model = touched(300 * MIB)
        thread = threading.Thread(target=lambda: figures.append(ledger.process_bytes()))
        thread.start()
        thread.join(timeout=300)
        assert figures == [before]
    del half_a_model


def test_loads_take_turns() -> None:
    ledger, order = Ledger(), list[str]()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with ledger.loading:
            inside.set()
            assert leave.wait(timeout=300)
            order.append("first")

    def second() -> None:
        with ledger.loading:
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(timeout=300)
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(timeout=300)
    assert order == ["first", "second"]


@pytest.mark.parametrize("num_bytes", [-5, 0])
def test_what_is_held_never_shrinks(num_bytes: int) -> None:
    model = lease(Ledger(), trunk=10)
    model.grow(4)
    model.grow(num_bytes)
    assert model.held_bytes == 4


def test_what_is_held_fills_the_parts_in_their_order() -> None:
    model = lease(Ledger(), slots_bytes=50, trunk=100, kv=20, compute=30)
    model.grow(110)
    assert model.entries(slots_held_bytes=7) == [
        *(Entry("trunk", 100, 100), Entry("kv", 20, 10), Entry("compute", 30, 0)),
        Entry("slots", 50, 7),
    ]
    model.grow(1000)
    assert [entry.held_bytes for entry in model.entries()] == [100, 20, 30, 0]
    assert sum(entry.reserved_bytes for entry in model.entries()) == model.reserved_bytes


@given(st.lists(st.integers(0, 1000)), st.integers(0, 500), st.lists(st.integers(-50, 900)))
def test_entries_add_up_to_the_byte(parts: list[int], slots: int, grown: list[int]) -> None:
    model = lease(Ledger(), slots, **{f"part {i}": num_bytes for i, num_bytes in enumerate(parts)})
    for num_bytes in grown:
        model.grow(num_bytes)
    entries = model.entries()
    assert sum(entry.held_bytes for entry in entries) == model.held_bytes
    assert sum(entry.reserved_bytes for entry in entries) == model.reserved_bytes
    assert all(0 <= entry.held_bytes <= entry.reserved_bytes for entry in entries)
    model.budget.check_integrity()
    assert model.budget.left_bytes == 0


def test_leases_share_a_budget_and_give_it_back() -> None:
    ledger, budget = Ledger(), MemoryBudget("ram", 100, knob="raise --ram")
    one, two = (ledger.lease(budget, "model", {"trunk": 30}, slots_bytes=10) for _ in range(2))
    assert budget.rows() == [("model 1", 40), ("model 2", 40), ("left", 20)]
    with pytest.raises(BudgetError, match="raise --ram"):
        ledger.lease(budget, "model", {"trunk": 21})
    one.close()
    one.close()
    assert budget.rows() == [("model 2", 40), ("left", 60)]
    ledger.lease(budget, "model", {"trunk": 60})
    two.close()
    assert budget.rows() == [("model 1", 60), ("left", 40)]
    budget.check_integrity()


def test_what_the_process_takes_cannot_be_borrowed() -> None:
    ledger = Ledger()
    budget = MemoryBudget("ram", ledger.others_bytes() + 20 * MIB, knob="raise --ram")
    with ledger.borrowed(budget, 12 * MIB, "rows", "take fewer") as rows:
        assert ledger.untouched_bytes() == rows.reserved_bytes == 12 * MIB
        with (
            pytest.raises(BudgetError, match=r"rows need 12.0 MiB.* take fewer or raise --ram"),
            ledger.borrowed(budget, 12 * MIB, "rows", "take fewer"),
        ):
            raise AssertionError("it was borrowed twice")
    assert budget.left_bytes == budget.limit_bytes
