"""The engine that brings experts into slots and keeps account of them. Its sources are in
offload/native/. Python starts it, watches it and ends it, and takes no part in a pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.cache.precision import HIGH, LOW
from haversack.cache.routing import Leaning
from haversack.devices import _native as devices
from haversack.devices._native import own
from haversack.devices.errors import (
    BindingError,
    BudgetError,
    CancelledError,
    HaversackError,
)
from haversack.devices.ggml import GraphNode, row_type
from haversack.devices.interrupts import StopFlag
from haversack.devices.readers import Failure, Readers
from haversack.offload import _native as native
from haversack.offload.engine_levels import (
    EngineLevels,
    balance,
    follow,
    level_counts,
    native_matrix,
)
from haversack.offload.engine_tiers import EngineTiers
from haversack.offload.pool import ExpertPool, PoolPlan, spare_slots
from haversack.offload.precision import LevelCounts, Precision
from haversack.offload.resident_file import Memory, Residents
from haversack.offload.tier import DeviceTier, TierCounts, workspace_bytes
from haversack.quant.blocks import block_type
from haversack.quant.gguf import ExpertLayer, ExpertMatrix, ModelGeometry
from haversack.quant.lowbit import LowCopies

Experts = npt.NDArray[np.integer]
Predict = Callable[[int], Experts | None]  # predicted experts of a layer, the likeliest first

_LEAST_ROWS = 1024  # of several rows' experts in one graph: enough to keep the cores busy
_MOST_TABLE_BYTES = 8 * 1024 * 1024  # of llama.cpp's table of matrices and rows, see engine.cpp
_MAPPING_BYTES = 8  # of a row there
_LOADING, _READY = 1, 2  # of enum SlotState in slots.hpp
HELD_LOW, HELD_WHOLE, BEING_READ, ON_DEVICE = 1, 2, 3, 4  # what `held_copies` says of an expert
_COUNTS = ("uses", "last_pass", "last_use")  # what the eviction rule has learnt, in this order


class _Failed(IntEnum):
    """enum Failure (native/engine.hpp)"""

    NOT, CALLER, READ, STOPPED, OTHER_CHOICE, PRODUCT, BOOKS, MISSING, DEVICE = range(9)


class _Predictions(IntEnum):
    """enum Predictions (native/engine.hpp)"""

    NONE, BY_ROUTERS, BY_CALLER = range(3)


def _most_rows(batch_tokens: int) -> int:
    """Return the most rows of one product: a batch may send all its rows to one expert."""
    return max(_LEAST_ROWS, batch_tokens)


def scratch_bytes(layers: Sequence[ExpertLayer], batch_tokens: int, experts_per_tok: int) -> int:
    """Return the most memory that the engine takes besides slots for such layers and batches."""
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    row_bytes = max(_row_bytes(matrix, matrix.type_id) for matrix in matrices)
    num_rows = max(matrix.num_rows for matrix in matrices)
    converted_bytes = batch_tokens * experts_per_tok * row_bytes
    limit = _most_rows(batch_tokens)
    table_bytes = sum(layer.num_experts for layer in layers) * limit * _MAPPING_BYTES
    gathered_bytes = limit * (row_bytes + 4 * num_rows)
    return min(table_bytes, _MOST_TABLE_BYTES) + converted_bytes + gathered_bytes


def low_scratch_bytes(
    layers: Sequence[ExpertLayer], low: LowCopies, batch_tokens: int, experts_per_tok: int
) -> int:
    """Return how much more it takes with low copies, whose types may want the rows converted in
    another way than the originals."""
    row_bytes = max(
        _row_bytes(matrix, copy.type_id)
        for layer, copies in zip(layers, low.copies, strict=True)
        for matrix, copy in zip(layer.matrices, copies, strict=True)
    )
    return (batch_tokens * experts_per_tok + _most_rows(batch_tokens)) * row_bytes


def _row_bytes(matrix: ExpertMatrix, type_id: int) -> int:
    """Return the bytes of a row as products with weights of this type want it."""
    return block_type(row_type(type_id)).row_bytes(matrix.row_elements)


@dataclass(frozen=True)
class EngineOptions:
    """What an engine has besides the host's slots: low copies with their `precision`, and `tiers`
    on devices, the fastest first."""

    precision: Precision | None = None
    tiers: tuple[DeviceTier, ...] = ()


_PLAIN = EngineOptions()


class ExpertEngine:
    """See the module. `pools` and `readers` must outlive it; the readers may be closed before. With
    a precision the pools have slots of two levels, and the readers the files of the low copies
    after those of the model."""

    def __init__(
        self,
        geometry: ModelGeometry,
        pools: Sequence[ExpertPool],
        readers: Readers,
        stop: StopFlag,
        batch_tokens: int,
        how: EngineOptions = _PLAIN,
    ) -> None:
        precision = how.precision
        self._geometry, self.pools, self.readers = geometry, pools, readers
        self._tiers = EngineTiers(how.tiers, pools)
        self._levels = None if precision is None else EngineLevels(geometry, precision)
        self._place = {layer.layer: place for place, layer in enumerate(geometry.layers)}
        self._predict: Predict | None = None
        self._error: BaseException | None = None
        self._caller = native.Caller(
            own.ShouldStop(lambda: stop.requested), native.Predict(self._on_predict)
        )
        self.address: int | None = native.engine_new(
            self._caller,
            readers.address,
            geometry.num_experts_per_tok,
            _most_rows(batch_tokens),
        )
        for pool in pools:
            self._add_pool(pool.plan)
        for layer in geometry.layers:
            native.engine_add_layer(self.address, self._layer(layer))
        self._add_tiers(batch_tokens)
        native.engine_finish(self.address)
        if self._levels is not None:
            assert self.address is not None, "the engine was just made"
            self._levels.start(self.address)
        self._state = native.engine_state(self.address).contents
        self._state.predictions = _Predictions.BY_ROUTERS
        self._fill_tiers()

    def _add_tiers(self, batch_tokens: int) -> None:
        try:
            layers = self._geometry.layers
            self._tiers.add_to(self.address, workspace_bytes(layers, batch_tokens))
        except BudgetError:
            self.close()
            raise

    def _fill_tiers(self) -> None:
        failure = native.engine_fill_tiers(self.address) if self._tiers.has_fixed else 0
        if failure:
            told = self.after_pass(failure)
            self.close()
            assert told is not None, "a failure has an error"
            raise told

    def _add_pool(self, plan: PoolPlan) -> None:
        rows, spare = len(plan.layers), spare_slots(plan.num_slots)
        if not plan.low_shape:
            native.engine_add_pool(self.address, rows, plan.num_experts, plan.num_slots, spare)
            return
        shared = plan.level_bytes
        levels = native.PoolBytes(shared.total, shared.slot, shared.least_slots)
        native.engine_add_pool_of_two(self.address, rows, plan.num_experts, levels, spare)

    def _layer(self, layer: ExpertLayer) -> native.Layer:
        number = next(n for n, pool in enumerate(self.pools) if layer.layer in pool.plan.layers)
        pool = self.pools[number]
        row = pool.plan.layers.index(layer.layer)
        made = native.Layer(layer.layer, row, number, len(layer.matrices))
        for index, matrix in enumerate(layer.matrices):
            made.matrices[HIGH][index] = native_matrix(pool, index, matrix, matrix.copies[0])
        if self._levels is not None:
            self._levels.add_low(made, pool, layer)
        return made

    # ------------------------------------------------------------- what it did
    @property
    def hits(self) -> int:
        """Return how often an expert was used that was in a slot."""
        return int(self._state.hits)

    @property
    def misses(self) -> int:
        """Return how often an expert was used that was not, or not wholly, in a slot."""
        return int(self._state.misses)

    @property
    def num_calls(self) -> int:
        """Return how many layers were computed: each layer with experts counts in each pass."""
        return int(self._state.num_calls)

    @property
    def own_s(self) -> float:
        """Return the seconds of the engine's own steps, without waits for reads and products."""
        return float(self._state.own_s)

    def prefetch_counts(self) -> native.PrefetchCounts:
        """Return the counts of prefetches, see `Stats`."""
        assert self.address is not None, "the engine is closed"
        return native.prefetch_counts(self.address)

    @property
    def is_prefetching(self) -> bool:
        """Return whether experts are prefetched: not while that does not pay."""
        return bool(native.engine_is_prefetching(self.address))

    def level_counts(self) -> LevelCounts:
        """Return how often experts were used by level."""
        return level_counts(self._state, self.prefetch_counts().upgraded)

    def tier_counts(self) -> tuple[TierCounts, ...]:
        """Return what each device tier did, in their order."""
        return self._tiers.counts(self.address)

    def check_integrity(self) -> None:
        """Raise AssertionError unless the bookkeeping of every pool is consistent."""
        for number in range(len(self.pools)):
            for level in (HIGH, LOW):
                fault = native.slots_fault(native.engine_slots(self.address, number, level))
                assert fault is None, fault.decode()
        fault = native.engine_tiers_fault(self.address)
        assert fault is None, fault.decode()

    def lean(self, leaning: Leaning) -> None:
        """Have routers' choices lean to experts in slots. To be called before a context exists."""
        native.engine_set_leaning(self.address, leaning.bias, leaning.num_kept)

    # -------------------------------------------------------------- predictions
    def predict_by_routers(self, on: bool) -> None:
        """Prefetch what the routers predict, or with False nothing: routers cannot predict a forced
        choice."""
        self._predict = None
        self._state.predictions = _Predictions.BY_ROUTERS if on else _Predictions.NONE

    def predict_by(self, predict: Predict) -> None:
        """Prefetch what `predict` returns for a layer's number."""
        self._predict = predict
        self._state.predictions = _Predictions.BY_CALLER

    def _on_predict(self, layer: int, experts: Any) -> int:
        try:
            found = self._predict(layer) if self._predict is not None else None
            if found is not None:
                self.check_choice(layer, found)
                if len(set(found.tolist())) < len(found):
                    raise HaversackError(f"an expert of layer {layer} is predicted twice")
        except BaseException as error:  # it may not cross the C frame, so `after_pass` returns it
            self._error = error
            return -1
        if found is None:
            return 0
        for rank, expert in enumerate(found.tolist()):
            experts[rank] = expert
        return len(found)

    def check_choice(self, layer: int, experts: Experts) -> None:
        """Raise HaversackError if `layer` lacks one of `experts`, which a user gave."""
        most = self._geometry.layers[self._place[layer]].num_experts
        if experts.size and not 0 <= experts.min() <= experts.max() < most:
            raise HaversackError(
                f"experts {experts.min()} to {experts.max()} of layer {layer} are asked for: give"
                f" ids from 0 to {most - 1}"
            )

    # ------------------------------------------------------------------- passes
    def fail(self, error: BaseException) -> None:
        """End the pass under way with `error`."""
        self._error = self._error or error
        self._state.failure = _Failed.CALLER

    @property
    def goes_on(self) -> bool:
        """Whether passes may follow each other without `after_pass` in between."""
        return self._levels is None

    def after_pass(self, failure: int) -> BaseException | None:
        """Return the error of a pass, or of the last of several, that ended in `failure`, None for
        0. Afterwards the bookkeeping is consistent again."""
        assert self.address is not None, "the engine is closed"
        if self._levels is not None:
            self._levels.after_pass(self.address)
        if not failure:
            return None if self._levels is None else balance(self.address, self.pools)
        error, self._error = self._error, None
        told = self._failure(_Failed(failure), error)
        self._state.failure = _Failed.NOT
        return told

    def _failure(self, why: _Failed, error: BaseException | None) -> BaseException:
        match why:
            case _Failed.CALLER:
                assert error is not None, "a failure of the caller's has an exception"
                return error
            case _Failed.READ if self._state.failed_error:
                numbers = [getattr(self._state, "failed_" + name) for name in Failure._fields]
                return self.readers.error(Failure(*numbers))
            case _Failed.READ:
                return CancelledError("the call was cancelled before its experts were read")
            case _Failed.STOPPED:
                return CancelledError("the call was cancelled while it waited for the disk")
            case _Failed.OTHER_CHOICE:
                name = GraphNode(self._state.failed_node).name
                return _not_streamable(f"{name} uses another choice of experts than its layer's")
            case _Failed.MISSING:
                return _not_streamable("llama.cpp's graph did not show all products with experts")
            case _Failed.PRODUCT:
                return HaversackError(
                    "llama.cpp could not compute the experts: if memory is short, lower --batch or"
                    " --threads"
                )
            case _Failed.DEVICE:
                return self._tiers.failure(int(self._state.failed_tier))
            case _:
                return AssertionError("the books of the slots were wrong")

    def resize(self, number: int, num_slots: int) -> None:
        """Change the number of slots of pool `number`, between two passes. With two levels it gets
        the bytes of so many HIGH slots. Raises BudgetError if the system refuses the memory."""
        assert self.address is not None, "the engine is closed"
        pool = self.pools[number]
        if pool.low is not None:
            native.engine_resize_pool(self.address, number, num_slots)
            follow(self.address, self.pools, number)
        elif num_slots < pool.num_slots:
            native.engine_resize_pool(self.address, number, num_slots)
            pool.resize(num_slots)
        else:
            pool.resize(num_slots)
            native.engine_resize_pool(self.address, number, num_slots)
        pool.plan = replace(pool.plan, num_slots=num_slots)

    # --------------------------------------------------------------- warm start
    def start_warm(self, saved: Residents) -> None:
        """Restore the eviction rule's counts, and read the experts of `saved` back while no other
        read is wanted. To be called before the first pass. Raises ValueError if `saved` does not
        fit."""
        wanted = list(dict.fromkeys(saved.experts))
        if len(saved.memories) != len(self.pools) or not all(map(self._exists, wanted)):
            raise ValueError("it names experts that this model does not have")
        for number, memory in enumerate(saved.memories):
            self._check_memory(number, memory)
        for number, memory in enumerate(saved.memories):
            counts = np.concatenate([memory[name] for name in _COUNTS])
            native.slots_remember(
                native.engine_slots(self.address, number, HIGH),
                devices.address_of(counts),
                devices.address_of(memory["clock"]),
            )
        pairs = np.array([(self._place[layer], e) for layer, e in wanted], np.int32).reshape(-1, 2)
        native.engine_start_warm(self.address, devices.address_of(pairs), len(pairs))

    def _exists(self, expert: tuple[int, int]) -> bool:
        layer, expert_id = expert
        place = self._place.get(layer)
        return place is not None and 0 <= expert_id < self._geometry.layers[place].num_experts

    def _check_memory(self, number: int, memory: Memory) -> None:
        plan = self.pools[number].plan
        shapes = dict.fromkeys(_COUNTS, len(plan.layers) * plan.num_experts) | {"clock": 3}
        fits = memory.keys() == shapes.keys() and all(
            memory[name].shape == (size,) and np.isfinite(memory[name]).all()
            for name, size in shapes.items()
        )
        if not fits:
            raise ValueError("the memory is that of another rule, or of other experts")

    def residents(self) -> Residents | None:
        """Return the experts in slots and those that a warm start has not read yet, the most
        valuable first; None if no expert was used yet."""
        native.engine_withdraw(self.address)
        if self.hits + self.misses == 0:
            return None
        ranked = [
            (rank / num_slots, expert)
            for number in range(len(self.pools))
            for slots, num_slots in self._slots_of(number)
            for rank, expert in enumerate(self._residents_of(number, slots, num_slots))
        ]
        experts = [expert for _, expert in sorted(ranked)] + self._not_warm()
        memories = [self._memory_of(number) for number in range(len(self.pools))]
        return Residents(list(dict.fromkeys(experts)), memories)

    def _slots_of(self, number: int) -> list[tuple[int, int]]:
        """The addresses of all slots of a pool for whole copies, the host's and those of devices,
        and their numbers."""
        host = native.engine_slots(self.address, number, HIGH), self.pools[number].num_slots
        return [host, *self._tiers.slots_of(self.address, number)]

    def _residents_of(self, number: int, slots: int, num_slots: int) -> list[tuple[int, int]]:
        plan = self.pools[number].plan
        keys = np.empty(num_slots, np.int32)
        count = native.slots_residents(slots, devices.address_of(keys), len(keys))
        return [
            (plan.layers[k // plan.num_experts], k % plan.num_experts)
            for k in keys[:count].tolist()
        ]

    def _memory_of(self, number: int) -> Memory:
        plan = self.pools[number].plan
        counts = np.empty((len(_COUNTS), len(plan.layers) * plan.num_experts))
        clock = np.empty(3)
        slots = native.engine_slots(self.address, number, HIGH)
        native.slots_uses(slots, devices.address_of(counts), devices.address_of(clock))
        return {**dict(zip(_COUNTS, counts, strict=True)), "clock": clock}

    def held_copies(self) -> dict[int, list[int]]:
        """By layer, for each expert: 4 if it lies on a device, else 2 if its whole copy has a slot,
        1 if a low copy has, 3 if it has neither and one is being read, else 0. It may be called
        while a pass is computed, and is out of date at once."""
        levels = (HIGH,) if self._levels is None else (LOW, HIGH)
        held = dict[int, list[int]]()
        for number, pool in enumerate(self.pools):
            for row, layer in enumerate(pool.plan.layers):
                copies = held.setdefault(layer, [0] * pool.plan.num_experts)
                for level in levels:
                    slots = native.engine_slots(self.address, number, level)
                    for expert in range(pool.plan.num_experts):
                        state = native.slots_state(slots, row, expert)
                        if state == _READY:
                            copies[expert] = HELD_WHOLE if level == HIGH else HELD_LOW
                        elif state == _LOADING and not copies[expert]:
                            copies[expert] = BEING_READ
        self._mark_on_devices(held)
        return dict(sorted(held.items()))

    def _mark_on_devices(self, held: dict[int, list[int]]) -> None:
        for number, pool in enumerate(self.pools):
            for slots, _ in self._tiers.slots_of(self.address, number):
                for row, layer in enumerate(pool.plan.layers):
                    for expert in range(pool.plan.num_experts):
                        if native.slots_state(slots, row, expert) == _READY:
                            held[layer][expert] = ON_DEVICE

    def _not_warm(self) -> list[tuple[int, int]]:
        count = native.engine_not_warm(self.address, None, 0)
        pairs = np.empty((count, 2), np.int32)
        native.engine_not_warm(self.address, devices.address_of(pairs), count)
        layers = self._geometry.layers
        return [(layers[place].layer, expert) for place, expert in pairs.tolist()]

    def close(self) -> None:
        """Free the engine, after its device and with no read under way; may be called twice."""
        if self.address is not None:
            if self._levels is not None:
                self._levels.close(self.address)
            native.engine_delete(self.address)
            self.address = None


def _not_streamable(what: str) -> BindingError:
    return BindingError(f"{what}: this model cannot be streamed, raise --ram until all of it fits")
