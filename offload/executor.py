"""The expert executor: multiplies a token's or a batch's rows with experts, subset by subset.

Axis letters: T tokens, N experts per token, K elements of a row, M rows of a matrix, P pairs of
a row with an expert (T times N).
"""

import time
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from haversack.devices.ggml import (
    F32,
    STACK_TABLE_BYTES,
    GraphNode,
    Product,
    ProductRunner,
    RowBlock,
    Stack,
    convert_rows,
    row_type,
    stack_table_bytes,
)
from haversack.devices.memory import address_of
from haversack.devices.token_products import RowProduct, TokenProducts
from haversack.offload.store import Group
from haversack.quant.blocks import block_type
from haversack.quant.gguf import ExpertLayer, ExpertMatrix

Floats = npt.NDArray[np.float32]

_MIN_ROWS = 1024  # of one run: enough to keep the cores busy


def _rows_of_a_run(batch_tokens: int) -> int:
    """An expert's rows must come in one product, and a batch may send all tokens to one."""
    return max(_MIN_ROWS, batch_tokens)


def _row_bytes(matrix: ExpertMatrix) -> int:
    return block_type(row_type(matrix.type_id)).row_bytes(matrix.row_elements)


def scratch_bytes(layers: Sequence[ExpertLayer], batch_tokens: int, experts_per_tok: int) -> int:
    """Memory that an executor for such layers and batches takes, at most."""
    matrices = [matrix for layer in layers for matrix in layer.matrices]
    row_bytes = max(_row_bytes(matrix) for matrix in matrices)
    num_rows = max(matrix.num_rows for matrix in matrices)
    converted_bytes = batch_tokens * experts_per_tok * row_bytes
    limit = _rows_of_a_run(batch_tokens)
    table_bytes = stack_table_bytes(sum(layer.num_experts for layer in layers), limit)
    return (
        min(table_bytes, STACK_TABLE_BYTES) + converted_bytes + limit * (row_bytes + 4 * num_rows)
    )


class ExpertExecutor:
    """Computes what llama.cpp's MUL_MAT_ID node would, from experts wherever they lie.

    The result has the same bits: an expert's product with a row does not depend on the others.
    """

    def __init__(self, layers: Sequence[ExpertLayer], batch_tokens: int, threads: int) -> None:
        matrices = [matrix for layer in layers for matrix in layer.matrices]
        self._limit = _rows_of_a_run(batch_tokens)
        self.product_s = 0.0  # seconds in which rows were multiplied
        self._runner = ProductRunner(threads, self._limit)
        self.token_products = TokenProducts(threads)
        self._rows = np.zeros(self._limit * max(_row_bytes(m) for m in matrices), np.uint8)
        self._out = np.zeros(self._limit * max(m.num_rows for m in matrices), np.float32)

    def multiply_token(
        self,
        node: GraphNode,
        ids: npt.NDArray[np.int32],
        matrix: ExpertMatrix,
        groups: Iterable[Group],
    ) -> None:
        """Fill `node` (1, N, M) with a token's rows times the experts `ids` (1, N), in place.

        The rows are the node's second source, (1, N or 1, K). `groups` must bring every expert in
        `ids`, which are distinct, once.
        """
        place = {expert: position for position, expert in enumerate(ids[0].tolist())}
        rows, kind = node.source(1), (matrix.type_id, matrix.row_elements, matrix.num_rows)
        num_rows = rows.num_rows
        for group in groups:
            products = [
                RowProduct(
                    address, rows.row_address(position % num_rows), node.row_address(position)
                )
                for address, position in zip(
                    group.addresses, [place[int(e)] for e in group.experts], strict=True
                )
            ]
            began_s = time.perf_counter()
            self.token_products.run(kind, products)
            self.product_s += time.perf_counter() - began_s

    def multiply(
        self,
        node: GraphNode,
        ids: npt.NDArray[np.int32],
        matrix: ExpertMatrix,
        groups: Iterable[Group],
    ) -> None:
        """Fill `node` (T, N, M) with each token's rows times the experts `ids` (T, N) names.

        The rows are the node's second source, (T, N or 1, K). `groups` must bring every expert
        in `ids` once.
        """
        rows, rows_per_token = self._converted_rows(node, matrix)
        out = node.array(np.float32).reshape(ids.size, matrix.num_rows)
        pairs_by_expert = np.argsort(ids, axis=None, kind="stable")
        sorted_ids = ids.reshape(-1)[pairs_by_expert]
        row_of_pair = pairs_by_expert // ids.shape[1] * rows_per_token
        row_of_pair += pairs_by_expert % ids.shape[1] % rows_per_token
        for group in groups:
            starts = np.searchsorted(sorted_ids, group.experts)
            ends = np.searchsorted(sorted_ids, group.experts, side="right")
            for run in self._runs(starts, ends):
                pairs = np.concatenate([np.arange(starts[i], ends[i]) for i in run])
                counts = (ends[run] - starts[run]).tolist()
                chosen = Group(group.experts[run], [group.addresses[i] for i in run], group.stride)
                gathered = self._gathered(rows, row_of_pair[pairs])
                out[pairs_by_expert[pairs]] = self._products(matrix, chosen, counts, gathered)

    @staticmethod
    def _converted_rows(node: GraphNode, matrix: ExpertMatrix) -> tuple[npt.NDArray[np.uint8], int]:
        """All rows in the type the product wants, (T x rows per token, bytes), converted once
        however many experts use them; and how many there are for each token."""
        rows = node.source(1).array(np.float32)
        flat = np.ascontiguousarray(rows).reshape(-1, rows.shape[2])
        return convert_rows(flat, row_type(matrix.type_id)), rows.shape[1]

    def _runs(
        self, starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]
    ) -> Iterable[list[int]]:
        """Positions in the group, cut so that no run has more rows than the scratch holds."""
        run: list[int] = []
        num_rows = 0
        for position, count in enumerate((ends - starts).tolist()):
            if run and num_rows + count > self._limit:
                yield run
                run, num_rows = [], 0
            run.append(position)
            num_rows += count
        if run:
            yield run

    def _gathered(
        self, rows: npt.NDArray[np.uint8], chosen: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.uint8]:
        """The `chosen` rows one after the other, in scratch."""
        out = self._rows[: len(chosen) * rows.shape[1]].reshape(len(chosen), rows.shape[1])
        return np.take(rows, chosen, axis=0, out=out, mode="clip")

    def _products(
        self,
        matrix: ExpertMatrix,
        group: Group,
        counts: Sequence[int],
        gathered: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.float32]:
        """Products of consecutive `counts` of the gathered rows with the group's experts."""
        num_rows = len(gathered)
        out = self._out[: num_rows * matrix.num_rows].reshape(num_rows, matrix.num_rows)
        first = min(group.addresses)
        places = [(address - first) // group.stride for address in group.addresses]
        stack = Stack(first, group.stride, 1 + max(places))
        shape = (matrix.row_elements, matrix.num_rows)
        began_s = time.perf_counter()
        if self._runner.fits_stack(stack.num_matrices, num_rows):
            of_rows = np.repeat(np.array(places, np.int32), counts)
            block = RowBlock(address_of(gathered), address_of(out), of_rows)
            self._runner.run_stack(matrix.type_id, shape, stack, block)
        else:
            products = _products_of(matrix, group, counts, gathered, out)
            self._runner.run(matrix.type_id, shape, products)
        self.product_s += time.perf_counter() - began_s
        return out

    def plain_product(self, matrix: Floats, rows: Floats) -> Floats:
        """A `matrix` (M, K) that is no expert's times `rows` (R, K): (R, M). By the threads that
        multiply experts: those of another library would go on spinning beside them."""
        (num_out, num_in), rows = matrix.shape, np.ascontiguousarray(rows)
        out = np.empty((len(rows), num_out), np.float32)
        product = Product(address_of(matrix), address_of(rows), address_of(out), len(rows))
        self._runner.run(F32, (num_in, num_out), [product])
        return out

    def close(self) -> None:
        """Free what the products ran with; may be called twice."""
        self._runner.close()
        self.token_products.close()


def _products_of(
    matrix: ExpertMatrix,
    group: Group,
    counts: Sequence[int],
    gathered: npt.NDArray[np.uint8],
    out: npt.NDArray[np.float32],
) -> list[Product]:
    """One product for each expert, with its rows."""
    products, row = [], 0
    for weight, count in zip(group.addresses, counts, strict=True):
        products.append(
            Product(
                weight=weight,
                rows=address_of(gathered) + row * gathered.shape[1],
                out=address_of(out) + row * 4 * matrix.num_rows,
                num_rows=count,
            )
        )
        row += count
    return products
