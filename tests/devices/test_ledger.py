"""Whose memory it is: what open models hold, and the rest of the process."""

import gc
import threading

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.devices.ledger import Holding, Ledger, steady_figure
from haversack.devices.memory import SlotMemory

MIB = 2**20


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
    """The C library would keep it: it lies below a block that is still in use."""
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
    holding = Holding(reserved_bytes=300 * MIB, most_bytes=200 * MIB)
    before = ledger.others_bytes()
    ledger.add(holding)
    with ledger.measured(holding):
        weights = touched(150 * MIB)
    assert abs(holding.num_bytes - 150 * MIB) < MIB
    assert abs(ledger.others_bytes() - before) < MIB
    assert abs(ledger.untouched_bytes() - 150 * MIB) < MIB
    with ledger.measured(holding):
        too_much = touched(80 * MIB)
    assert holding.num_bytes == 200 * MIB  # it was not planned: the process has to hold it
    assert abs(ledger.others_bytes() - before - 30 * MIB) < MIB
    del weights, too_much
    ledger.remove(holding)
    assert abs(ledger.others_bytes() - before) < MIB


def test_slots_count_as_they_are_touched() -> None:
    ledger = Ledger()
    holding = Holding(reserved_bytes=64 * MIB, most_bytes=0)
    before = ledger.others_bytes()
    ledger.add(holding)
    with SlotMemory(64 * MIB) as arena:
        assert ledger.untouched_bytes() == 64 * MIB
        arena.bytes[: 24 * MIB] = 1
        assert ledger.untouched_bytes() == 40 * MIB
        assert abs(ledger.others_bytes() - before) < MIB


def test_a_plan_beside_a_load_of_another_thread_takes_the_last_figure() -> None:
    ledger = Ledger()
    before, figures = ledger.process_bytes(), list[int]()
    with ledger.loading():
        half_a_model = touched(300 * MIB)
        thread = threading.Thread(target=lambda: figures.append(ledger.process_bytes()))
        thread.start()
        thread.join(timeout=30)
        assert figures == [before]
    del half_a_model


def test_loads_take_turns() -> None:
    ledger, order = Ledger(), list[str]()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with ledger.loading():
            inside.set()
            assert leave.wait(timeout=30)
            order.append("first")

    def second() -> None:
        with ledger.loading():
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(timeout=30)
    threads[1].start()
    leave.set()
    for thread in threads:
        thread.join(timeout=30)
    assert order == ["first", "second"]


@pytest.mark.parametrize("num_bytes", [-5, 0])
def test_a_holding_never_shrinks(num_bytes: int) -> None:
    holding = Holding(10, 10)
    holding.grow(4)
    holding.grow(num_bytes)
    assert holding.num_bytes == 4
