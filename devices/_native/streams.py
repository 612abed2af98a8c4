"""The binding to what ggml's devices hold and do: buffers, streams (ggml calls them backends) and
events, with C's names."""

import ctypes as c
from collections.abc import Mapping, Sequence
from typing import Any

from haversack.devices._native import Address, BufferOverride, chosen
from haversack.devices._native.libraries import prototype

_base, _registry = chosen.libraries.base, chosen.libraries.registry
_A, _Q = Address, c.c_size_t

# ggml_backend_dev_t ggml_backend_dev_by_name(const char * name)
ggml_backend_dev_by_name = prototype(_registry, "ggml_backend_dev_by_name", _A, c.c_char_p)
# ggml_backend_t ggml_backend_dev_init(ggml_backend_dev_t device, const char * params)
ggml_backend_dev_init = prototype(_base, "ggml_backend_dev_init", _A, _A, c.c_char_p)
# void ggml_backend_synchronize(ggml_backend_t backend)
ggml_backend_synchronize = prototype(_base, "ggml_backend_synchronize", None, _A)
# enum ggml_status ggml_backend_graph_compute_async(backend, struct ggml_cgraph * cgraph)
ggml_backend_graph_compute_async = prototype(
    _base, "ggml_backend_graph_compute_async", c.c_int, _A, _A
)

# ggml_backend_buffer_type_t ggml_backend_dev_buffer_type(ggml_backend_dev_t device)
_ggml_backend_dev_buffer_type = prototype(_base, "ggml_backend_dev_buffer_type", _A, _A)
# ggml_backend_buffer_t ggml_backend_alloc_ctx_tensors(struct ggml_context * ctx, backend)
ggml_backend_alloc_ctx_tensors = prototype(_base, "ggml_backend_alloc_ctx_tensors", _A, _A, _A)
# void ggml_backend_buffer_free(ggml_backend_buffer_t buffer)
ggml_backend_buffer_free = prototype(_base, "ggml_backend_buffer_free", None, _A)

# void ggml_backend_tensor_get(const struct ggml_tensor *, void * data, size_t offset, size_t size)
ggml_backend_tensor_get = prototype(_base, "ggml_backend_tensor_get", None, _A, _A, _Q, _Q)
# void ggml_backend_tensor_set_async(backend, struct ggml_tensor *, const void * data, offset, size)
ggml_backend_tensor_set_async = prototype(
    _base, "ggml_backend_tensor_set_async", None, _A, _A, _A, _Q, _Q
)
# void ggml_backend_tensor_get_async(backend, const struct ggml_tensor *, void * data, offset, size)
ggml_backend_tensor_get_async = prototype(
    _base, "ggml_backend_tensor_get_async", None, _A, _A, _A, _Q, _Q
)

# ggml_backend_event_t ggml_backend_event_new(ggml_backend_dev_t device)
ggml_backend_event_new = prototype(_base, "ggml_backend_event_new", _A, _A)
# void ggml_backend_event_free(ggml_backend_event_t event)
ggml_backend_event_free = prototype(_base, "ggml_backend_event_free", None, _A)
# void ggml_backend_event_record(ggml_backend_event_t event, ggml_backend_t backend)
ggml_backend_event_record = prototype(_base, "ggml_backend_event_record", None, _A, _A)
# void ggml_backend_event_wait(ggml_backend_t backend, ggml_backend_event_t event)
ggml_backend_event_wait = prototype(_base, "ggml_backend_event_wait", None, _A, _A)
# void ggml_backend_event_synchronize(ggml_backend_event_t event)
ggml_backend_event_synchronize = prototype(_base, "ggml_backend_event_synchronize", None, _A)


# -------------------------------------------------------------------- helpers
def device_list(devices: Sequence[int]) -> Any:
    """Return devices as `llama_model_params.devices` has them; keep it while a model uses it."""
    return (Address * (len(devices) + 1))(*devices)


def buffer_overrides(types: Mapping[str, int]) -> Any:
    """Return buffer types by patterns of tensor names as `tensor_buft_overrides` has them; keep it
    while a model is loaded."""
    rows = [BufferOverride(pattern.encode(), kind) for pattern, kind in types.items()]
    return (BufferOverride * (len(rows) + 1))(*rows)


def host_buffer_type() -> int:
    """Return the buffer type of the CPU."""
    return int(_ggml_backend_dev_buffer_type(ggml_backend_dev_by_name(b"CPU")))
