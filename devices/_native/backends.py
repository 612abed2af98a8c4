"""The binding to ggml's list of backends and their devices, with C's names."""

import ctypes as c
from typing import Any

from haversack.devices._native import Address, CFunction, chosen
from haversack.devices._native.libraries import prototype

_base, _, _registry, _ = chosen.libraries
_A, _S, _Q = Address, c.c_char_p, c.c_size_t

# size_t ggml_backend_dev_count(void)
ggml_backend_dev_count = prototype(_registry, "ggml_backend_dev_count", _Q)
# ggml_backend_dev_t ggml_backend_dev_get(size_t index)
ggml_backend_dev_get = prototype(_registry, "ggml_backend_dev_get", _A, _Q)
# ggml_backend_dev_t ggml_backend_dev_by_type(enum ggml_backend_dev_type type)
ggml_backend_dev_by_type = prototype(_registry, "ggml_backend_dev_by_type", _A, c.c_int)
# const char * ggml_backend_dev_name(ggml_backend_dev_t device)
ggml_backend_dev_name = prototype(_base, "ggml_backend_dev_name", _S, _A)
# const char * ggml_backend_dev_description(ggml_backend_dev_t device)
ggml_backend_dev_description = prototype(_base, "ggml_backend_dev_description", _S, _A)
# enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device)
ggml_backend_dev_type = prototype(_base, "ggml_backend_dev_type", c.c_int, _A)
# void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total)
_ggml_backend_dev_memory = prototype(
    _base, "ggml_backend_dev_memory", None, _A, c.POINTER(_Q), c.POINTER(_Q)
)
# bool ggml_backend_buft_is_host(ggml_backend_buffer_type_t buft)
_ggml_backend_buft_is_host = prototype(_base, "ggml_backend_buft_is_host", c.c_bool, _A)
# ggml_backend_dev_t ggml_backend_buft_get_device(ggml_backend_buffer_type_t buft)
_ggml_backend_buft_get_device = prototype(_base, "ggml_backend_buft_get_device", _A, _A)
# ggml_backend_reg_t ggml_backend_load(const char * path)
ggml_backend_load = prototype(_registry, "ggml_backend_load", _A, _S)
# ggml_backend_reg_t ggml_backend_reg_by_name(const char * name)
ggml_backend_reg_by_name = prototype(_registry, "ggml_backend_reg_by_name", _A, _S)
# size_t ggml_backend_reg_dev_count(ggml_backend_reg_t reg)
ggml_backend_reg_dev_count = prototype(_base, "ggml_backend_reg_dev_count", _Q, _A)
# ggml_backend_dev_t ggml_backend_reg_dev_get(ggml_backend_reg_t reg, size_t index)
ggml_backend_reg_dev_get = prototype(_base, "ggml_backend_reg_dev_get", _A, _A, _Q)
# void * ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char * name)
_ggml_backend_reg_get_proc_address = prototype(
    _base, "ggml_backend_reg_get_proc_address", _A, _A, _S
)

# ggml_backend_reg_t ggml_backend_rpc_add_server(const char * endpoint)
_RpcAddServer = CFunction(_A, _S)
# void ggml_backend_rpc_start_server(endpoint, cache_dir, n_threads, n_devices, devices)
_RpcStartServer = CFunction(None, _S, _S, _Q, _Q, c.POINTER(_A))


# -------------------------------------------------------------------- helpers
def device_memory(device: int) -> tuple[int, int]:
    """Return the free and the total bytes of a device."""
    free, total = _Q(), _Q()
    _ggml_backend_dev_memory(device, c.byref(free), c.byref(total))
    return free.value, total.value


def device_of_buffer_type(buffer_type: int) -> int | None:
    """Return the device whose memory a buffer type is; None for the host's."""
    if _ggml_backend_buft_is_host(buffer_type):
        return None
    device: int | None = _ggml_backend_buft_get_device(buffer_type)
    return device


def rpc_add_server(registry: int, endpoint: str) -> int | None:
    """Connect to a server and return the list of its devices; None if it has none. Ends the process
    where no server answers."""
    add = _function(registry, b"ggml_backend_rpc_add_server", _RpcAddServer)
    found: int | None = add(endpoint.encode())
    return found


def rpc_start_server(registry: int, endpoint: str, num_threads: int, device: int) -> None:
    """Serve a device to one client after the other. Returns only where it cannot."""
    start = _function(registry, b"ggml_backend_rpc_start_server", _RpcStartServer)
    start(endpoint.encode(), None, num_threads, 1, (_A * 1)(device))


def _function(registry: int, name: bytes, kind: Any) -> Any:
    """Return a function that a backend gives by its name."""
    return kind(_ggml_backend_reg_get_proc_address(registry, name))
