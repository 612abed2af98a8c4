"""Pools: how many slots a number of bytes buys, and where a matrix lies in a slot."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.devices import _native as native
from haversack.devices.errors import BudgetError
from haversack.devices.memory import SlotMemory
from haversack.offload.pool import (
    ExpertPool,
    PoolPlan,
    plan_pools,
    pools_bytes,
    resting_place,
    slot_bytes,
    stride_bytes,
)
from haversack.quant.gguf import ExpertLayer, ExpertMatrix

PAGE = 4096


def layer(number: int, *matrix_bytes: int, num_experts: int = 16) -> ExpertLayer:
    """A layer whose expert has matrices of so many bytes."""
    kinds = ("gate", "up", "down")
    return ExpertLayer(
        number,
        tuple(
            ExpertMatrix(f"{kind}.{number}", kind, 0, 64, 64, num_experts, 0, 32 * number, size)
            for kind, size in zip(kinds, matrix_bytes, strict=True)
        ),
    )


def test_layers_of_one_shape_share_a_pool() -> None:
    layers = [
        layer(0, PAGE, PAGE, PAGE),
        layer(1, PAGE, PAGE, 2 * PAGE),
        layer(2, PAGE, PAGE, PAGE),
    ]
    first, second = plan_pools(layers, num_experts_per_tok=2, num_bytes=1 << 30)
    assert (first.layers, second.layers) == ((0, 2), (1,))
    assert (first.num_slots, second.num_slots) == (32, 16)  # room for all


def test_a_pool_never_falls_below_two_tokens_worth() -> None:
    layers = [layer(0, PAGE, PAGE, PAGE), layer(1, PAGE, PAGE, PAGE)]
    (pool,) = plan_pools(layers, num_experts_per_tok=3, num_bytes=0)
    assert pool.num_slots == 6
    (all_of_them,) = plan_pools([layer(0, PAGE, PAGE, PAGE)], num_experts_per_tok=16, num_bytes=0)
    assert all_of_them.num_slots == 16  # there are no more experts than that


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True),
    num_bytes=st.integers(0, 10_000_000),
)
def test_pools_take_no_more_than_they_are_given(sizes: list[int], num_bytes: int) -> None:
    layers = [layer(i, 1000 * size, 1000 * size, 777) for i, size in enumerate(sizes)]
    pools = plan_pools(layers, num_experts_per_tok=2, num_bytes=num_bytes)
    floor = pools_bytes(plan_pools(layers, num_experts_per_tok=2, num_bytes=0))
    assert pools_bytes(pools) <= max(num_bytes, floor)
    assert all(4 <= pool.num_slots <= 16 for pool in pools)
    if num_bytes >= sum(16 * slot_bytes(pool.shape) for pool in pools):
        assert all(pool.num_slots == 16 for pool in pools)


@pytest.mark.parametrize(
    "matrix_bytes", [1, 100, PAGE - 32, PAGE, PAGE + 32, 10 * PAGE, 12345 * 32]
)
def test_a_padded_read_always_fits_its_room(matrix_bytes: int) -> None:
    for residue in range(0, PAGE, 32):
        padded = -(-(residue + matrix_bytes) // PAGE) * PAGE
        assert padded <= stride_bytes(matrix_bytes)
    assert stride_bytes(matrix_bytes) % PAGE == 0


def test_whole_pages_rest_where_reads_put_them() -> None:
    assert resting_place(layer(5, 2 * PAGE, PAGE, PAGE).matrices[0].copies[0]) == 5 * 32
    assert resting_place(layer(5, 2 * PAGE + 32, PAGE, PAGE).matrices[0].copies[0]) == 0


def room(pool: ExpertPool, index: int, slot: int) -> npt.NDArray[np.uint8]:
    """The bytes of a slot for a matrix, where a read lands."""
    address = pool.address(index) + slot * pool.stride(index)
    return native.array_at(address, (pool.stride(index),), np.uint8)


def test_rooms_do_not_overlap() -> None:
    pool = ExpertPool(PoolPlan((3 * PAGE, 100), layers=(0,), num_experts=4, num_slots=3))
    for index in range(2):
        for slot in range(3):
            room(pool, index, slot)[:] = 10 * index + slot
    for index in range(2):
        for slot in range(3):
            found = room(pool, index, slot)
            assert (found == 10 * index + slot).all()
            assert native.address_of(found) % PAGE == 0
    assert pool.plan.num_bytes == 3 * (4 * PAGE + 2 * PAGE)
    pool.close()


def test_a_pool_grows_and_shrinks_while_its_addresses_stay() -> None:
    pool = ExpertPool(PoolPlan((3 * PAGE, 100), layers=(0, 1), num_experts=4, num_slots=3))
    addresses = [pool.address(index) for index in range(2)]
    for index in range(2):
        room(pool, index, 2)[:] = 7
    pool.resize(8)
    assert [pool.address(index) for index in range(2)] == addresses
    assert all(room(pool, index, 2).min() == 7 for index in range(2))
    for index in range(2):
        room(pool, index, 7)[:] = 8
    held_bytes = pool.resident_bytes
    pool.resize(3)
    assert pool.num_slots == 3
    assert 0 < pool.resident_bytes < held_bytes
    assert all(room(pool, index, 2).min() == 7 for index in range(2))
    with pytest.raises(ValueError, match="addresses"):
        pool.resize(9)  # there are eight experts
    pool.close()
    assert pool.resident_bytes == 0


def test_growth_that_is_refused_leaves_all_matrices_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = ExpertPool(PoolPlan((3 * PAGE, 100), layers=(0,), num_experts=4, num_slots=2))
    grow = SlotMemory.resize

    def refuse_the_second(memory: SlotMemory, num_bytes: int) -> None:
        if memory is pool._memories[1] and num_bytes > memory.num_bytes:
            raise BudgetError("refused", need_bytes=1, have_bytes=0)
        grow(memory, num_bytes)

    monkeypatch.setattr(SlotMemory, "resize", refuse_the_second)
    with pytest.raises(BudgetError):
        pool.resize(4)
    assert pool.num_slots == 2
    assert [memory.num_bytes for memory in pool._memories] == [2 * pool.stride(i) for i in (0, 1)]
    pool.close()
