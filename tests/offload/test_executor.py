"""The executor's products, against NumPy on real numbers and against itself in any grouping."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from haversack.devices import _native as native
from haversack.devices.ggml import GraphNode, ProductRunner
from haversack.offload.executor import ExpertExecutor, scratch_bytes
from haversack.offload.store import Group
from haversack.quant.gguf import ExpertLayer, ExpertMatrix

K, M, E = 64, 48, 8  # elements of a row, rows of a matrix, experts
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((E, M, K)).astype(np.float32)
MATRIX = ExpertMatrix("blk.0.ffn_up_exps.weight", "up", 0, K, M, E, 0, 0, M * K * 4)
LAYER = ExpertLayer(0, (MATRIX,))


class ProductNode:
    """A MUL_MAT_ID node of llama.cpp's as the executor meets it: rows in, room for the result."""

    def __init__(self, rows: np.ndarray[Any, Any], num_tokens: int, num_used: int) -> None:
        self.rows, self.out = rows, np.full((num_tokens, num_used, M), np.nan, np.float32)
        self._source, self._node = native.Tensor(), native.Tensor()
        self._describe(self._source, rows)
        self._describe(self._node, self.out)
        self._node.src[1] = native.addressof(self._source)
        self.node = GraphNode(native.addressof(self._node))

    @staticmethod
    def _describe(tensor: native.Tensor, array: np.ndarray[Any, Any]) -> None:
        tensor.data = native.address_of(array)
        for axis, (count, stride) in enumerate(
            zip(array.shape[::-1], array.strides[::-1], strict=True)
        ):
            tensor.ne[axis], tensor.nb[axis] = count, stride
        tensor.ne[3], tensor.nb[3] = 1, array.nbytes


def groups_of(experts: list[int], size: int) -> Iterator[Group]:
    for start in range(0, len(experts), size):
        some = experts[start : start + size]
        yield Group(
            np.array(some), [native.address_of(WEIGHTS[e]) for e in some], WEIGHTS[0].nbytes
        )


def expected(rows: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    spread = np.broadcast_to(rows, (*ids.shape, K))
    return np.einsum("tnk,tnmk->tnm", spread, WEIGHTS[ids])


@pytest.mark.parametrize("rows_per_token", [1, 3], ids=["gate and up", "down"])
@pytest.mark.parametrize("num_tokens", [1, 2, 9, 100])
@pytest.mark.parametrize("group_size", [1, 3, 8])
def test_it_multiplies_each_row_with_its_experts(
    rows_per_token: int, num_tokens: int, group_size: int
) -> None:
    rows = RNG.standard_normal((num_tokens, rows_per_token, K)).astype(np.float32)
    ids = np.array([RNG.permutation(E)[:3] for _ in range(num_tokens)], np.int32)
    product = ProductNode(rows, num_tokens, 3)
    executor = ExpertExecutor([LAYER], batch_tokens=num_tokens, threads=1)
    chosen = RNG.permutation(np.unique(ids)).tolist()
    executor.multiply(product.node, ids, MATRIX, groups_of(chosen, group_size))
    np.testing.assert_allclose(product.out, expected(rows, ids), rtol=1e-4, atol=1e-4)
    executor.close()
    executor.close()


@pytest.mark.parametrize("num_tokens", [2, 9, 100])
def test_one_node_for_a_group_has_the_bits_of_one_for_each_expert(
    num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = RNG.standard_normal((num_tokens, 1, K)).astype(np.float32)
    ids = np.array([RNG.permutation(E)[:3] for _ in range(num_tokens)], np.int32)
    found = []
    for fits in (True, False):  # a large pool's table would take too much memory
        monkeypatch.setattr(ProductRunner, "fits_stack", lambda *_, fits=fits: fits)
        product = ProductNode(rows, num_tokens, 3)
        executor = ExpertExecutor([LAYER], batch_tokens=num_tokens, threads=2)
        executor.multiply(product.node, ids, MATRIX, groups_of(np.unique(ids).tolist(), 3))
        executor.close()
        found.append(product.out)
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("rows_per_token", [1, 3], ids=["gate and up", "down"])
@pytest.mark.parametrize("group_size", [1, 2, 3])
def test_a_tokens_products_have_the_same_bits_as_a_batch_of_one(
    rows_per_token: int, group_size: int
) -> None:
    executor = ExpertExecutor([LAYER], batch_tokens=1, threads=2)
    for _ in range(3):  # what was made for one token serves the next
        rows = RNG.standard_normal((1, rows_per_token, K)).astype(np.float32)
        ids = RNG.permutation(E)[None, :3].astype(np.int32)
        token, batch = ProductNode(rows, 1, 3), ProductNode(rows, 1, 3)
        chosen = RNG.permutation(ids[0]).tolist()
        executor.multiply_token(token.node, ids, MATRIX, groups_of(chosen, group_size))
        executor.multiply(batch.node, ids, MATRIX, groups_of(chosen, group_size))
        assert (token.out == batch.out).all()
        np.testing.assert_allclose(token.out, expected(rows, ids), rtol=1e-4, atol=1e-4)
    executor.close()


def test_all_tokens_may_choose_the_same_expert() -> None:
    num_tokens = 700  # more rows than one run takes: the batch sets the scratch
    rows = RNG.standard_normal((num_tokens, 1, K)).astype(np.float32)
    ids = np.stack([np.full(num_tokens, 5), np.arange(num_tokens) % 5], axis=1).astype(np.int32)
    product = ProductNode(rows, num_tokens, 2)
    executor = ExpertExecutor([LAYER], batch_tokens=num_tokens, threads=1)
    executor.multiply(product.node, ids, MATRIX, groups_of(list(range(6)), 6))
    np.testing.assert_allclose(product.out, expected(rows, ids), rtol=1e-4, atol=1e-4)
    executor.close()


def test_rows_need_not_be_contiguous() -> None:
    wide = RNG.standard_normal((4, 2, K)).astype(np.float32)
    rows, ids = wide[:, :1], np.array([[0, 1], [2, 3], [4, 5], [6, 7]], np.int32)
    product = ProductNode(rows, 4, 2)
    executor = ExpertExecutor([LAYER], batch_tokens=4, threads=1)
    executor.multiply(product.node, ids, MATRIX, groups_of(list(range(E)), E))
    np.testing.assert_allclose(product.out, expected(rows, ids), rtol=1e-4, atol=1e-4)
    executor.close()


def test_a_plain_matrix_is_multiplied_by_the_same_threads() -> None:
    matrix = RNG.standard_normal((7, K)).astype(np.float32)
    rows = RNG.standard_normal((5, K)).astype(np.float32)
    executor = ExpertExecutor([LAYER], batch_tokens=4, threads=2)
    found = executor.plain_product(matrix, rows[::2])
    np.testing.assert_allclose(found, rows[::2] @ matrix.T, rtol=1e-4, atol=1e-4)
    executor.close()


def test_scratch_is_what_the_planner_is_told() -> None:
    executor = ExpertExecutor([LAYER], batch_tokens=100, threads=1)
    held = executor._rows.nbytes + executor._out.nbytes
    assert held <= scratch_bytes([LAYER], batch_tokens=100, experts_per_tok=3)
    executor.close()
