"""libggml as Python objects: GGUF headers and graph nodes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices.errors import ModelFileError
from haversack.devices.logs import captured_logs

F32 = 0  # enum ggml_type
_GGUF_DTYPES: dict[int, Any] = {
    0: np.uint8, 1: np.int8, 2: np.uint16, 3: np.int16, 4: np.uint32, 5: np.int32,
    6: np.float32, 7: np.bool_, 10: np.uint64, 11: np.int64, 12: np.float64,
}  # fmt: skip
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_MAGIC = b"GGUF"

Value = str | int | float | bool | list[int | float | bool]


# ------------------------------------------------------------------ block types
def type_geometry(type_id: int) -> tuple[str, int, int]:
    """Return (name, elements of a block, bytes of a block) of a ggml type; 0 elements if
    unknown."""
    name = native.ggml_type_name(type_id).decode()
    return name, native.ggml_blck_size(type_id), native.ggml_type_size(type_id)


def row_type(type_id: int) -> int:
    """Return the type that activations get before a CPU product with weights of `type_id`."""
    return int(native.ggml_get_type_traits_cpu(type_id).contents.vec_dot_type)


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
        """Return the address of the tensor called `name`, which has no data."""
        return int(native.ggml_get_tensor(self._tensor_context, name.encode()))

    def value(self, key: str) -> Value | None:
        """Return the value under `key`: a number, a string, a list of numbers, or None if
        absent."""
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
    """Say what to do about a file that llama.cpp does not read as a GGUF."""
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
    """Build one header for all tensors of `parts`, with the types of some of them changed.

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


_OP_MUL_MAT, _OP_MUL_MAT_ID, _OP_ADD = map(_op_code, (b"MUL_MAT", b"MUL_MAT_ID", b"ADD"))


class GraphNode:
    """A tensor of llama.cpp at `address`: its fields are read and written in place."""

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
        """Return where its values lie; 0 if it has none."""
        return int(self._tensor.data or 0)

    @property
    def is_on_host(self) -> bool:
        """Return whether its values lie in the host's memory, where there are any."""
        return bool(native.ggml_backend_buffer_is_host(self._tensor.buffer))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        n0, n1, n2, n3 = self._tensor.ne
        return n0, n1, n2, n3

    def source(self, index: int) -> "GraphNode":
        return GraphNode(self._tensor.src[index])

    @property
    def is_sum(self) -> bool:
        """Return whether it adds its sources."""
        return bool(self._tensor.op == _OP_ADD)

    @property
    def is_product(self) -> bool:
        """Return whether it multiplies a matrix, its first source, with its second source."""
        return bool(self._tensor.op == _OP_MUL_MAT)

    @property
    def is_expert_product(self) -> bool:
        """Return whether it multiplies its second source with the matrices of experts, its first
        source, that its third source chooses."""
        return bool(self._tensor.op == _OP_MUL_MAT_ID)

    def array(self, dtype: Any) -> npt.NDArray[Any]:
        """Return the node's values as a strided view, slowest axis first: (n2, n1, n0) of
        `dtype`."""
        n0, n1, n2, _ = self._tensor.ne
        b0, b1, b2, _ = self._tensor.nb
        span_bytes = (n2 - 1) * b2 + (n1 - 1) * b1 + n0 * b0
        flat = native.array_at(self._tensor.data, (span_bytes,), np.uint8)
        return np.ndarray((n2, n1, n0), dtype, flat.data, 0, (b2, b1, b0))

    def write(self, rows: npt.NDArray[Any]) -> None:
        """Set the node's values to `rows` (n1, n0), of its own type, wherever it lies."""
        for number, row in enumerate(np.ascontiguousarray(rows)):
            offset = number * int(self._tensor.nb[1])
            native.ggml_backend_tensor_set(self.address, native.address_of(row), offset, row.nbytes)


ROUTER_CHOICE = "ffn_moe_topk-"  # how llama.cpp names a layer's node of the experts chosen
# Few other nodes have a "t" at that place of their name.
_MARK, _MARK_PLACE = ord("t"), native.Tensor.name.offset + ROUTER_CHOICE.index("t")


def is_choice(address: int) -> bool:
    """Return whether the node at `address` is a router's choice; cheap enough for every node."""
    return native.memory[address + _MARK_PLACE] == _MARK and GraphNode(address).name.startswith(
        ROUTER_CHOICE
    )
