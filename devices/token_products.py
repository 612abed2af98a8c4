"""A single token's products with a few experts, run by llama.cpp over tensors that are made once.

A token meets few experts, and its rows and results lie where llama.cpp has them: only addresses
change from product to product. Making tensors and a graph for each cost more than computing it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from haversack.devices import _native as native
from haversack.devices.errors import HaversackError
from haversack.devices.ggml import F32, FLAG_COMPUTE, I32

MatrixKind = tuple[int, int, int]  # block type, elements of a row, rows


class RowProduct(NamedTuple):
    """out (M,) float32 = row (K,) float32 times one expert's matrix (M, K), all by address."""

    weight: int
    row: int
    out: int


class _Graph:
    """MUL_MAT_ID of one row and one expert, as often as it was made for."""

    def __init__(self, kind: MatrixKind, num_products: int, first_expert: int) -> None:
        type_id, k, m = kind
        tensors_bytes = 4 * num_products * native.ggml_tensor_overhead()
        graph_bytes = native.ggml_graph_overhead_custom(num_products, False)
        self._memory = np.zeros(tensors_bytes + graph_bytes + 4096, np.uint8)
        self._context = native.ggml_init(
            native.GgmlInitParams(len(self._memory), native.address_of(self._memory), True)
        )
        self.address = native.ggml_new_graph_custom(self._context, num_products, False)
        self._tensors: list[tuple[native.Tensor, native.Tensor, native.Tensor]] = []
        self.tensors: list[tuple[int, int, int]] = []
        for _ in range(num_products):
            weight = self._tensor(type_id, k, m)
            row = self._tensor(F32, k, 1)
            ids = self._tensor(I32, 1, 1)
            node: int = native.ggml_mul_mat_id(self._context, weight, row, ids)
            native.Tensor.from_address(ids).data = first_expert
            product = native.Tensor.from_address(node)
            product.flags = FLAG_COMPUTE
            native.ggml_graph_add_node(self.address, node)
            placed = native.Tensor.from_address(weight), native.Tensor.from_address(row), product
            self._tensors.append(placed)
            self.tensors.append((weight, row, node))

    def _tensor(self, type_id: int, n0: int, n1: int) -> int:
        return int(native.ggml_new_tensor_3d(self._context, type_id, n0, n1, 1))

    def place(self, products: Sequence[RowProduct]) -> None:
        for (weight, row, out), product in zip(self._tensors, products, strict=True):
            weight.data, row.data, out.data = product

    def close(self) -> None:
        native.ggml_free(self._context)


class TokenProducts:
    """Runs products of single rows; the bits are those of llama.cpp's own MUL_MAT_ID."""

    def __init__(self, num_threads: int) -> None:
        self.backend = native.ggml_backend_cpu_init()
        native.ggml_backend_cpu_set_n_threads(self.backend, num_threads)
        self._first_expert = np.zeros(1, np.int32)
        self._graphs: dict[tuple[MatrixKind, int], _Graph] = {}

    def run(self, kind: MatrixKind, products: Sequence[RowProduct]) -> None:
        """Compute `products` with matrices of `kind`, in order, with all threads each."""
        graph = self._graph(kind, len(products))
        graph.place(products)
        status = native.ggml_backend_graph_compute(self.backend, graph.address)
        if status != 0:
            raise HaversackError(
                f"llama.cpp could not compute the experts (status {status}): if memory is short,"
                " lower --threads"
            )

    def _graph(self, kind: MatrixKind, num_products: int) -> _Graph:
        graph = self._graphs.get((kind, num_products))
        if graph is None:
            graph = _Graph(kind, num_products, native.address_of(self._first_expert))
            self._graphs[kind, num_products] = graph
        return graph

    def graph(self, kind: MatrixKind, num_products: int) -> tuple[int, list[tuple[int, int, int]]]:
        """The graph of `num_products` products and the addresses of each one's tensors: weight,
        row and out, whose data are to be set before it is computed by `backend`."""
        graph = self._graph(kind, num_products)
        return graph.address, graph.tensors

    def close(self) -> None:
        """Free everything; may be called twice."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        if self.backend:
            native.ggml_backend_free(self.backend)
            self.backend = None
