"""The simulated GPU: a second device with the CPU's bits, a memory limit, and a link that takes its
time. Graphs here multiply rows with the matrices of experts, as the engine's do.

Axis letters: K elements of a row, M rows of an expert's matrix, E experts, N experts chosen.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices import _native as devices
from haversack.devices._native import streams
from haversack.devices.errors import ClosedError
from haversack.devices.ggml import F32
from haversack.offload.simulated import Counts, Link, Processor, SimulatedDevice
from haversack.quant.blocks import BLOCK_TYPES
from haversack.tools.models.authoring import quantize_rows

I32, COMPUTE_FLAG = 26, 16
TENSOR_BYTES = devices.size_of(devices.Tensor)
E, N, K, M = 16, 4, 256, 64
MIB = 1024 * 1024
FAST = Link(1e12, latency_s=0)
Floats = npt.NDArray[np.float32]


class Product:
    """A product of one row with N of E experts' matrices, on a stream of a device."""

    def __init__(self, device: int, block_type: str = "Q4_K") -> None:
        self.stream: int = streams.ggml_backend_dev_init(device, None)
        params = devices.GgmlInitParams(1 << 16, None, True)
        self._context = devices.ggml_init(params)
        new = devices.ggml_new_tensor_3d
        self.matrices = new(self._context, BLOCK_TYPES[block_type], K, M, E)
        self.row = new(self._context, F32, K, 1, 1)
        self.ids = new(self._context, I32, N, 1, 1)
        self.result = devices.ggml_mul_mat_id(self._context, self.matrices, self.row, self.ids)
        self.graph = devices.ggml_new_graph_custom(self._context, 8, False)
        devices.Tensor.from_address(self.result).flags = COMPUTE_FLAG
        devices.ggml_graph_add_node(self.graph, self.result)
        self.buffer = streams.ggml_backend_alloc_ctx_tensors(self._context, self.stream)
        rng = np.random.default_rng(0)
        self.weights = quantize_rows(rng.standard_normal((E, M, K), np.float32), block_type)
        self.rows = rng.standard_normal((1, K), np.float32)
        self.chosen = rng.permutation(E)[:N].astype(np.int32)

    def send(self, tensor: int, array: npt.NDArray[Any]) -> None:
        streams.ggml_backend_tensor_set_async(
            self.stream, tensor, devices.address_of(array), 0, array.nbytes
        )

    def compute(self) -> Floats:
        """Send all, compute and fetch the result, (N, M), without a wait in between."""
        found = np.full((N, M), np.nan, np.float32)
        self.send(self.matrices, self.weights)
        self.send(self.row, self.rows)
        self.send(self.ids, self.chosen)
        assert streams.ggml_backend_graph_compute_async(self.stream, self.graph) == 0
        streams.ggml_backend_tensor_get_async(
            self.stream, self.result, devices.address_of(found), 0, found.nbytes
        )
        streams.ggml_backend_synchronize(self.stream)
        return found

    def close(self) -> None:
        if self.buffer:
            streams.ggml_backend_buffer_free(self.buffer)
        devices.ggml_free(self._context)
        devices.ggml_backend_free(self.stream)


def cpu() -> int:
    found: int = streams.ggml_backend_dev_by_name(b"CPU")
    return found


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(64 * MIB, FAST) as made:
        yield made


@pytest.fixture
def product(device: SimulatedDevice) -> Iterator[Product]:
    made = Product(device.address)
    yield made
    made.close()


@pytest.mark.parametrize("block_type", ["Q4_K", "Q8_0", "BF16", "F32"])
def test_a_graph_has_the_bits_of_the_cpu(device: SimulatedDevice, block_type: str) -> None:
    results = []
    for address in (cpu(), device.address):
        product = Product(address, block_type)
        results.append(product.compute())
        product.close()
    assert np.abs(results[0]).max() > 1
    assert (results[0] == results[1]).all()


def test_threads_do_not_change_bits(product: Product) -> None:
    with SimulatedDevice(MIB, FAST, Processor(threads=2)) as device:
        other = Product(device.address)
        assert (other.compute() == product.compute()).all()
        other.close()


def test_a_graph_may_be_changed_once_it_is_handed_over(product: Product) -> None:
    expected = product.compute()
    found = np.zeros((N, M), np.float32)
    devices.ggml_backend_tensor_set(product.result, devices.address_of(found), 0, found.nbytes)
    product.send(product.matrices, product.weights)
    assert streams.ggml_backend_graph_compute_async(product.stream, product.graph) == 0
    tensor = devices.array_at(product.result, (TENSOR_BYTES,), np.uint8)
    kept = tensor.copy()
    tensor[:] = 0xFF  # llama.cpp makes its next graph in its place
    streams.ggml_backend_synchronize(product.stream)
    tensor[:] = kept
    streams.ggml_backend_tensor_get(product.result, devices.address_of(found), 0, found.nbytes)
    assert (found == expected).all()


def test_it_is_a_device_of_ggml_until_it_is_closed() -> None:
    with SimulatedDevice(MIB, FAST) as first, SimulatedDevice(MIB, FAST) as second:
        assert (first.name, second.name) == ("Simulated0", "Simulated1")
        assert streams.ggml_backend_dev_by_name(b"Simulated1") == second.address
        assert streams.ggml_backend_dev_by_name(b"Simulated0") == first.address
    assert not streams.ggml_backend_dev_by_name(b"Simulated0")
    with SimulatedDevice(MIB, FAST) as third:
        assert third.name == "Simulated0"


def test_its_memory_is_its_own_and_limited(device: SimulatedDevice) -> None:
    product = Product(device.address)
    assert not devices.ggml_backend_buffer_is_host(product.buffer)
    assert product.weights.nbytes <= device.counts().used_bytes <= 64 * MIB
    with pytest.raises(ClosedError, match="close the models on it first"):
        device.close()
    product.close()
    assert device.counts().used_bytes == 0
    with SimulatedDevice(1000, FAST) as small:
        product = Product(small.address)
        assert not product.buffer
        product.close()
        assert small.counts().peak_bytes == 0


def test_copies_take_the_time_of_the_link() -> None:
    link = Link(product_bytes() / 0.02, latency_s=0.005, to_host_bytes_s=N * M * 4 / 0.01)
    with SimulatedDevice(MIB, link) as device:
        product = Product(device.address)
        began_s = time.perf_counter()
        product.compute()
        assert time.perf_counter() - began_s >= 0.02 + 0.01 + 4 * 0.005
        began_s = time.perf_counter()
        devices.ggml_backend_tensor_set(
            product.matrices, devices.address_of(product.weights), 0, product.weights.nbytes
        )
        assert time.perf_counter() - began_s >= 0.02 + 0.005
        counts = device.counts()
        assert counts.num_copies == 5
        assert counts.to_device_bytes == 2 * product.weights.nbytes + K * 4 + N * 4
        assert counts.to_host_bytes == N * M * 4
        product.close()


def product_bytes() -> int:
    return len(quantize_rows(np.zeros((E * M, K), np.float32), "Q4_K").tobytes())


def test_a_graph_takes_the_time_of_reading_the_chosen_experts() -> None:
    chosen_bytes = product_bytes() * N / E
    processor = Processor(memory_bytes_s=chosen_bytes / 0.02, launch_s=0.005)
    with SimulatedDevice(MIB, FAST, processor) as device:
        product = Product(device.address)
        product.compute()
        began_s = time.perf_counter()
        product.compute()
        assert time.perf_counter() - began_s >= 0.025
        product.close()


def test_without_computing_results_are_zeros(device: SimulatedDevice) -> None:
    with SimulatedDevice(MIB, FAST, Processor(computes=False)) as device:
        product = Product(device.address)
        assert (product.compute() == 0).all()
        product.close()


def test_a_stream_waits_for_an_event_of_another(device: SimulatedDevice, product: Product) -> None:
    expected = product.compute()
    copies, event = (
        streams.ggml_backend_dev_init(device.address, None),
        streams.ggml_backend_event_new(device.address),
    )
    weights, zeros = product.weights, np.zeros_like(product.weights)
    for _ in range(50):
        found = np.zeros((N, M), np.float32)
        devices.ggml_backend_tensor_set(
            product.matrices, devices.address_of(zeros), 0, zeros.nbytes
        )
        streams.ggml_backend_tensor_set_async(
            copies, product.matrices, devices.address_of(weights), 0, weights.nbytes
        )
        streams.ggml_backend_event_record(event, copies)
        streams.ggml_backend_event_wait(product.stream, event)
        assert streams.ggml_backend_graph_compute_async(product.stream, product.graph) == 0
        streams.ggml_backend_tensor_get_async(
            product.stream, product.result, devices.address_of(found), 0, found.nbytes
        )
        streams.ggml_backend_synchronize(product.stream)
        assert (found == expected).all()
    streams.ggml_backend_event_synchronize(event)
    streams.ggml_backend_event_free(event)
    devices.ggml_backend_free(copies)


def test_faults_come_when_they_are_asked_for(device: SimulatedDevice, product: Product) -> None:
    device.fail("allocation", 2)
    for expected in (True, False, True):
        other = Product(device.address)
        assert bool(other.buffer) is expected
        other.close()
    device.fail("graph")
    assert streams.ggml_backend_graph_compute_async(product.stream, product.graph) == -1
    assert (product.compute() != 0).any()


def test_a_copy_that_fails_ends_the_process_as_that_of_another_device_does() -> None:
    program = """
import numpy as np
from haversack.devices import _native as devices, guard
from haversack.devices._native import streams
from haversack.offload.simulated import Link, SimulatedDevice
guard.end_process_on_abort()
device = SimulatedDevice(1 << 20, Link(1e9))
stream = streams.ggml_backend_dev_init(device.address, None)
context = devices.ggml_init(devices.GgmlInitParams(1 << 14, None, True))
tensor = devices.ggml_new_tensor_3d(context, 0, 4, 1, 1)
streams.ggml_backend_alloc_ctx_tensors(context, stream)
device.fail("copy", 2)
row = np.zeros(4, np.float32)
for _ in range(2):
    devices.ggml_backend_tensor_set(tensor, devices.address_of(row), 0, 16)
    print("done", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "done\n"
    assert "Simulated0: a copy failed" in done.stderr


def test_what_it_did_is_known(device: SimulatedDevice, product: Product) -> None:
    product.compute()
    counts: Counts = device.counts()
    assert (counts.num_graphs, counts.num_streams) == (1, 1)
    assert counts.late_s >= 0
