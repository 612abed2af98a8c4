"""Writing model files. llama.cpp decides which tensors they hold and lays out the blocks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices._native import llama
from haversack.devices.conversion import requires_importance, to_blocks
from haversack.devices.errors import ModelFileError, StorageError
from haversack.devices.ggml import GraphNode, type_geometry
from haversack.devices.logs import captured_logs
from haversack.quant.blocks import BLOCK_TYPES

Fill = Callable[[str, tuple[int, ...]], npt.NDArray[np.float32]]

_GGUF_INT32 = 5


def block_geometry(block_type: str) -> tuple[int, int]:
    """Return (elements, bytes) of a block. Raises ModelFileError for a type without weights."""
    if block_type not in BLOCK_TYPES:
        raise ModelFileError(
            f'"{block_type}" is no block type of weights: choose one of {", ".join(BLOCK_TYPES)}'
        )
    _, num_elements, num_bytes = type_geometry(BLOCK_TYPES[block_type])
    return num_elements, num_bytes


def row_bytes(block_type: str, num_columns: int) -> int:
    """Return the bytes of a row of `num_columns` elements in blocks of `block_type`.

    Raises ModelFileError for an unknown type and for a row that is no whole number of blocks.
    """
    block_elements, block_bytes = block_geometry(block_type)
    if num_columns % block_elements:
        raise ModelFileError(
            f"rows of {num_columns} elements are no whole number of {block_type} blocks of"
            f" {block_elements}: choose another width or another type"
        )
    return num_columns // block_elements * block_bytes


def quantize_rows(data: npt.NDArray[np.float32], block_type: str) -> npt.NDArray[np.uint8]:
    """Return `data` (..., K) float32 in blocks of `block_type`: (..., bytes of a row) uint8.

    llama.cpp's quantiser computes them, with every column equally important. Raises ModelFileError
    as `row_bytes` does.
    """
    row_bytes(block_type, data.shape[-1])
    type_id = BLOCK_TYPES[block_type]
    even = np.ones(data.shape[-1], np.float32) if requires_importance(type_id) else None
    return to_blocks(data, type_id, even)


def random_model(
    metadata: Mapping[str, str | int | float | list[int]], fill: Fill, path: Path
) -> None:
    """Write to `path` a GGUF of float32 tensors of the architecture that `metadata` describes.

    llama.cpp decides which tensors there are; every optional one is included. `fill` returns the
    float32 values of each from its name and shape (slowest axis first). Raises ModelFileError if
    llama.cpp refuses the metadata, StorageError if there is no folder to write to, and whatever
    `fill` raises.
    """
    if not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: the folder {path.parent} does not exist")
    gguf = _new_gguf(metadata)
    model = None
    try:
        model = _model_from(gguf, fill)
        llama.llama_model_save_to_file(model, str(path).encode())
    finally:
        native.gguf_free(gguf)
        if model:
            llama.llama_model_free(model)


def _new_gguf(metadata: Mapping[str, str | int | float | list[int]]) -> Any:
    gguf = native.gguf_init_empty()
    for key, value in metadata.items():
        name = key.encode()
        if isinstance(value, list):
            array = np.array(value, np.int32)
            native.gguf_set_arr_data(gguf, name, _GGUF_INT32, native.address_of(array), len(array))
        elif isinstance(value, str):
            native.gguf_set_val_str(gguf, name, value.encode())
        elif isinstance(value, float):
            native.gguf_set_val_f32(gguf, name, value)
        elif isinstance(value, bool):
            native.gguf_set_val_bool(gguf, name, value)
        else:
            native.gguf_set_val_u32(gguf, name, value)
    return gguf


def _model_from(gguf: Any, fill: Fill) -> Any:
    failures: list[Exception] = []

    def set_data(address: int, _: object) -> None:
        if failures:
            return
        try:
            _fill_tensor(address, fill)
        except Exception as failure:  # it must not cross llama.cpp's frames
            failures.append(failure)

    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.use_extra_bufts, params.n_gpu_layers = False, 0
    with captured_logs() as log:
        model = llama.llama_model_init_from_user(gguf, native.SetTensorData(set_data), None, params)
    if failures:
        llama.llama_model_free(model)
        raise failures[0]
    if not model:
        raise ModelFileError(f"llama.cpp refuses this metadata: {log.reason()}")
    return model


def _fill_tensor(address: int, fill: Fill) -> None:
    node = GraphNode(address)
    shape = node.shape[::-1]
    first = next((axis for axis, length in enumerate(shape) if length > 1), 3)
    data = np.ascontiguousarray(fill(node.name, shape[first:]), np.float32)
    if data.shape != shape[first:]:
        raise ValueError(f"{node.name} has shape {shape[first:]}, fill gave {data.shape}")
    native.ggml_backend_tensor_set(address, native.address_of(data), 0, data.nbytes)
