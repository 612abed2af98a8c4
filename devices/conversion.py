"""Conversion of rows between floats and blocks, by ggml's own functions.

Axis letters: K elements of a row.
"""

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices.ggml import F32, type_geometry

Floats = npt.NDArray[np.float32]


def requires_importance(type_id: int) -> bool:
    """Return whether ggml quantises to this type only with an importance of each column."""
    return bool(native.ggml_quantize_requires_imatrix(type_id))


def to_blocks(data: Floats, type_id: int, importance: Floats | None) -> npt.NDArray[np.uint8]:
    """Return `data` (..., K) in blocks of a type: (..., bytes of a row). Other threads run
    meanwhile.

    Blocks must divide K. `importance` (K,) says how much each column counts; it may be None where
    the type does not require one, because ggml ends the process without one.
    """
    num_columns = data.shape[-1]
    _, block_elements, block_bytes = type_geometry(type_id)
    assert num_columns % block_elements == 0, "whole blocks"
    assert importance is not None or not requires_importance(type_id), "this type requires it"
    rows = np.ascontiguousarray(data, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out = np.empty((*data.shape[:-1], num_columns // block_elements * block_bytes), np.uint8)
    native.ggml_quantize_chunk(
        type_id,
        native.address_of(rows),
        native.address_of(out),
        0,
        rows.size // num_columns,
        num_columns,
        None if weights is None else native.address_of(weights),
    )
    return out


def to_floats(blocks: npt.NDArray[np.uint8], type_id: int) -> Floats:
    """Return the values (..., K) of rows of whole blocks (..., bytes of a row). Other threads run
    meanwhile."""
    data = np.ascontiguousarray(blocks, np.uint8)
    if type_id == F32:
        return data.view(np.float32)
    _, block_elements, block_bytes = type_geometry(type_id)
    assert data.shape[-1] % block_bytes == 0, "whole blocks"
    out = np.empty((*data.shape[:-1], data.shape[-1] // block_bytes * block_elements), np.float32)
    convert = native.ggml_get_type_traits(type_id).contents.to_float
    convert(native.address_of(data), native.address_of(out), out.size)
    return out
