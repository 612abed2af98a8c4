import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.devices.budget import MemoryBudget
from haversack.devices.errors import BudgetError

GIB = 2**30


def ram(limit_bytes: int = 4 * GIB) -> MemoryBudget:
    return MemoryBudget("ram", limit_bytes, knob="raise --ram")


def test_a_planner_reserves_in_turn_and_slots_take_the_rest() -> None:
    budget = ram()
    budget.reserve("trunk", GIB)
    budget.reserve("kv", GIB // 2)
    budget.reserve("compute", 100)
    slot_bytes = 3_000_000
    num_slots = budget.left_bytes // slot_bytes
    budget.reserve("slots", num_slots * slot_bytes)

    assert [name for name, _ in budget.rows()] == ["trunk", "kv", "compute", "slots", "left"]
    assert dict(budget.rows())["slots"] == num_slots * slot_bytes
    assert 0 <= budget.left_bytes < slot_bytes
    assert budget.reserved_bytes + budget.left_bytes == budget.limit_bytes
    budget.check_integrity()


def test_a_refusal_carries_need_have_and_knob_and_takes_nothing() -> None:
    budget = ram()
    budget.reserve("trunk", 3 * GIB)
    with pytest.raises(BudgetError) as caught:
        budget.reserve("kv", 2 * GIB)
    assert str(caught.value) == (
        "kv needs 2.0 GiB of ram, 1.0 GiB of 4.0 GiB is left, 1.0 GiB too few: raise --ram"
    )
    assert (caught.value.need_bytes, caught.value.have_bytes) == (5 * GIB, 4 * GIB)
    assert budget.left_bytes == GIB


def test_the_need_of_a_refusal_is_a_budget_that_suffices() -> None:
    with pytest.raises(BudgetError) as caught:
        ram(10).reserve("trunk", 11)
    ram(caught.value.need_bytes).reserve("trunk", 11)


def test_measured_bytes_replace_planned_ones() -> None:
    budget = ram()
    budget.reserve("compute", 500)
    assert budget.release("compute") == 500
    budget.reserve("compute", 420)
    assert budget.rows() == [("compute", 420), ("left", 4 * GIB - 420)]
    with pytest.raises(KeyError):
        budget.release("drafts")


@pytest.mark.parametrize(("name", "num_bytes"), [("kv", 1), ("left", 1), ("trunk", -1)])
def test_a_name_is_reserved_once_and_never_negative(name: str, num_bytes: int) -> None:
    budget = ram()
    budget.reserve("kv", 0)
    with pytest.raises(ValueError, match=name):
        budget.reserve(name, num_bytes)


def test_limits_are_fixed_and_not_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        ram(-1)
    with pytest.raises(AttributeError):
        ram().limit_bytes = 8 * GIB  # type: ignore[misc]


def test_printed_as_a_table() -> None:
    budget = ram()
    budget.reserve("trunk", GIB)
    assert str(budget).splitlines() == [
        "ram         4.0 GiB",
        "  trunk     1.0 GiB",
        "  left      3.0 GiB",
    ]


@given(st.integers(0, 1000), st.lists(st.integers(0, 400)))
def test_rows_add_up_to_the_byte_whatever_is_asked(limit_bytes: int, asked: list[int]) -> None:
    budget = ram(limit_bytes)
    for idx, num_bytes in enumerate(asked):
        left_bytes = budget.left_bytes
        try:
            budget.reserve(f"part {idx}", num_bytes)
            assert num_bytes <= left_bytes
        except BudgetError:
            assert num_bytes > left_bytes == budget.left_bytes
        budget.check_integrity()
    assert sum(num_bytes for _, num_bytes in budget.rows()) == limit_bytes
