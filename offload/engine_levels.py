"""Python's part in an engine whose experts have two precisions: what it is told of the low copies,
and what is done between its passes."""

import logging
from collections.abc import Sequence

import numpy as np

from haversack.cache.precision import HIGH, LOW
from haversack.devices import _native as devices
from haversack.devices.errors import BudgetError
from haversack.offload import _native as native
from haversack.offload.pool import ExpertPool, resting_place
from haversack.offload.precision import LevelCounts, Precision
from haversack.quant.gguf import ExpertCopy, ExpertLayer, ExpertMatrix, ModelGeometry
from haversack.quant.records import Record, give_up_records

_log = logging.getLogger("haversack.low")

_SAMPLED_ROWS = 512  # of all layers, which thresholds are fitted to


def native_matrix(
    pool: ExpertPool, index: int, matrix: ExpertMatrix, copy: ExpertCopy
) -> native.Matrix:
    """Return where matrix `index` of a layer has its slots in `pool`, and its bytes in a file."""
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


class EngineLevels:
    """See the module. The engine reads memory of this object, which must outlive it."""

    def __init__(self, geometry: ModelGeometry, precision: Precision) -> None:
        self._geometry, self._precision = geometry, precision
        self._place = {layer.layer: place for place, layer in enumerate(geometry.layers)}
        self._digests = [
            None if digests is None else np.ascontiguousarray(digests)
            for digests in (precision.low.digests, precision.low.rest_digests)
        ]
        self._damaged = set[tuple[int, int]]()  # the layer's index, the expert

    def start(self, address: int) -> None:
        """Tell the engine at `address`, which has all its layers, how the levels are chosen."""
        rule, low = self._precision.thresholds, self._precision.low
        of_levels = native.Precision(
            rule.low,
            rule.skip,
            self._precision.batch_low_share,
            *(None if one is None else devices.address_of(one) for one in self._digests),
            0 if low.digests is None else low.digests.shape[1],
            len(self._geometry.paths),
        )
        native.engine_set_precision(address, of_levels)
        if self._precision.fitted is not None:
            size = _SAMPLED_ROWS * self._geometry.num_experts_per_tok
            native.engine_sample_weights(address, size)

    def add_low(self, made: native.Layer, pool: ExpertPool, layer: ExpertLayer) -> None:
        """Add to what the engine is told of `layer` where its low copies lie."""
        assert pool.low is not None, "a plan for two levels has slots of both"
        copies = self._precision.low.copies[self._place[layer.layer]]
        for index, (matrix, copy) in enumerate(zip(layer.matrices, copies, strict=True)):
            made.matrices[LOW][index] = native_matrix(pool.low, index, matrix, copy)
            made.rests[index] = self._rest(pool, layer, index)

    def _rest(self, pool: ExpertPool, layer: ExpertLayer, index: int) -> native.Matrix:
        """Return the matrix of what a nested low copy lacks; one without bytes if it lacks all."""
        rests = self._precision.low.rests
        rest = None if rests is None else rests[self._place[layer.layer]][index]
        if rest is None:
            return native.Matrix()
        matrix = layer.matrices[index]
        made = native_matrix(pool, index, matrix, rest)
        made.rest = resting_place(matrix.copies[0]) + matrix.expert_bytes - rest.num_bytes
        return made

    def after_pass(self, address: int) -> None:
        """Note in their file which low copies were found damaged, and have the thresholds fitted to
        the rows that were computed, when they are enough."""
        self._give_up_damaged(address)
        self._fit_thresholds(address)

    def close(self, address: int) -> None:
        """Tell how many experts' low copies were found damaged: a line for all of them."""
        self._give_up_damaged(address)
        if self._damaged:
            _log.warning(
                "%s: %d experts have a damaged low copy, and are read from the model's file:"
                " `haversack prepare`, with the options that made the copies, makes them anew",
                self._precision.low.paths[0], len(self._damaged),
            )  # fmt: skip

    def _give_up_damaged(self, address: int) -> None:
        count = native.engine_damaged(address, None, 0)
        if count:
            found = np.empty((count, 3), np.int32)
            native.engine_damaged(address, devices.address_of(found), count)
            records = [Record(*numbers) for numbers in found.tolist()]
            give_up_records(self._precision.low.paths[0], records)
            self._damaged |= {(record.layer_idx, record.expert) for record in records}

    def _fit_thresholds(self, address: int) -> None:
        count = native.engine_sampled_weights(address, None, 0)
        if count and self._precision.fitted is not None:
            used = self._geometry.num_experts_per_tok
            weights = np.empty((count // used, used), np.float32)
            native.engine_sampled_weights(address, devices.address_of(weights), count)
            found = self._precision.fitted(weights)
            native.engine_set_thresholds(address, found.low, found.skip)


def level_counts(state: native.EngineState, upgraded: int) -> LevelCounts:
    """Return how often experts were used by level."""
    low, skipped = state.low, state.skipped
    high = state.hits + state.misses - low - skipped
    return LevelCounts(high, low, skipped, upgraded, state.saved_bytes, state.leaned)


def balance(address: int, pools: Sequence[ExpertPool]) -> BudgetError | None:
    """Move bytes to the level that is short of slots. Returns the error of memory that the system
    refused."""
    if native.engine_balance(address):
        try:
            for number in range(len(pools)):
                follow(address, pools, number)
        except BudgetError as error:
            return error
    return None


def follow(address: int, pools: Sequence[ExpertPool], number: int) -> None:
    """Have memory for as many slots of each level as the engine has. Raises BudgetError if the
    system refuses it; the engine then has fewer slots."""
    high = pools[number]
    assert high.low is not None, "a plan for two levels has slots of both"
    levels = [
        (level, pool, native.engine_num_slots(address, number, level))
        for level, pool in ((HIGH, high), (LOW, high.low))
    ]
    for level, pool, num_slots in sorted(levels, key=lambda each: each[2] - each[1].num_slots):
        try:
            pool.resize(num_slots)
        except BudgetError:
            slots = native.engine_slots(address, number, level)
            native.slots_resize(slots, pool.num_slots)
            raise
