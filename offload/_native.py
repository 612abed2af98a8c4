"""The binding to the engine in our own library. Its sources are in offload/native/; the functions
are listed in api.cpp, the structures in the headers that their docstrings name."""

import ctypes as c

from haversack.devices import _native as native
from haversack.devices._native import Address, CFunction, own
from haversack.devices.errors import BindingError

MAX_MATRICES = 4


class Build(c.Structure):
    """struct Build (native/ggml.hpp)"""

    _fields_ = (("llama_function", Address), ("cpu_function", Address), ("api_version", c.c_int32))


class Matrix(c.Structure):
    """struct Matrix (native/layer.hpp)"""

    _fields_ = (
        ("rooms", Address),
        *((name, c.c_int64) for name in ("stride", "rest", "offset", "num_bytes")),
        *((name, c.c_int64) for name in ("num_inputs", "num_rows")),
        *((name, c.c_int32) for name in ("file", "type")),
        ("file_stride", c.c_int64),
    )


class Layer(c.Structure):
    """struct Layer (native/layer.hpp)"""

    _fields_ = (
        *((name, c.c_int32) for name in ("number", "row", "pool", "num_matrices")),
        ("matrices", (Matrix * MAX_MATRICES) * 2),
        ("rests", Matrix * MAX_MATRICES),
    )


class Precision(c.Structure):
    """struct Precision (native/low_copies.hpp)"""

    _fields_ = (
        *((name, c.c_float) for name in ("low", "skip")),
        ("batch_low_share", c.c_double),
        *((name, Address) for name in ("digests", "rest_digests")),
        *((name, c.c_int32) for name in ("digests_per_layer", "first_file")),
    )


class PoolBytes(c.Structure):
    """struct PoolBytes (native/pool.hpp)"""

    _fields_ = (("total", c.c_int64), ("slot", c.c_int64 * 2), ("least_slots", c.c_int32 * 2))


Predict = CFunction(c.c_int32, c.c_int32, c.POINTER(c.c_int32))


class Caller(c.Structure):
    """struct Caller (native/engine.hpp)"""

    _fields_ = (("should_stop", own.ShouldStop), ("predict", Predict))


class EngineState(c.Structure):
    """struct EngineState (native/engine.hpp)"""

    _fields_ = (
        *((name, c.c_int32) for name in ("predictions", "failure")),
        *((name, Address) for name in ("failed_node", "failed_read")),
        *((name, c.c_int64) for name in ("failed_offset", "failed_need", "failed_got")),
        *((name, c.c_int32) for name in ("failed_file", "failed_error")),
        *((name, c.c_int64) for name in ("hits", "misses", "num_calls")),
        *((name, c.c_int64) for name in ("low", "skipped", "saved_bytes", "leaned")),
        ("own_s", c.c_double),
        ("failed_tier", c.c_int32),
    )


class TierPlan(c.Structure):
    """struct TierPlan (native/engine.hpp)"""

    _fields_ = (
        *((name, Address) for name in ("device", "num_slots")),
        ("workspace_bytes", c.c_int64),
        ("num_staging", c.c_int32),
        *((name, c.c_bool) for name in ("is_exclusive", "is_fixed")),
    )


class Promotion(c.Structure):
    """struct Promotion (native/promotions.hpp)"""

    _fields_ = tuple(
        (name, c.c_int32) for name in ("key", "host_slot", "device_slot", "leaving", "left_slot")
    )


class TierState(c.Structure):
    """struct TierState (native/device_tier.hpp)"""

    _fields_ = (
        *((name, c.c_int64) for name in ("hits", "promoted", "moved_bytes", "streamed")),
        *((name, c.c_int32) for name in ("is_lost", "streams_all")),
    )


class PrefetchCounts(c.Structure):
    """struct PrefetchCounts (native/prefetch.hpp)"""

    _fields_ = tuple(
        (name, c.c_int64) for name in ("started", "right", "possible", "needed", "upgraded")
    )


class SimulatedShape(c.Structure):
    """struct SimulatedShape (native/simulated.hpp)"""

    _fields_ = (
        ("memory_bytes", c.c_int64),
        *((name, c.c_double) for name in ("to_device_bytes_s", "to_host_bytes_s", "latency_s")),
        *((name, c.c_double) for name in ("memory_bytes_s", "launch_s")),
        *((name, c.c_int32) for name in ("num_threads", "computes")),
    )


class SimulatedCounts(c.Structure):
    """struct SimulatedCounts (native/simulated.hpp)"""

    _fields_ = (
        *((name, c.c_int64) for name in ("used_bytes", "peak_bytes")),
        *((name, c.c_int64) for name in ("to_device_bytes", "to_host_bytes")),
        *((name, c.c_int64) for name in ("num_copies", "num_graphs", "num_streams")),
        ("late_s", c.c_double),
    )


_A, _S, _L, _Q, _B = Address, c.c_char_p, c.c_int32, c.c_size_t, c.c_bool
_prototype = own.own_prototype
_device_register = _prototype("device_register", _S, c.POINTER(Build))
expert_buffer_new = _prototype("expert_buffer_new", _A)
expert_buffer_type = _prototype("expert_buffer_type", _A, _A)
expert_buffer_finish_loading = _prototype("expert_buffer_finish_loading", None, _A)
expert_buffer_failed = _prototype("expert_buffer_failed", _B, _A)
_expert_buffer_weights = _prototype("expert_buffer_weights", _Q, _A, c.POINTER(_A), _Q)
expert_buffer_delete = _prototype("expert_buffer_delete", None, _A)
weight_memory = _prototype("weight_memory", _A)
device_new = _prototype("device_new", _A, _A, c.c_int)
device_add_weight = _prototype("device_add_weight", None, _A, _A, c.c_int, c.c_int, _B)
device_can_lean = _prototype("device_can_lean", _B, _A)
device_delete = _prototype("device_delete", None, _A)
engine_new = _prototype("engine_new", _A, c.POINTER(Caller), _A, _L, c.c_int64)
engine_add_pool = _prototype("engine_add_pool", None, _A, _L, _L, _L, _L)
engine_add_pool_of_two = _prototype(
    "engine_add_pool_of_two", None, _A, _L, _L, c.POINTER(PoolBytes), _L
)
engine_set_leaning = _prototype("engine_set_leaning", None, _A, c.c_float, _L)
engine_set_precision = _prototype("engine_set_precision", None, _A, c.POINTER(Precision))
engine_damaged = _prototype("engine_damaged", _Q, _A, _A, _Q)
engine_sample_weights = _prototype("engine_sample_weights", None, _A, _Q)
engine_sampled_weights = _prototype("engine_sampled_weights", _Q, _A, _A, _Q)
engine_set_thresholds = _prototype("engine_set_thresholds", None, _A, c.c_float, c.c_float)
engine_balance = _prototype("engine_balance", _B, _A)
engine_num_slots = _prototype("engine_num_slots", _L, _A, _L, _L)
engine_add_layer = _prototype("engine_add_layer", None, _A, c.POINTER(Layer))
engine_add_tier = _prototype("engine_add_tier", _B, _A, c.POINTER(TierPlan))
engine_fill_tiers = _prototype("engine_fill_tiers", _L, _A)
engine_tier_state = _prototype("engine_tier_state", c.POINTER(TierState), _A, _L)
engine_tier_slots = _prototype("engine_tier_slots", _A, _A, _L, _L)
engine_tiers_fault = _prototype("engine_tiers_fault", _S, _A)
engine_finish = _prototype("engine_finish", None, _A)
engine_state = _prototype("engine_state", c.POINTER(EngineState), _A)
_engine_counts = _prototype("engine_counts", None, _A, c.POINTER(PrefetchCounts))
engine_pass_end = native.address_of_function(_prototype("engine_end_pass", _L, _A, _B))
engine_is_prefetching = _prototype("engine_is_prefetching", _B, _A)
engine_withdraw = _prototype("engine_withdraw", None, _A)
engine_resize_pool = _prototype("engine_resize_pool", None, _A, _L, _L)
engine_slots = _prototype("engine_slots", _A, _A, _L, _L)
engine_start_warm = _prototype("engine_start_warm", None, _A, _A, _Q)
engine_not_warm = _prototype("engine_not_warm", _Q, _A, _A, _Q)
engine_delete = _prototype("engine_delete", None, _A)
slots_state = _prototype("slots_state", _L, _A, _L, _L)
slots_resize = _prototype("slots_resize", None, _A, _L)
slots_residents = _prototype("slots_residents", _Q, _A, _A, _Q)
slots_uses = _prototype("slots_uses", None, _A, _A, _A)
slots_remember = _prototype("slots_remember", None, _A, _A, _A)
slots_fault = _prototype("slots_fault", _S, _A)
router_learn = _prototype("router_learn", _A, _A)
router_input = _prototype("router_input", _A, _A)
router_probabilities = _prototype("router_probabilities", _A, _A)
router_choose = _prototype("router_choose", _L, _A, _A, _L, _A)
router_num_experts = _prototype("router_num_experts", _L, _A)
router_delete = _prototype("router_delete", None, _A)
_simulated_new = _prototype("simulated_new", _A, c.POINTER(SimulatedShape), _S, _S)
device_of_simulated = _prototype("simulated_device", _A, _A)
_simulated_counts = _prototype("simulated_counts", None, _A, c.POINTER(SimulatedCounts))
simulated_fail = _prototype("simulated_fail", None, _A, _L, c.c_int64)
simulated_delete = _prototype("simulated_delete", None, _A)
# These serve tests, which hold books, rules and products without an engine against Python's.
slots_new = _prototype("slots_new", _A, _L, _L, _L, _L)
slots_find = _prototype("slots_find", _L, _A, _L, _L)
slots_num_unpinned = _prototype("slots_num_unpinned", _L, _A)
slots_use = _prototype("slots_use", None, _A, _L, _A, _Q)
slots_claim = _prototype("slots_claim", None, _A, _L, _A, _Q, _A)
slots_borrow = _prototype("slots_borrow", None, _A, _L, _A)
slots_fill = _prototype("slots_fill", None, _A, _L)
slots_drop = _prototype("slots_drop", None, _A, _L)
slots_pin = _prototype("slots_pin", None, _A, _L)
slots_unpin = _prototype("slots_unpin", None, _A, _L)
slots_recover = _prototype("slots_recover", None, _A)
slots_outlasting = _prototype("slots_outlasting", _Q, _A, _L, _A, _Q, _A)
slots_delete = _prototype("slots_delete", None, _A)
pool_new = _prototype("pool_new", _A, _L, _L, c.POINTER(PoolBytes), _L)
pool_level = _prototype("pool_level", _A, _A, _L)
pool_use = _prototype("pool_use", None, _A, _L, _A, _A, _Q)
pool_find = _prototype("pool_find", _L, _A, _L, _L, _L, _A)
pool_read_levels = _prototype("pool_read_levels", None, _A, _A, _Q)
pool_fill = _prototype("pool_fill", None, _A, _L, _L)
pool_balance = _prototype("pool_balance", _Q, _A, _A)
pool_next_upgrade = _prototype("pool_next_upgrade", _L, _A)
pool_delete = _prototype("pool_delete", None, _A)
slots_on_device = _prototype("slots_on_device", _A, _A, _L)
promotions_new = _prototype("promotions_new", _A, _A, _A, _B)
promotions_next = _prototype("promotions_next", _B, _A, c.POINTER(Promotion))
promotions_take_down = _prototype("promotions_take_down", None, _A, c.POINTER(Promotion))
promotions_finish = _prototype("promotions_finish", None, _A, c.POINTER(Promotion), _B)
promotions_delete = _prototype("promotions_delete", None, _A)
precision_row_levels = _prototype("precision_row_levels", None, _A, _Q, c.c_float, c.c_float, _A)
precision_batch_levels = _prototype("precision_batch_levels", None, _A, _Q, c.c_double, _A)
lean = _prototype("lean", _L, _A, _A, _A, _L, _L, c.c_float, _L)
products_compute = _prototype(
    "products_compute", c.c_int32, _A, c.POINTER(Matrix), _L, _L, c.c_int64, c.c_int
)
build = native.chosen.build
wrong = _device_register(
    c.byref(
        Build(
            native.llama_function("llama_decode"),
            native.address_of_function(native.ggml_backend_cpu_init),
            build.api_version,
        )
    )
)
if wrong:
    raise BindingError(
        f"haversack's device cannot be registered: {wrong.decode()}; reinstall the build of"
        f" llama.cpp: `pip install --force-reinstall {build.package}=={build.version}`"
    )


def placed_weights(buffer: int) -> list[int]:
    """The addresses of the tensors that llama.cpp has placed in an expert buffer."""
    count = _expert_buffer_weights(buffer, None, 0)
    found = (Address * count)()
    _expert_buffer_weights(buffer, found, count)
    return [int(address or 0) for address in found]


def prefetch_counts(engine: int) -> PrefetchCounts:
    """What was prefetched since the engine was made."""
    counts = PrefetchCounts()
    _engine_counts(engine, c.byref(counts))
    return counts


def simulated_counts(simulated: int) -> SimulatedCounts:
    """What a simulated device did since it was made."""
    counts = SimulatedCounts()
    _simulated_counts(simulated, c.byref(counts))
    return counts


def new_simulated(shape: SimulatedShape, name: str, description: str) -> int:
    """Register a simulated device; return its address for the functions above."""
    return int(_simulated_new(c.byref(shape), name.encode(), description.encode()))
