"""Pools: the memory of slots for experts of one shape, and the place of an expert in a slot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from haversack.cache.levels import PoolBytes
from haversack.cache.precision import HIGH, LOW
from haversack.devices.errors import BudgetError
from haversack.devices.memory import PAGE_BYTES, SlotMemory
from haversack.devices.readers import Readers
from haversack.quant.gguf import ExpertCopy, ExpertLayer
from haversack.quant.lowbit import LowCopies

Shape = tuple[int, ...]  # bytes of each matrix of an expert, in the order they are computed


def shape_of(layer: ExpertLayer) -> Shape:
    """Return the bytes of each matrix. Layers of equal shape and number of experts share a pool."""
    return tuple(matrix.expert_bytes for matrix in layer.matrices)


def stride_bytes(matrix_bytes: int) -> int:
    """Return the room for one matrix in a slot: whole pages, and one page for a read's padding."""
    return matrix_bytes + -matrix_bytes % PAGE_BYTES + PAGE_BYTES


def slot_bytes(shape: Shape) -> int:
    """Return the memory of one slot of a pool for `shape`."""
    return sum(stride_bytes(matrix_bytes) for matrix_bytes in shape)


def resting_place(copy: ExpertCopy) -> int:
    """Return where a matrix lies in its room of a slot.

    It lies where direct reads put it, if that is the same for all experts of its tensor. Otherwise
    it lies at the start, and its bytes are moved there after each read.
    """
    return copy.offset % PAGE_BYTES if copy.stride_bytes % PAGE_BYTES == 0 else 0


def spare_slots(num_slots: int) -> int:
    """Return how many more slots an eviction empties than are needed.

    A few save more than half of the 0.19 ms of a layer's bookkeeping (24 layers, 768 slots). More
    save little, and on recorded routing they bring the default rule below LRU in a large cache.
    """
    return min(4, num_slots // 64)


@dataclass(frozen=True)
class PoolPlan:
    """How many slots the layers of one shape get.

    With `low_shape` the pool's bytes are shared by slots for HIGH copies and at least
    `least_low_slots` slots for LOW ones; `num_slots` HIGH slots would take as many bytes.
    """

    shape: Shape
    layers: tuple[int, ...]
    num_experts: int
    num_slots: int
    low_shape: Shape = ()
    least_low_slots: int = 0

    @property
    def num_bytes(self) -> int:
        return self.num_slots * slot_bytes(self.shape)

    @property
    def level_bytes(self) -> PoolBytes:
        """How slots of two levels share the bytes."""
        least = self.least_low_slots
        return PoolBytes(
            self.num_bytes, (slot_bytes(self.shape), slot_bytes(self.low_shape)), (least, least)
        )


class ExpertPool:
    """The slots of one shape and level; `low` are those of the LOW level, if the plan has them.

    Each matrix of an expert has memory of its own, so that consecutive slots are a fixed stride
    apart and can form one tensor of llama.cpp. There are addresses for as many slots as there are
    experts, and for as many as the bytes of both levels give, so that the pool can grow and shrink
    without moving."""

    def __init__(self, plan: PoolPlan, level: int = HIGH) -> None:
        self.plan = plan
        self.low: ExpertPool | None = None
        self.num_slots = 0
        shape, num_slots = (plan.shape, plan.low_shape)[level], plan.num_slots
        self._strides = tuple(stride_bytes(num_bytes) for num_bytes in shape)
        most_slots = max(plan.num_slots, plan.num_experts * len(plan.layers))
        most_slots = most_slots * slot_bytes(plan.shape) // slot_bytes(shape)
        self._memories = [SlotMemory(stride * most_slots, 0) for stride in self._strides]
        self._readers: Readers | None = None
        if plan.low_shape:
            num_slots = plan.level_bytes.first_slots[level]
            self.low = ExpertPool(plan, LOW) if level == HIGH else None
        self.resize(num_slots)

    def touch_ahead(self, readers: Readers) -> None:
        """Have `readers` make the pages of slots before they read into them."""
        if self.low is not None:
            self.low.touch_ahead(readers)
        self._touch_ahead(readers)

    def _touch_ahead(self, readers: Readers) -> None:
        self._readers = readers
        for memory in self._memories:
            readers.touch_ahead(memory.address, memory.num_bytes)

    def resize(self, num_slots: int) -> None:
        """Change the number of slots. The last ones are removed first, and their memory goes back
        to the system: no read may be under way there, and no product may use them.

        Raises BudgetError if the system refuses the memory; the number of slots then stays.
        """
        try:
            self._resize(num_slots)
        except BudgetError:
            self._resize(self.num_slots)
            raise
        self.num_slots = num_slots

    def _resize(self, num_slots: int) -> None:
        for stride, memory in zip(self._strides, self._memories, strict=True):
            if self._readers is not None:  # memory that goes back may not be touched
                kept_bytes = min(memory.num_bytes, stride * num_slots)
                self._readers.touch_ahead(memory.address, kept_bytes)
            memory.resize(stride * num_slots)
        if self._readers is not None:
            self._touch_ahead(self._readers)

    @property
    def resident_bytes(self) -> int:
        """Return how many bytes of the slots of both levels are in memory: pages that were
        touched."""
        low_bytes = self.low.resident_bytes if self.low is not None else 0
        return low_bytes + sum(memory.resident_bytes for memory in self._memories)

    def stride(self, index: int) -> int:
        """Return the bytes from one slot's matrix `index` to the next slot's."""
        return self._strides[index]

    def address(self, index: int) -> int:
        """Return where the first slot has its room for the matrix numbered `index`."""
        return self._memories[index].address

    def close(self) -> None:
        """Give the memory back, after its readers were closed; may be called twice."""
        if self.low is not None:
            self.low.close()
        for memory in self._memories:
            memory.close()


def plan_pools(
    layers: Sequence[ExpertLayer],
    num_experts_per_tok: int,
    num_bytes: int,
    low: LowCopies | None = None,
) -> tuple[PoolPlan, ...]:
    """Return a pool for each shape among `layers`, together of at most `num_bytes`.

    Each pool gets its floor, twice the slots that one token needs in one layer, even beyond
    `num_bytes`; with `low` it gets so many of each level. The rest is shared in proportion to the
    bytes that each pool still lacks.
    """
    floors = _floor_pools(layers, num_experts_per_tok, low)
    lacking = [pool.num_experts * len(pool.layers) - pool.num_slots for pool in floors]
    wanted = [
        max(0, count) * slot_bytes(pool.shape) for count, pool in zip(lacking, floors, strict=True)
    ]
    share = min(1.0, max(0, num_bytes - pools_bytes(floors)) / max(1, sum(wanted)))
    return tuple(
        replace(pool, num_slots=pool.num_slots + int(more * share) // slot_bytes(pool.shape))
        for pool, more in zip(floors, wanted, strict=True)
    )


def all_slots(layers: Sequence[ExpertLayer], num_experts_per_tok: int) -> tuple[PoolPlan, ...]:
    """Return a pool for each shape among `layers` with a slot for every expert."""
    floors = _floor_pools(layers, num_experts_per_tok, None)
    return tuple(replace(pool, num_slots=pool.num_experts * len(pool.layers)) for pool in floors)


def _floor_pools(
    layers: Sequence[ExpertLayer], num_experts_per_tok: int, low: LowCopies | None
) -> list[PoolPlan]:
    """Return a pool for each shape among `layers`, with as few slots as work."""
    groups: dict[tuple[Shape, int], list[int]] = {}  # indices of layers
    for idx, layer in enumerate(layers):
        groups.setdefault((shape_of(layer), layer.num_experts), []).append(idx)
    pools: list[PoolPlan] = []
    for (shape, num_experts), found in groups.items():
        least = min(2 * num_experts_per_tok, num_experts * len(found))
        low_shape = _low_shape(low, found)
        low_slots = -(-least * slot_bytes(low_shape) // slot_bytes(shape))  # as HIGH ones
        its_layers = tuple(layers[idx].layer for idx in found)
        pools.append(
            PoolPlan(
                shape, its_layers, num_experts, least + low_slots, low_shape, least if low else 0
            )
        )
    return pools


def _low_shape(low: LowCopies | None, layer_idxs: Sequence[int]) -> Shape:
    """Return the bytes of each matrix of a LOW slot that holds a copy of any of these layers; ()
    without `low`. The types of low copies may differ from layer to layer."""
    if low is None:
        return ()
    copies = zip(*(low.copies[idx] for idx in layer_idxs), strict=True)
    return tuple(max(copy.num_bytes for copy in matrix) for matrix in copies)


def pools_bytes(pools: Sequence[PoolPlan]) -> int:
    """Return the memory of all `pools`."""
    return sum(pool.num_bytes for pool in pools)
