"""Reading an expert's matrix out of a model's file: its blocks, or its values.

Axis letters: K elements of a row, R rows.
"""

import numpy as np
import numpy.typing as npt

from haversack.devices.conversion import Floats, to_floats
from haversack.devices.errors import StorageError
from haversack.quant.blocks import block_type
from haversack.quant.gguf import ExpertMatrix, ModelGeometry

Blocks = npt.NDArray[np.uint8]


def expert_blocks(
    geometry: ModelGeometry, matrix: ExpertMatrix, expert: int, num_rows: int | None = None
) -> Blocks:
    """Return the first rows (all, if `num_rows` is None) of an expert's matrix as they lie in the
    file, (R, bytes of a row). Raises StorageError."""
    path, count = geometry.paths[matrix.part], min(num_rows or matrix.num_rows, matrix.num_rows)
    row_bytes = block_type(matrix.type_id).row_bytes(matrix.row_elements)
    offset = matrix.copies[0].place(expert)
    try:
        found = np.fromfile(path, np.uint8, count * row_bytes, offset=offset)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if len(found) < count * row_bytes:
        raise StorageError(f"{path} ends inside {matrix.name}: it became shorter, get it again")
    return found.reshape(count, row_bytes)


def expert_rows(
    geometry: ModelGeometry, matrix: ExpertMatrix, expert: int, num_rows: int | None = None
) -> Floats:
    """Return the values of the same rows, (R, K). Raises StorageError."""
    return to_floats(expert_blocks(geometry, matrix, expert, num_rows), matrix.type_id)
