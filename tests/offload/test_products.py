"""Products with experts in slots have the bits of llama.cpp's one node over all experts, for any
number of experts multiplied at a time.

Axis letters: K elements of a row, M rows of an expert's matrix, E experts, T tokens, N experts
each token uses.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from haversack.devices import _native as devices
from haversack.devices.ggml import F32, GraphNode
from haversack.offload import _native as native
from haversack.quant.blocks import BLOCK_TYPES
from haversack.tools.models.authoring import quantize_rows, row_bytes

I32, COMPUTE_FLAG = 26, 16
E, N, K, M = 6, 3, 512, 48
SLOT_GAP_BYTES = 4096
Floats = npt.NDArray[np.float32]


def random_weights(block_type: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Matrices (E, M, row bytes). Of the types whose tables take seconds to make, blocks of any
    bytes: but for one bit of each 16, so that no scale is infinite or no number."""
    if not block_type.startswith("IQ"):
        return quantize_rows(rng.standard_normal((E, M, K), np.float32), block_type)
    shape = (E, M, row_bytes(block_type, K) // 2)
    words = rng.integers(0, 1 << 16, shape, np.uint16) & ~np.uint16(1 << 14)
    return words.view(np.uint8)


class Case:
    """Experts' matrices (E, M, K), rows (T, N or 1, K), the ids (T, N), and llama.cpp's node
    that multiplies them."""

    def __init__(self, block_type: str, num_tokens: int, *, shared_rows: bool = True) -> None:
        rng = np.random.default_rng(num_tokens)
        self.type_id = BLOCK_TYPES[block_type]
        self.weights = random_weights(block_type, rng)
        self._rows = rng.standard_normal((num_tokens, 1 if shared_rows else N, K), np.float32)
        everyone = np.tile(np.arange(E, dtype=np.int32), (num_tokens, 1))
        self._ids = np.ascontiguousarray(rng.permuted(everyone, axis=1)[:, :N])
        self.out = np.zeros((num_tokens, N, M), np.float32)
        self._memory = np.zeros(1 << 16, np.uint8)
        params = devices.GgmlInitParams(len(self._memory), devices.address_of(self._memory), True)
        self._context = devices.ggml_init(params)
        self.node = self._product()

    def _product(self) -> GraphNode:
        sources = [
            self._tensor(self.type_id, self.weights, (K, M, E)),
            self._tensor(F32, self._rows, self._rows.shape[::-1]),
            self._tensor(I32, self._ids, (N, len(self._ids), 1)),
        ]
        node = GraphNode(devices.ggml_mul_mat_id(self._context, *sources))
        tensor = devices.Tensor.from_address(node.address)
        tensor.data, tensor.flags = devices.address_of(self.out), COMPUTE_FLAG
        return node

    def _tensor(self, type_id: int, data: npt.NDArray[Any], shape: tuple[int, ...]) -> int:
        address: int = devices.ggml_new_tensor_3d(self._context, type_id, *shape)
        devices.Tensor.from_address(address).data = devices.address_of(data)
        return address

    def by_llama(self) -> Floats:
        """Compute llama.cpp's one node over all experts, (T, N, M)."""
        self.out[:] = np.nan
        backend = devices.ggml_backend_cpu_init()
        graph = devices.ggml_new_graph_custom(self._context, 16, False)
        devices.ggml_graph_add_node(graph, self.node.address)
        assert devices.ggml_backend_graph_compute(backend, graph) == 0
        devices.ggml_backend_free(backend)
        return self.out.copy()

    def by_slots(self, portion: int, *, most_rows: int = 256, threads: int = 1) -> Floats:
        """Compute the same with each expert in a slot, `portion` experts at a time."""
        self.out[:] = np.nan
        num_bytes = self.weights[0].nbytes
        slots = np.full((E, num_bytes + SLOT_GAP_BYTES), 0xAB, np.uint8)
        slots[:, SLOT_GAP_BYTES // 2 :][:, :num_bytes] = self.weights.view(np.uint8).reshape(E, -1)
        matrix = native.Matrix(
            rooms=devices.address_of(slots), stride=slots.shape[1], rest=SLOT_GAP_BYTES // 2,
            num_bytes=num_bytes, num_inputs=K, num_rows=M, type=self.type_id,
        )  # fmt: skip
        status = native.products_compute(self.node.address, matrix, E, portion, most_rows, threads)
        assert status == 0
        return self.out.copy()

    def close(self) -> None:
        devices.ggml_free(self._context)


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 33, 200])
@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_products_have_the_bits_of_llamas_one_node(block_type: str, num_tokens: int) -> None:
    for shared_rows in (True, False):  # as gate and up have them, and as down has
        case = Case(block_type, num_tokens, shared_rows=shared_rows)
        expected = case.by_llama()
        assert 1 < np.abs(expected).max() < np.inf
        for portion in (1, 4, E):
            assert (case.by_slots(portion) == expected).all()
        case.close()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_bits(threads: int) -> None:
    case = Case("Q4_K", 33)
    expected = case.by_llama()
    assert (case.by_slots(4, threads=threads) == expected).all()
    case.close()


@pytest.mark.parametrize("num_tokens", [33, 200])
def test_rows_that_one_graph_cannot_hold_take_several(num_tokens: int) -> None:
    case = Case("Q8_0", num_tokens)
    expected = case.by_llama()
    assert (case.by_slots(E, most_rows=num_tokens) == expected).all()
    case.close()
