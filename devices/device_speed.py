"""How fast a device is, and the path to it: measured once for a computer and a device, and kept."""

import hashlib
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices._native import streams
from haversack.devices.backends import Device
from haversack.devices.errors import DeviceError
from haversack.devices.llama import build_name
from haversack.devices.storage import keep_measured, read_measured
from haversack.devices.units import format_bytes

_F32, _I32, _Q8_0 = 0, 26, 8  # enum ggml_type
_BLOCK, _BLOCK_BYTES = 32, 34  # of Q8_0: elements and bytes
_COMPUTE_FLAG = 16  # GGML_TENSOR_FLAG_COMPUTE: a graph skips nodes without it
_NUM_USED = 8
_LARGE, _SMALL = 1024, 32  # rows and columns of an expert's matrix
_NUM_TIMES = 9
_GRAPH_BYTES = 1 << 16
_COPY_BYTES = 8 << 20  # longer copies are hashed first by ggml's RPC


@dataclass(frozen=True)
class DeviceSpeed:
    """How fast a device is for the experts that lie there.

    `to_device_bytes_s` and `to_host_bytes_s` are the rates of long copies, `latency_s` the time of
    a short one there and back. `call_s` is the time in which a row of 32 numbers comes there, is
    multiplied with nearly nothing, and the result comes back; with `weights_bytes_s` more bytes of
    weights are multiplied each second.
    """

    to_device_bytes_s: float
    to_host_bytes_s: float
    latency_s: float
    call_s: float
    weights_bytes_s: float
    measured_at: str  # ISO 8601, UTC

    def __post_init__(self) -> None:
        rates = (self.to_device_bytes_s, self.to_host_bytes_s, self.weights_bytes_s)
        if not all(0 < num < math.inf for num in (*rates, self.latency_s, self.call_s)):
            raise ValueError(f"not a measured speed: {self}")

    def expert_s(self, expert_bytes: int) -> float:
        """Return the seconds of one row with an expert that lies there."""
        return self.call_s + expert_bytes / self.weights_bytes_s


def measure_device(device: Device, *, cache_dir: Path) -> DeviceSpeed:
    """Return the speed of a device, measured once and kept in `cache_dir`. Measuring takes 10 MiB
    of its memory; the first graphs of a GPU may take a while to be made.

    Raises DeviceError where it does not give the memory or does not compute, and StorageError where
    the result cannot be kept.
    """
    speed = known_device_speed(device, cache_dir)
    if speed is None:
        speed = _measure(device)
        keep_measured(_kept(device, cache_dir), speed)
    return speed


def known_device_speed(device: Device, cache_dir: Path) -> DeviceSpeed | None:
    """Return the speed that `measure_device` kept; None without one."""
    return read_measured(_kept(device, cache_dir), DeviceSpeed)


def _kept(device: Device, cache_dir: Path) -> Path:
    """Return the file of a device: another build of llama.cpp computes at another speed."""
    known_as = f"{build_name()}\n{device.name}\n{device.description}"
    return cache_dir / f"device-{hashlib.sha256(known_as.encode()).hexdigest()[:16]}.json"


# ------------------------------------------------------------------ measuring
def _measure(device: Device) -> DeviceSpeed:
    stream: int | None = streams.ggml_backend_dev_init(device.address, None)
    if not stream:
        raise DeviceError(f"{device.name} cannot be used: its backend does not start")
    products: list[_Product] = []
    try:
        for side in (_SMALL, _LARGE):
            products.append(_Product(device, stream, side))
        small, large = products
        to_device_s, to_host_s = large.copies_s()
        call_s, large_s = small.call_s(), large.call_s()
        latency_s = small.latency_s()
    finally:
        for product in products:
            product.close()
        native.ggml_backend_free(stream)
    # a device that computes as fast as the clock ticks has the rate of one tick
    more_s = max(large_s - call_s, 1e-7)
    return DeviceSpeed(
        _COPY_BYTES / to_device_s,
        _COPY_BYTES / to_host_s,
        latency_s,
        call_s,
        (large.used_bytes - small.used_bytes) / more_s,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


class _Product:
    """A product of a row with experts' matrices of `side` rows and columns, on a device."""

    def __init__(self, device: Device, stream: int, side: int) -> None:
        self._stream = stream
        self._row = np.ones(side, np.float32)
        self._ids = np.arange(_NUM_USED, dtype=np.int32)
        self._result = np.zeros((_NUM_USED, side), np.float32)
        self.used_bytes = _NUM_USED * side * side // _BLOCK * _BLOCK_BYTES
        self._context = native.ggml_init(native.GgmlInitParams(_GRAPH_BYTES, None, True))
        new = native.ggml_new_tensor_3d
        self._matrices = new(self._context, _Q8_0, side, side, _NUM_USED)
        self._inputs = (
            new(self._context, _F32, side, 1, 1),
            new(self._context, _I32, _NUM_USED, 1, 1),
        )
        self._product = native.ggml_mul_mat_id(self._context, self._matrices, *self._inputs)
        native.Tensor.from_address(self._product).flags = _COMPUTE_FLAG
        self._graph = native.ggml_new_graph_custom(self._context, 8, False)
        native.ggml_graph_add_node(self._graph, self._product)
        self._buffer = streams.ggml_backend_alloc_ctx_tensors(self._context, stream)
        if not self._buffer:
            self.close()
            raise DeviceError(
                f"{device.name} does not give {format_bytes(self.used_bytes)} to measure it: close"
                " what else uses it"
            )
        self._send(self._matrices, np.zeros(self.used_bytes, np.uint8))

    def copies_s(self) -> tuple[float, float]:
        """Return the seconds of a long copy to the device, and of one to the host."""
        room = np.zeros(_COPY_BYTES, np.uint8)
        there = _least_s(lambda: self._send(self._matrices, room))
        return there, _least_s(lambda: self._fetch(self._matrices, room))

    def latency_s(self) -> float:
        """Return the seconds of a short copy there and back."""

        def there_and_back() -> None:
            self._send(self._inputs[1], self._ids)
            self._fetch(self._inputs[1], self._ids)

        return _median_s(there_and_back)

    def call_s(self) -> float:
        """Return the seconds in which a row comes, is multiplied, and its result comes back."""
        return _median_s(self._call)

    def _call(self) -> None:
        self._send(self._inputs[0], self._row)
        self._send(self._inputs[1], self._ids)
        status = native.ggml_backend_graph_compute(self._stream, self._graph)
        if status != 0:
            raise DeviceError(f"a device does not compute products with experts: status {status}")
        self._fetch(self._product, self._result)

    def _send(self, tensor: int, array: npt.NDArray[Any]) -> None:
        native.ggml_backend_tensor_set(tensor, native.address_of(array), 0, array.nbytes)
        streams.ggml_backend_synchronize(self._stream)

    def _fetch(self, tensor: int, array: npt.NDArray[Any]) -> None:
        streams.ggml_backend_tensor_get(tensor, native.address_of(array), 0, array.nbytes)

    def close(self) -> None:
        if self._buffer:
            streams.ggml_backend_buffer_free(self._buffer)
        native.ggml_free(self._context)


def _times_s(work: Callable[[], None]) -> list[float]:
    """Return the seconds of `work`, several times, after a first one."""
    work()
    times_s: list[float] = []
    for _ in range(_NUM_TIMES):
        began_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - began_s)
    return times_s


def _median_s(work: Callable[[], None]) -> float:
    return statistics.median(_times_s(work))


def _least_s(work: Callable[[], None]) -> float:
    return min(_times_s(work))
