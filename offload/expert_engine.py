"""The engine that brings experts into slots and keeps account of them. Its sources are in
offload/native/. Python starts it, watches it and ends it, and takes no part in a pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.cache.precision import HIGH, LOW
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
from haversack.offload.pool import ExpertPool, PoolPlan, resting_place, spare_slots
from haversack.offload.precision import LevelCounts, Precision
from haversack.offload.resident_file import Memory, Residents
from haversack.quant.blocks import block_type
from haversack.quant.gguf import ExpertCopy, ExpertLayer, ExpertMatrix, ModelGeometry
from haversack.quant.lowbit import LowCopies
from haversack.quant.records import Record, give_up_record

Experts = npt.NDArray[np.integer]
Predict = Callable[[int], Experts | None]  # predicted experts of a layer, the likeliest first

_LEAST_ROWS = 1024  # of several rows' experts in one graph: enough to keep the cores busy
_MOST_TABLE_BYTES = 8 * 1024 * 1024  # of llama.cpp's table of matrices and rows, see engine.cpp
_MAPPING_BYTES = 8  # of a row there
_SAMPLED_ROWS = 512  # of all layers, which thresholds are fitted to
_COUNTS = ("uses", "last_pass", "last_use")  # what the eviction rule has learnt, in this order


class _Failed(IntEnum):
    """enum Failure (native/engine.hpp)"""

    NOT, CALLER, READ, STOPPED, OTHER_CHOICE, PRODUCT, BOOKS, MISSING = range(8)


class _Predictions(IntEnum):
    """enum Predictions (native/engine.hpp)"""

    NONE, BY_ROUTERS, BY_CALLER = range(3)


def _most_rows(batch_tokens: int) -> int:
    """Return the most rows of one product: a batch may send all its rows to one expert."""
    return max(_LEAST_ROWS, batch_tokens)


def scratch_bytes(layers: Sequence[ExpertLayer], batch_tokens: int, experts_per_tok: int) -> int:
    """Return the most memory that the engine takes besides slots for such layers and batches."""
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    row_bytes = max(_row_bytes(matrix) for matrix in matrices)
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
        block_type(row_type(copy.type_id)).row_bytes(matrix.row_elements)
        for layer, copies in zip(layers, low.copies, strict=True)
        for matrix, copy in zip(layer.matrices, copies, strict=True)
    )
    return (batch_tokens * experts_per_tok + _most_rows(batch_tokens)) * row_bytes


def _row_bytes(matrix: ExpertMatrix) -> int:
    return block_type(row_type(matrix.type_id)).row_bytes(matrix.row_elements)


def _matrix(pool: ExpertPool, index: int, matrix: ExpertMatrix, copy: ExpertCopy) -> native.Matrix:
    return native.Matrix(
        pool.address(index),
        pool.stride(index),
        resting_place(copy),
        copy.offset,
        copy.num_bytes,
        matrix.row_elements,
        matrix.num_rows,
        copy.part,
        copy.type_id,
        copy.stride_bytes,
    )


class ExpertEngine:
    """See the module. `pools` and `readers` must outlive it; the readers may be closed before. With
    `precision` the pools have slots of two levels, and the readers the files of the low copies
    after those of the model."""

    def __init__(
        self,
        geometry: ModelGeometry,
        pools: Sequence[ExpertPool],
        readers: Readers,
        stop: StopFlag,
        batch_tokens: int,
        precision: Precision | None = None,
    ) -> None:
        self._geometry, self.pools, self._readers = geometry, pools, readers
        self._precision = precision
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
        native.engine_finish(self.address)
        if precision is not None:
            native.engine_set_precision(self.address, self._native_precision(precision))
            if precision.fitted is not None:
                size = _SAMPLED_ROWS * geometry.num_experts_per_tok
                native.engine_sample_weights(self.address, size)
        self._state = native.engine_state(self.address).contents
        self._state.predictions = _Predictions.BY_ROUTERS

    def _add_pool(self, plan: PoolPlan) -> None:
        rows, spare = len(plan.layers), spare_slots(plan.num_slots)
        if not plan.low_shape:
            native.engine_add_pool(self.address, rows, plan.num_experts, plan.num_slots, spare)
            return
        shared = plan.level_bytes
        levels = native.PoolBytes(shared.total, shared.slot, shared.least_slots)
        native.engine_add_pool_of_two(self.address, rows, plan.num_experts, levels, spare)

    def _native_precision(self, precision: Precision) -> native.Precision:
        rule, low = precision.thresholds, precision.low
        of_slices = [
            None if digests is None else np.ascontiguousarray(digests)
            for digests in (low.digests, low.rest_digests)
        ]
        return native.Precision(
            rule.low,
            rule.skip,
            precision.batch_low_share,
            *(None if digests is None else devices.address_of(digests) for digests in of_slices),
            0 if low.digests is None else low.digests.shape[1],
            len(self._geometry.paths),
        )

    def _layer(self, layer: ExpertLayer) -> native.Layer:
        number = next(n for n, pool in enumerate(self.pools) if layer.layer in pool.plan.layers)
        pool = self.pools[number]
        row = pool.plan.layers.index(layer.layer)
        made = native.Layer(layer.layer, row, number, len(layer.matrices))
        for index, matrix in enumerate(layer.matrices):
            made.matrices[HIGH][index] = _matrix(pool, index, matrix, matrix.copies[0])
            if self._precision is not None:
                copy = self._precision.low.copies[self._place[layer.layer]][index]
                assert pool.low is not None, "a plan for two levels has slots of both"
                made.matrices[LOW][index] = _matrix(pool.low, index, matrix, copy)
                made.rests[index] = self._rest(pool, layer, index)
        return made

    def _rest(self, pool: ExpertPool, layer: ExpertLayer, index: int) -> native.Matrix:
        """Return the matrix of what a nested low copy lacks; one without bytes if it lacks all."""
        assert self._precision is not None, "a model of two levels"
        rests = self._precision.low.rests
        rest = None if rests is None else rests[self._place[layer.layer]][index]
        if rest is None:
            return native.Matrix()
        matrix = layer.matrices[index]
        made = _matrix(pool, index, matrix, rest)
        made.rest = resting_place(matrix.copies[0]) + matrix.expert_bytes - rest.num_bytes
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

    @property
    def readers(self) -> Readers:
        """Return the readers that bring experts into slots."""
        return self._readers

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
        state = self._state
        low, skipped, saved_bytes = (int(n) for n in (state.low, state.skipped, state.saved_bytes))
        high = self.hits + self.misses - low - skipped
        return LevelCounts(high, low, skipped, int(self.prefetch_counts().upgraded), saved_bytes)

    def check_integrity(self) -> None:
        """Raise AssertionError unless the bookkeeping of every pool is consistent."""
        for number in range(len(self.pools)):
            for level in (HIGH, LOW):
                fault = native.slots_fault(native.engine_slots(self.address, number, level))
                assert fault is None, fault.decode()

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
        return self._precision is None

    def after_pass(self, failure: int) -> BaseException | None:
        """Return the error of a pass, or of the last of several, that ended in `failure`, None for
        0. Afterwards the bookkeeping is consistent again."""
        if self._precision is not None:
            self._give_up_damaged(self._precision.low)
            self._fit_thresholds(self._precision)
        if not failure:
            return self._balance() if self._precision is not None else None
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
                return self._readers.error(Failure(*numbers))
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
            case _:
                return AssertionError("the books of the slots were wrong")

    def _fit_thresholds(self, precision: Precision) -> None:
        """Have the thresholds fitted to the rows that were computed, when they are enough."""
        count = native.engine_sampled_weights(self.address, None, 0)
        if count and precision.fitted is not None:
            used = self._geometry.num_experts_per_tok
            weights = np.empty((count // used, used), np.float32)
            native.engine_sampled_weights(self.address, devices.address_of(weights), count)
            found = precision.fitted(weights)
            native.engine_set_thresholds(self.address, found.low, found.skip)

    def _give_up_damaged(self, low: LowCopies) -> None:
        """Note in their file which low copies were found damaged."""
        count = native.engine_damaged(self.address, None, 0)
        if count:
            found = np.empty((count, 3), np.int32)
            native.engine_damaged(self.address, devices.address_of(found), count)
            for record in found.tolist():
                give_up_record(low.paths[0], Record(*record))

    def _balance(self) -> BudgetError | None:
        """Move bytes to the level that is short of slots."""
        if native.engine_balance(self.address):
            try:
                for number in range(len(self.pools)):
                    self._follow(number)
            except BudgetError as error:
                return error
        return None

    def _follow(self, number: int) -> None:
        """Have memory for as many slots of each level as the engine has. Raises BudgetError if the
        system refuses it; the engine then has fewer slots."""
        high = self.pools[number]
        assert high.low is not None, "a plan for two levels has slots of both"
        levels = [
            (level, pool, native.engine_num_slots(self.address, number, level))
            for level, pool in ((HIGH, high), (LOW, high.low))
        ]
        for level, pool, num_slots in sorted(levels, key=lambda each: each[2] - each[1].num_slots):
            try:
                pool.resize(num_slots)
            except BudgetError:
                slots = native.engine_slots(self.address, number, level)
                native.slots_resize(slots, pool.num_slots)
                raise

    def resize(self, number: int, num_slots: int) -> None:
        """Change the number of slots of pool `number`, between two passes. With two levels it gets
        the bytes of so many HIGH slots. Raises BudgetError if the system refuses the memory."""
        pool = self.pools[number]
        if pool.low is not None:
            native.engine_resize_pool(self.address, number, num_slots)
            self._follow(number)
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
            (rank / pool.num_slots, expert)
            for number, pool in enumerate(self.pools)
            for rank, expert in enumerate(self._residents_of(number))
        ]
        experts = [expert for _, expert in sorted(ranked)] + self._not_warm()
        memories = [self._memory_of(number) for number in range(len(self.pools))]
        return Residents(list(dict.fromkeys(experts)), memories)

    def _residents_of(self, number: int) -> list[tuple[int, int]]:
        plan = self.pools[number].plan
        keys = np.empty(self.pools[number].num_slots, np.int32)
        slots = native.engine_slots(self.address, number, HIGH)
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
        """By layer, for each expert: 2 if its whole copy has a slot, 1 if a low copy has, else 0.
        It may be called while a pass is computed, and is out of date at once."""
        levels = (HIGH,) if self._precision is None else (LOW, HIGH)
        held = dict[int, list[int]]()
        for number, pool in enumerate(self.pools):
            for row, layer in enumerate(pool.plan.layers):
                copies = held.setdefault(layer, [0] * pool.plan.num_experts)
                for level in levels:
                    slots = native.engine_slots(self.address, number, level)
                    for expert in range(pool.plan.num_experts):
                        if native.slots_find(slots, row, expert) >= 0:
                            copies[expert] = 2 if level == HIGH else 1
        return dict(sorted(held.items()))

    def _not_warm(self) -> list[tuple[int, int]]:
        count = native.engine_not_warm(self.address, None, 0)
        pairs = np.empty((count, 2), np.int32)
        native.engine_not_warm(self.address, devices.address_of(pairs), count)
        layers = self._geometry.layers
        return [(layers[place].layer, expert) for place, expert in pairs.tolist()]

    def close(self) -> None:
        """Free the engine, after its device and with no read under way; may be called twice."""
        if self.address is not None:
            native.engine_delete(self.address)
            self.address = None


def _not_streamable(what: str) -> BindingError:
    return BindingError(f"{what}: this model cannot be streamed, raise --ram until all of it fits")
