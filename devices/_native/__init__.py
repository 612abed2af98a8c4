"""All uses of ctypes: ggml here, libllama in `llama`, and our own library in `own`.

The libraries of a build of llama.cpp are chosen and loaded by `builds`, which refuses one whose
layouts are not known. Here are ggml's structures and prototypes (the C prototype stands beside
each), and a few helpers for memory at an address. Everything above sees integers (addresses), bytes
and NumPy arrays.
"""

import ctypes as c
import sys
from functools import lru_cache
from typing import Any

import numpy as np

from haversack.devices._native import builds
from haversack.devices._native.libraries import code_address, prototype
from haversack.devices.errors import BindingError

Address = c.c_void_p
CFunction = c.CFUNCTYPE

chosen = builds.load()
_base, _cpu, _, _llama = chosen.libraries


# ----------------------------------------------------------------- structures
class Tensor(c.Structure):
    """struct ggml_tensor"""

    _fields_ = (
        ("type", c.c_int),
        ("buffer", Address),
        ("ne", c.c_int64 * 4),
        ("nb", c.c_size_t * 4),
        ("op", c.c_int),
        ("op_params", c.c_int32 * 16),
        ("flags", c.c_int32),
        ("src", Address * 10),
        ("view_src", Address),
        ("view_offs", c.c_size_t),
        ("data", Address),
        ("name", c.c_char * 64),
        ("extra", Address),
        ("padding", c.c_char * 8),
    )


class GgufInitParams(c.Structure):
    """struct gguf_init_params"""

    _fields_ = (("no_alloc", c.c_bool), ("ctx", c.POINTER(Address)))


class GgmlInitParams(c.Structure):
    """struct ggml_init_params"""

    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", Address), ("no_alloc", c.c_bool))


class TypeTraits(c.Structure):
    """struct ggml_type_traits"""

    _fields_ = (
        ("type_name", c.c_char_p),
        ("blck_size", c.c_int64),
        ("blck_size_interleave", c.c_int64),
        ("type_size", c.c_size_t),
        ("is_quantized", c.c_bool),
        ("to_float", CFunction(None, Address, Address, c.c_int64)),
        ("from_float_ref", Address),
    )


class TypeTraitsCpu(c.Structure):
    """struct ggml_type_traits_cpu"""

    _fields_ = (
        ("from_float", CFunction(None, Address, Address, c.c_int64)),
        ("vec_dot", Address),
        ("vec_dot_type", c.c_int),
        ("nrows", c.c_int64),
    )


SetTensorData = CFunction(None, Address, Address)


class BufferOverride(c.Structure):
    """struct llama_model_tensor_buft_override"""

    _fields_ = (("pattern", c.c_char_p), ("buft", Address))


# ----------------------------------------------------------------- prototypes
_A, _S, _I = Address, c.c_char_p, c.c_int

# struct gguf_context * gguf_init_from_file(const char * fname, struct gguf_init_params params)
gguf_init_from_file = prototype(_base, "gguf_init_from_file", _A, _S, GgufInitParams)
# struct gguf_context * gguf_init_empty(void)
gguf_init_empty = prototype(_base, "gguf_init_empty", _A)
# void gguf_free(struct gguf_context * ctx)
gguf_free = prototype(_base, "gguf_free", None, _A)
# size_t gguf_get_data_offset(const struct gguf_context * ctx)
gguf_get_data_offset = prototype(_base, "gguf_get_data_offset", c.c_size_t, _A)
# int64_t gguf_find_key(const struct gguf_context * ctx, const char * key)
gguf_find_key = prototype(_base, "gguf_find_key", c.c_int64, _A, _S)
# enum gguf_type gguf_get_kv_type(const struct gguf_context * ctx, int64_t key_id)
gguf_get_kv_type = prototype(_base, "gguf_get_kv_type", _I, _A, c.c_int64)
# enum gguf_type gguf_get_arr_type(const struct gguf_context * ctx, int64_t key_id)
gguf_get_arr_type = prototype(_base, "gguf_get_arr_type", _I, _A, c.c_int64)
# size_t gguf_get_arr_n(const struct gguf_context * ctx, int64_t key_id)
gguf_get_arr_n = prototype(_base, "gguf_get_arr_n", c.c_size_t, _A, c.c_int64)
# const void * gguf_get_arr_data(const struct gguf_context * ctx, int64_t key_id)
gguf_get_arr_data = prototype(_base, "gguf_get_arr_data", _A, _A, c.c_int64)
# const char * gguf_get_val_str(const struct gguf_context * ctx, int64_t key_id)
gguf_get_val_str = prototype(_base, "gguf_get_val_str", _S, _A, c.c_int64)
# const void * gguf_get_val_data(const struct gguf_context * ctx, int64_t key_id)
gguf_get_val_data = prototype(_base, "gguf_get_val_data", _A, _A, c.c_int64)
# int64_t gguf_get_n_tensors(const struct gguf_context * ctx)
gguf_get_n_tensors = prototype(_base, "gguf_get_n_tensors", c.c_int64, _A)
# const char * gguf_get_tensor_name(const struct gguf_context * ctx, int64_t tensor_id)
gguf_get_tensor_name = prototype(_base, "gguf_get_tensor_name", _S, _A, c.c_int64)
# size_t gguf_get_tensor_offset(const struct gguf_context * ctx, int64_t tensor_id)
gguf_get_tensor_offset = prototype(_base, "gguf_get_tensor_offset", c.c_size_t, _A, c.c_int64)
# size_t gguf_get_tensor_size(const struct gguf_context * ctx, int64_t tensor_id)
gguf_get_tensor_size = prototype(_base, "gguf_get_tensor_size", c.c_size_t, _A, c.c_int64)
# enum ggml_type gguf_get_tensor_type(const struct gguf_context * ctx, int64_t tensor_id)
gguf_get_tensor_type = prototype(_base, "gguf_get_tensor_type", _I, _A, c.c_int64)
# const int64_t * gguf_get_tensor_ne(const struct gguf_context * ctx, int64_t tensor_id)
gguf_get_tensor_ne = prototype(_base, "gguf_get_tensor_ne", c.POINTER(c.c_int64 * 4), _A, c.c_int64)
# void gguf_set_kv(struct gguf_context * ctx, const struct gguf_context * src)
gguf_set_kv = prototype(_base, "gguf_set_kv", None, _A, _A)
# int64_t gguf_remove_key(struct gguf_context * ctx, const char * key)
gguf_remove_key = prototype(_base, "gguf_remove_key", c.c_int64, _A, _S)
# void gguf_set_val_u32(struct gguf_context * ctx, const char * key, uint32_t val)
gguf_set_val_u32 = prototype(_base, "gguf_set_val_u32", None, _A, _S, c.c_uint32)
# void gguf_set_val_f32(struct gguf_context * ctx, const char * key, float val)
gguf_set_val_f32 = prototype(_base, "gguf_set_val_f32", None, _A, _S, c.c_float)
# void gguf_set_val_bool(struct gguf_context * ctx, const char * key, bool val)
gguf_set_val_bool = prototype(_base, "gguf_set_val_bool", None, _A, _S, c.c_bool)
# void gguf_set_val_str(struct gguf_context * ctx, const char * key, const char * val)
gguf_set_val_str = prototype(_base, "gguf_set_val_str", None, _A, _S, _S)
# void gguf_set_arr_data(gguf, const char * key, enum gguf_type, const void * data, size_t n)
gguf_set_arr_data = prototype(_base, "gguf_set_arr_data", None, _A, _S, _I, _A, c.c_size_t)
# void gguf_add_tensor(struct gguf_context * ctx, const struct ggml_tensor * tensor)
gguf_add_tensor = prototype(_base, "gguf_add_tensor", None, _A, _A)
# void gguf_set_tensor_type(struct gguf_context * ctx, const char * name, enum ggml_type type)
gguf_set_tensor_type = prototype(_base, "gguf_set_tensor_type", None, _A, _S, _I)
# size_t gguf_get_meta_size(const struct gguf_context * ctx)
gguf_get_meta_size = prototype(_base, "gguf_get_meta_size", c.c_size_t, _A)
# void gguf_get_meta_data(const struct gguf_context * ctx, void * data)
gguf_get_meta_data = prototype(_base, "gguf_get_meta_data", None, _A, _A)

# ggml_abort_callback_t ggml_set_abort_callback(ggml_abort_callback_t callback)
AbortCallback = CFunction(None, c.c_char_p)
ggml_set_abort_callback = prototype(_base, "ggml_set_abort_callback", Address, AbortCallback)
# struct ggml_context * ggml_init(struct ggml_init_params params)
ggml_init = prototype(_base, "ggml_init", _A, GgmlInitParams)
# void ggml_free(struct ggml_context * ctx)
ggml_free = prototype(_base, "ggml_free", None, _A)
# struct ggml_tensor * ggml_get_tensor(struct ggml_context * ctx, const char * name)
ggml_get_tensor = prototype(_base, "ggml_get_tensor", _A, _A, _S)
# size_t ggml_tensor_overhead(void)
ggml_tensor_overhead = prototype(_base, "ggml_tensor_overhead", c.c_size_t)
# size_t ggml_graph_overhead_custom(size_t size, bool grads)
ggml_graph_overhead_custom = prototype(
    _base, "ggml_graph_overhead_custom", c.c_size_t, c.c_size_t, c.c_bool
)
# struct ggml_cgraph * ggml_new_graph_custom(struct ggml_context * ctx, size_t size, bool grads)
ggml_new_graph_custom = prototype(_base, "ggml_new_graph_custom", _A, _A, c.c_size_t, c.c_bool)
# int ggml_graph_size(struct ggml_cgraph * cgraph)
ggml_graph_size = prototype(_base, "ggml_graph_size", _I, _A)
# void ggml_graph_add_node(struct ggml_cgraph * cgraph, struct ggml_tensor * tensor)
ggml_graph_add_node = prototype(_base, "ggml_graph_add_node", None, _A, _A)
# struct ggml_tensor * ggml_new_tensor_3d(ctx, enum ggml_type, int64_t ne0, ne1, ne2)
ggml_new_tensor_3d = prototype(
    _base, "ggml_new_tensor_3d", _A, _A, _I, c.c_int64, c.c_int64, c.c_int64
)
# struct ggml_tensor * ggml_mul_mat_id(ctx, struct ggml_tensor * as, * b, * ids)
ggml_mul_mat_id = prototype(_base, "ggml_mul_mat_id", _A, _A, _A, _A, _A)
# int64_t ggml_blck_size(enum ggml_type type)
ggml_blck_size = prototype(_base, "ggml_blck_size", c.c_int64, _I)
# size_t ggml_type_size(enum ggml_type type)
ggml_type_size = prototype(_base, "ggml_type_size", c.c_size_t, _I)
# const char * ggml_type_name(enum ggml_type type)
ggml_type_name = prototype(_base, "ggml_type_name", _S, _I)
# const char * ggml_op_name(enum ggml_op op)
ggml_op_name = prototype(_base, "ggml_op_name", _S, _I)
# enum ggml_status ggml_backend_graph_compute(ggml_backend_t backend, struct ggml_cgraph * cgraph)
ggml_backend_graph_compute = prototype(_base, "ggml_backend_graph_compute", _I, _A, _A)
# void ggml_backend_free(ggml_backend_t backend)
ggml_backend_free = prototype(_base, "ggml_backend_free", None, _A)
# bool ggml_backend_buffer_is_host(ggml_backend_buffer_t buffer)
ggml_backend_buffer_is_host = prototype(_base, "ggml_backend_buffer_is_host", c.c_bool, _A)
# void ggml_backend_tensor_set(struct ggml_tensor *, const void * data, size_t offset, size_t size)
ggml_backend_tensor_set = prototype(
    _base, "ggml_backend_tensor_set", None, _A, _A, c.c_size_t, c.c_size_t
)
# const struct ggml_type_traits * ggml_get_type_traits(enum ggml_type type)
ggml_get_type_traits = prototype(_base, "ggml_get_type_traits", c.POINTER(TypeTraits), _I)
# bool ggml_quantize_requires_imatrix(enum ggml_type type)
ggml_quantize_requires_imatrix = prototype(_base, "ggml_quantize_requires_imatrix", c.c_bool, _I)
# size_t ggml_quantize_chunk(type, const float * src, void * dst, start, nrows, n_per_row, imatrix)
ggml_quantize_chunk = prototype(
    _base, "ggml_quantize_chunk", c.c_size_t, _I, _A, _A, c.c_int64, c.c_int64, c.c_int64, _A
)

# ggml_backend_buffer_type_t ggml_backend_cpu_buffer_type(void)
ggml_backend_cpu_buffer_type = prototype(_base, "ggml_backend_cpu_buffer_type", _A)
# ggml_backend_t ggml_backend_cpu_init(void)
ggml_backend_cpu_init = prototype(_cpu, "ggml_backend_cpu_init", _A)
# void ggml_backend_cpu_set_n_threads(ggml_backend_t backend_cpu, int n_threads)
ggml_backend_cpu_set_n_threads = prototype(_cpu, "ggml_backend_cpu_set_n_threads", None, _A, _I)
# const struct ggml_type_traits_cpu * ggml_get_type_traits_cpu(enum ggml_type type)
ggml_get_type_traits_cpu = prototype(_cpu, "ggml_get_type_traits_cpu", c.POINTER(TypeTraitsCpu), _I)


# -------------------------------------------------------------------- helpers
# All bytes of this process by their addresses. Reading one takes 50 ns, a tenth of the time that a
# structure's field takes.
memory = memoryview((c.c_ubyte * sys.maxsize).from_address(0)).cast("B")


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> "np.ndarray[Any, Any]":
    """Return a NumPy view of the memory at `address`. The caller must keep the memory."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(memory[address : address + num_bytes], dtype).reshape(shape)


def address_of(array: "np.ndarray[Any, Any]") -> int:
    """Return the address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def llama_function(name: str) -> int:
    """Return the address of a function of libllama. Raises BindingError if it exports none of that
    name."""
    function = getattr(_llama, name, None)
    if function is None:
        raise BindingError(
            f"libllama of {chosen.build.package} {chosen.build.version} exports no {name} here:"
            " models cannot be planned and loaded; those that `pip install haversack` brings do"
        )
    return code_address(function)


def float_buffer(count: int) -> Any:
    """Return an array of `count` floats, 0 each, which C may read."""
    return (c.c_float * count)()


def int32_buffer(count: int) -> Any:
    """Return an array of `count` 32-bit integers, which C may fill."""
    return (c.c_int32 * count)()


@lru_cache(maxsize=16)  # the logits of every token lie at the same address
def floats_at(address: int, count: int) -> "np.ndarray[Any, Any]":
    """Return the `count` floats at an address, as an array that does not own them."""
    floats: np.ndarray[Any, Any] = np.asarray((c.c_float * count).from_address(address))
    return floats


def bytes_of(array: "np.ndarray[Any, Any]") -> Any:
    """Return an array's bytes as uint8_t *."""
    return c.cast(address_of(array), c.POINTER(c.c_uint8))


def batch_arrays(most_rows: int) -> tuple[Any, Any, Any, Any]:
    """Return tokens, positions, sequences and logits flags for `most_rows` rows of a
    llama_batch."""
    ids = c.c_int32 * most_rows
    return ids(), ids(), ids(), (c.c_int8 * most_rows)()


def batch_of(kind: Any, arrays: tuple[Any, Any, Any, Any]) -> Any:
    """Return a struct llama_batch over `batch_arrays`; each row belongs to one sequence."""
    tokens, positions, sequences, wanted = arrays
    pointer, most_rows = c.POINTER(c.c_int32), len(tokens)
    counts = (c.c_int32 * most_rows)(*[1] * most_rows)
    places = [c.addressof(sequences) + 4 * row for row in range(most_rows)]
    ids = (pointer * most_rows)(*(c.cast(place, pointer) for place in places))
    return kind(0, tokens, None, positions, counts, ids, wanted)


address_of_function = code_address
addressof = c.addressof
size_of = c.sizeof
text_buffer = c.create_string_buffer
pointer_to = c.pointer
