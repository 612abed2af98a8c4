"""libggml as Python objects: GGUF headers, graph nodes, and products of rows with experts.

Axis letters: K elements of a row (what a product sums over), M rows of an expert's matrix,
R rows of activations.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices.errors import HaversackError, ModelFileError
from haversack.devices.logs import captured_logs

F32 = 0  # enum ggml_type
I32 = 26
FLAG_COMPUTE = 16  # enum ggml_tensor_flag: a graph skips nodes without it
_GGUF_DTYPES: dict[int, Any] = {
    0: np.uint8, 1: np.int8, 2: np.uint16, 3: np.int16, 4: np.uint32, 5: np.int32,
    6: np.float32, 7: np.bool_, 10: np.uint64, 11: np.int64, 12: np.float64,
}  # fmt: skip
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_MAGIC = b"GGUF"

Value = str | int | float | bool | list[int | float | bool]


# ------------------------------------------------------------------ block types
def type_geometry(type_id: int) -> tuple[str, int, int]:
    """(name, elements of a block, bytes of a block) of a ggml type; 0 elements if unknown."""
    name = native.ggml_type_name(type_id).decode()
    return name, native.ggml_blck_size(type_id), native.ggml_type_size(type_id)


def row_type(type_id: int) -> int:
    """The type that activations take before a CPU product with weights of `type_id`."""
    return int(native.ggml_get_type_traits_cpu(type_id).contents.vec_dot_type)


def convert_rows(rows: npt.NDArray[np.float32], type_id: int) -> npt.NDArray[np.uint8]:
    """`rows` (R, K) float32 in blocks of `type_id`: (R, bytes of a row) uint8.

    llama.cpp's own conversion, so that a product with the result has the bits of a product with
    `rows`. They must be contiguous, and K a multiple of the type's block.
    """
    assert rows.dtype == np.float32 and rows.flags.c_contiguous, "C reads rows as they lie"
    if type_id == F32:
        return rows.view(np.uint8)
    _, block_elements, block_bytes = type_geometry(type_id)
    row_bytes = rows.shape[1] // block_elements * block_bytes
    out = np.empty((rows.shape[0], row_bytes), np.uint8)
    convert = native.ggml_get_type_traits_cpu(type_id).contents.from_float
    convert(native.address_of(rows), native.address_of(out), rows.size)
    return out


# ----------------------------------------------------------------------- GGUF
@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a GGUF file: `shape` fastest axis first, `offset` from the file's start."""

    name: str
    type_id: int
    shape: tuple[int, int, int, int]
    offset: int
    num_bytes: int


class GgufHeader:
    """The key-values and tensor table of one GGUF file, read by llama.cpp's own reader.

    Raises ModelFileError if the file is no GGUF or its header is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensor_context = native.Address()
        params = native.GgufInitParams(True, native.pointer_to(self._tensor_context))
        with captured_logs() as log:
            self._gguf = native.gguf_init_from_file(os.fsencode(path), params)
        if not self._gguf:
            raise ModelFileError(
                f"{path} is not a readable GGUF file: {log.reason()}; {_advice(path)}"
            )
        data = native.gguf_get_data_offset(self._gguf)
        count = native.gguf_get_n_tensors(self._gguf)
        self.data_offset = int(data)
        try:
            self.tensors = tuple(self._tensor(i, data) for i in range(count))
        except UnicodeDecodeError as error:
            self.close()
            raise ModelFileError(
                f"{path} holds a tensor named {error.object!r}, which is no text: the file may be"
                " damaged (get it again), or was written so (give another)"
            ) from error

    def _tensor(self, index: int, data_offset: int) -> TensorInfo:
        return TensorInfo(
            name=native.gguf_get_tensor_name(self._gguf, index).decode(),
            type_id=native.gguf_get_tensor_type(self._gguf, index),
            shape=tuple(native.gguf_get_tensor_ne(self._gguf, index).contents),
            offset=data_offset + native.gguf_get_tensor_offset(self._gguf, index),
            num_bytes=native.gguf_get_tensor_size(self._gguf, index),
        )

    @property
    def address(self) -> Any:
        return self._gguf

    def tensor_address(self, name: str) -> int:
        """The tensor called `name`, without data."""
        return int(native.ggml_get_tensor(self._tensor_context, name.encode()))

    def value(self, key: str) -> Value | None:
        """The value under `key`: a number, a string, a list of numbers, or None if absent."""
        index = native.gguf_find_key(self._gguf, key.encode())
        if index < 0:
            return None
        kind = native.gguf_get_kv_type(self._gguf, index)
        if kind == _GGUF_STRING:
            return str(native.gguf_get_val_str(self._gguf, index).decode(errors="replace"))
        if kind == _GGUF_ARRAY:
            return self._array(index)
        address = native.gguf_get_val_data(self._gguf, index)
        value: int | float | bool = native.array_at(address, (1,), _GGUF_DTYPES[kind])[0].item()
        return value

    def _array(self, index: int) -> list[int | float | bool] | None:
        kind = native.gguf_get_arr_type(self._gguf, index)
        count = native.gguf_get_arr_n(self._gguf, index)
        if kind not in _GGUF_DTYPES or count == 0:
            return None
        address = native.gguf_get_arr_data(self._gguf, index)
        values: list[int | float | bool] = native.array_at(
            address, (count,), _GGUF_DTYPES[kind]
        ).tolist()
        return values

    def close(self) -> None:
        """Free the header; may be called twice."""
        if self._gguf:
            native.gguf_free(self._gguf)
            native.ggml_free(self._tensor_context)
            self._gguf = None

    def __enter__(self) -> "GgufHeader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _advice(path: Path) -> str:
    """What to do about a file that llama.cpp does not read as a GGUF."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_MAGIC))
    except OSError:
        return "give a file that can be opened"
    if not _MAGIC.startswith(begin):
        return "give a GGUF file"
    return (
        "it may be unfinished or damaged (get it again), or of a version that this llama.cpp does"
        " not read (give another)"
    )


def merged_header(
    parts: Sequence[GgufHeader], types: Mapping[str, int], drop_keys: Sequence[str]
) -> tuple[bytes, dict[str, int]]:
    """One header for all tensors of `parts`, with the type of some of them changed.

    Returns the header's bytes (key-values of the first part, without `drop_keys`) and each
    tensor's offset from the start of the file that the header begins.
    """
    merged = native.gguf_init_empty()
    try:
        native.gguf_set_kv(merged, parts[0].address)
        for key in drop_keys:
            native.gguf_remove_key(merged, key.encode())
        for part in parts:
            for tensor in part.tensors:
                native.gguf_add_tensor(merged, part.tensor_address(tensor.name))
        for tensor_name, type_id in types.items():
            native.gguf_set_tensor_type(merged, tensor_name.encode(), type_id)
        header = np.zeros(native.gguf_get_meta_size(merged), np.uint8)
        native.gguf_get_meta_data(merged, native.address_of(header))
        count = native.gguf_get_n_tensors(merged)
        offsets = {
            native.gguf_get_tensor_name(merged, i).decode(): len(header)
            + int(native.gguf_get_tensor_offset(merged, i))
            for i in range(count)
        }
    finally:
        native.gguf_free(merged)
    return header.tobytes(), offsets


# ---------------------------------------------------------------- graph nodes
def _op_code(name: bytes) -> int:
    return next(code for code in range(128) if native.ggml_op_name(code) == name)


OP_NONE = _op_code(b"NONE")
OP_MUL_MAT_ID = _op_code(b"MUL_MAT_ID")
OP_MUL_MAT = _op_code(b"MUL_MAT")
_OP_ADD, _OP_UNARY = map(_op_code, (b"ADD", b"UNARY"))

# For those who look at thousands of nodes a token: `memory[node + NODE_OP]` is a node's op (all
# codes fit a byte), `memory[node + NODE_NAME + i]` a character of its name.
memory = native.memory
NODE_OP = native.Tensor.op.offset
NODE_NAME = native.Tensor.name.offset


class GraphNode:
    """A tensor of llama.cpp's at `address`: its fields, read and written in place."""

    __slots__ = ("_tensor", "address")

    def __init__(self, address: int) -> None:
        self.address = address
        self._tensor = native.Tensor.from_address(address)

    @property
    def name(self) -> str:
        return str(self._tensor.name.decode())

    @property
    def type_id(self) -> int:
        return int(self._tensor.type)

    @property
    def data_address(self) -> int:
        """Where its values lie; 0 if nowhere."""
        return int(self._tensor.data or 0)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        n0, n1, n2, n3 = self._tensor.ne
        return n0, n1, n2, n3

    def source(self, index: int) -> "GraphNode":
        return GraphNode(self._tensor.src[index])

    def source_address(self, index: int) -> int:
        return int(self._tensor.src[index] or 0)

    def set_source(self, index: int, address: int) -> None:
        self._tensor.src[index] = address

    @property
    def is_sum(self) -> bool:
        """Whether it adds its sources."""
        return bool(self._tensor.op == _OP_ADD)

    @property
    def is_product(self) -> bool:
        """Whether it multiplies a matrix, its first source, with its second."""
        return bool(self._tensor.op == OP_MUL_MAT)

    @property
    def is_unary(self) -> bool:
        """Whether it applies a function to each value: sigmoid, say, but not softmax."""
        return bool(self._tensor.op == _OP_UNARY)

    @property
    def num_rows(self) -> int:
        """Rows of each matrix in it."""
        return int(self._tensor.ne[1])

    def row_address(self, row: int) -> int:
        """Where a row of its first matrix lies."""
        return int(self._tensor.data + row * self._tensor.nb[1])

    def set_op(self, op: int) -> None:
        self._tensor.op = op

    def array(self, dtype: Any) -> npt.NDArray[Any]:
        """The node's values as a strided view, slowest axis first: (n2, n1, n0) of `dtype`."""
        n0, n1, n2, _ = self._tensor.ne
        b0, b1, b2, _ = self._tensor.nb
        span_bytes = (n2 - 1) * b2 + (n1 - 1) * b1 + n0 * b0
        flat = native.array_at(self._tensor.data, (span_bytes,), np.uint8)
        return np.ndarray((n2, n1, n0), dtype, flat.data, 0, (b2, b1, b0))

    def take_no_bytes(self) -> None:
        """Make the tensor's size 0 bytes, or one element if its type has no blocks."""
        for axis in range(4):
            self._tensor.nb[axis] = 0

    def point_at_pool(self, type_id: int, address: int, stride_bytes: int, num_slots: int) -> None:
        """Make this weight tensor (K, M, experts) read `num_slots` matrices of `type_id`, one
        every `stride_bytes` from `address`."""
        _, block_elements, block_bytes = type_geometry(type_id)
        tensor = self._tensor
        tensor.type, tensor.ne[2], tensor.data = type_id, num_slots, address
        tensor.nb[0] = block_bytes
        tensor.nb[1] = tensor.ne[0] // block_elements * block_bytes
        tensor.nb[2], tensor.nb[3] = stride_bytes, stride_bytes * num_slots


ROUTER_CHOICE = "ffn_moe_topk-"  # how llama.cpp names a layer's node of the experts chosen
# No other node of interest has a "t" there, and few others at all.
_MARK, _MARK_PLACE = ord("t"), NODE_NAME + ROUTER_CHOICE.index("t")


def is_choice(address: int) -> bool:
    """Whether the node at `address` is a router's choice; cheap enough to ask of every node."""
    return memory[address + _MARK_PLACE] == _MARK and GraphNode(address).name.startswith(
        ROUTER_CHOICE
    )


class SlotIds:
    """A tensor of ours that stands in for the router's choice: slots (1, K) instead of experts, for
    K up to `max_used`."""

    def __init__(self, max_used: int) -> None:
        self._values = np.zeros(max_used, np.int32)
        self._tensor = native.Tensor()
        self._tensor.type, self._tensor.data = I32, native.address_of(self._values)
        self._tensor.nb[0] = self._values.itemsize
        for axis in range(1, 4):
            self._tensor.ne[axis] = 1
        self.address = native.addressof(self._tensor)

    def set(self, slots: npt.NDArray[np.int32]) -> None:
        """Make it name `slots` (K,)."""
        self._values[: len(slots)] = slots
        self._tensor.ne[0] = len(slots)
        for axis in range(1, 4):
            self._tensor.nb[axis] = self._values.itemsize * len(slots)


# ------------------------------------------------------------- expert products
STACK_TABLE_BYTES = 8 * 1024 * 1024  # at most, for `ProductRunner.run_stack`


def stack_table_bytes(num_matrices: int, num_rows: int) -> int:
    """llama.cpp's table of all matrices and rows of a stack."""
    return num_matrices * num_rows * 8


@dataclass(frozen=True)
class Product:
    """out (R, M) float32 = rows (R, K) times one expert's matrix (M, K), all by address."""

    weight: int
    rows: int
    out: int
    num_rows: int


@dataclass(frozen=True)
class Stack:
    """`num_matrices` matrices, one every `stride_bytes` from `address`; some may be garbage."""

    address: int
    stride_bytes: int
    num_matrices: int


@dataclass(frozen=True)
class RowBlock:
    """Rows one after the other, each to be multiplied with the matrix at its place in a stack
    (`places` (R,) int32); out (R, M) float32."""

    rows: int
    out: int
    places: npt.NDArray[np.int32]


class ProductRunner:
    """Runs products of rows with single experts on the CPU with llama.cpp's MUL_MAT_ID.

    Each product is a MUL_MAT_ID over one expert, so its bits are those of llama.cpp's product
    over all of them, wherever the expert's bytes lie: measured for 1 to 200 rows and all types.
    An expert's rows must come in one product: from 8 rows on some kernels round differently.
    """

    MAX_PRODUCTS = 64  # of one graph

    def __init__(self, num_threads: int, max_rows: int) -> None:
        self._backend = native.ggml_backend_cpu_init()
        native.ggml_backend_cpu_set_n_threads(self._backend, num_threads)
        tensors_bytes = 4 * self.MAX_PRODUCTS * native.ggml_tensor_overhead()
        graph_bytes = native.ggml_graph_overhead_custom(self.MAX_PRODUCTS, False)
        self._memory = np.zeros(tensors_bytes + graph_bytes + 4096, np.uint8)
        self._context = native.ggml_init(
            native.GgmlInitParams(len(self._memory), native.address_of(self._memory), True)
        )
        self._first_expert = np.zeros(max_rows, np.int32)

    def run(self, type_id: int, shape: tuple[int, int], products: Sequence[Product]) -> None:
        """Compute `products` with weights of `type_id` and `shape` (K, M); rows are in
        `row_type(type_id)`."""
        for start in range(0, len(products), self.MAX_PRODUCTS):
            native.ggml_reset(self._context)
            graph = native.ggml_new_graph_custom(self._context, self.MAX_PRODUCTS, False)
            for product in products[start : start + self.MAX_PRODUCTS]:
                native.ggml_graph_add_node(graph, self._node(type_id, shape, product))
            self._compute(graph)

    def fits_stack(self, num_matrices: int, num_rows: int) -> bool:
        """Whether `run_stack` may be asked: llama.cpp keeps a table of all matrices and rows."""
        return stack_table_bytes(num_matrices, num_rows) <= STACK_TABLE_BYTES

    def run_stack(
        self, type_id: int, shape: tuple[int, int], stack: Stack, block: RowBlock
    ) -> None:
        """As `run`, in one node for all: threads need not wait for each other after every expert.
        All rows of an expert must be in the block."""
        (k, m), num_rows = shape, len(block.places)
        native.ggml_reset(self._context)
        graph = native.ggml_new_graph_custom(self._context, self.MAX_PRODUCTS, False)
        weight = self._tensor(type_id, (k, m, 1), stack.address)
        GraphNode(weight).point_at_pool(
            type_id, stack.address, stack.stride_bytes, stack.num_matrices
        )
        rows = self._tensor(row_type(type_id), (k, 1, num_rows), block.rows)
        native.ggml_graph_add_node(graph, self._product(weight, rows, block.places, block.out))
        self._compute(graph)

    def _compute(self, graph: int) -> None:
        status = native.ggml_backend_graph_compute(self._backend, graph)
        if status != 0:
            raise HaversackError(
                f"llama.cpp could not compute the experts (status {status}): if memory is short,"
                " lower --batch or --threads"
            )

    def _node(self, type_id: int, shape: tuple[int, int], product: Product) -> int:
        k, m = shape
        assert product.num_rows <= len(self._first_expert), "more rows than there are ids"
        weight = self._tensor(type_id, (k, m, 1), product.weight)
        rows = self._tensor(row_type(type_id), (k, 1, product.num_rows), product.rows)
        return self._product(weight, rows, self._first_expert[: product.num_rows], product.out)

    def _product(self, weight: int, rows: int, places: npt.NDArray[np.int32], out: int) -> int:
        """The node that multiplies each of `rows` with the matrix at its place in `weight`."""
        ids = self._tensor(I32, (1, len(places), 1), native.address_of(places))
        node: int = native.ggml_mul_mat_id(self._context, weight, rows, ids)
        output = native.Tensor.from_address(node)
        output.data, output.flags = out, FLAG_COMPUTE
        return node

    def _tensor(self, type_id: int, shape: tuple[int, int, int], address: int) -> int:
        tensor: int = native.ggml_new_tensor_3d(self._context, type_id, *shape)
        native.Tensor.from_address(tensor).data = address
        return tensor

    def close(self) -> None:
        """Free the backend; may be called twice."""
        if self._context:
            native.ggml_free(self._context)
            native.ggml_backend_free(self._backend)
            self._context = self._backend = None
