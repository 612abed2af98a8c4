"""ggml's devices: processors with a memory of their own, which backends bring.

Some backends are in the build of llama.cpp, others are modules (`devices.modules`). Nothing is
loaded and no server is asked before a device of it is named, because that takes time and memory.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from haversack.devices import modules, rpc
from haversack.devices._native import backends as native
from haversack.devices.errors import DeviceError

CPU, GPU, IGPU, ACCEL = "CPU", "GPU", "IGPU", "ACCEL"
_KINDS = (CPU, GPU, IGPU, ACCEL, "META")  # enum ggml_backend_dev_type
_OURS = "Experts"  # the device that computes products with experts (offload/native/device.cpp)


class DeviceMemory(NamedTuple):
    """The bytes of a device's memory: those that are free now, and all."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Device:
    """A device of ggml: `name` is what users call it by, `kind` one of CPU, GPU, IGPU (a GPU that
    uses the host's memory) and ACCEL. `address` is its ggml_backend_dev_t, valid until the process
    ends."""

    name: str
    description: str
    kind: str
    address: int

    def memory(self) -> DeviceMemory:
        """Return the bytes that the device says it has now, 0 if it does not tell."""
        return DeviceMemory(*native.device_memory(self.address))


def list_devices() -> list[Device]:
    """Return the devices of the backends that are loaded, and of the RPC servers that `find_device`
    has reached."""
    count = int(native.ggml_backend_dev_count())
    found = [_device(native.ggml_backend_dev_get(index)) for index in range(count)]
    known = {device.address for device in found}
    remote = [
        _device(address, server.device_name(index))
        for server in rpc.known_servers()
        for index, address in enumerate(server.devices)
    ]
    return [
        *(device for device in found if device.name != _OURS),
        *(device for device in remote if device.address not in known),
    ]


def find_device(name: str, modules_dir: Path) -> Device:
    """Return the device called `name`, as CUDA0, Vulkan0, RPC[host:port] (the first device of a
    server) or RPC1[host:port] (its second one). The backend that has such devices is loaded first
    if need be, from the build of llama.cpp or from `modules_dir`.

    Raises DeviceError.
    """
    endpoint = rpc.endpoint_of(name)
    if endpoint is not None:
        server = rpc.connect(endpoint, modules_dir)
        return _device(server.device(endpoint), name)
    found = _named(name)
    backend = modules.backend_of(name)
    if found is None and backend is not None:
        modules.load_module(backend, modules_dir)
        found = _named(name)
    if found is None:
        raise DeviceError(_unknown(name, backend))
    return found


def _named(name: str) -> Device | None:
    return next((device for device in list_devices() if device.name == name), None)


def _device(address: int, name: str | None = None) -> Device:
    return Device(
        name or native.ggml_backend_dev_name(address).decode(),
        native.ggml_backend_dev_description(address).decode(errors="replace"),
        _KINDS[native.ggml_backend_dev_type(address)],
        address,
    )


def _unknown(name: str, backend: str | None) -> str:
    """Return why there is no device of that name, and what to do."""
    names = ", ".join(device.name for device in list_devices())
    if backend is not None and not re.search(rf"\b{backend}", names, re.IGNORECASE):
        return f"{backend} finds no device: {modules.NOTHING_FOUND[backend]}"
    kinds = ", ".join([*modules.DEVICES, "RPC[host:port]"])
    return f"there is no device {name}: give one of {names}, or a name of another kind ({kinds})"
