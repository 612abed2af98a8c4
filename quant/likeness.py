"""Whether two GGUF files hold the same model in two precisions, judged by samples of both.

Files of one model agree in shapes with those of its fine-tunes, and with any other model of its
family. They differ in weights. Norms and routers are float32 in both files, so another value there
means another model. The experts themselves are rounded, but rounded weights are still far nearer to
the originals than those of another model are. A fine-tune that left norms and routers alone is not
recognised: it changes the experts less than rounding does.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from haversack.devices.conversion import Floats
from haversack.devices.ggml import F32, GgufHeader, TensorInfo
from haversack.quant.experts import expert_rows
from haversack.quant.gguf import ModelGeometry, opened_headers

_SAMPLE_BYTES = 64 * 1024  # of each float32 tensor
_SAMPLE_ROWS = 8  # of each expert matrix that is compared
_MOST_UNLIKE_F32 = 1e-3  # float32 values that went through float16 differ by less
_MOST_UNLIKE_EXPERTS = 0.9  # rounding to 1.6 bits gives 0.6, other random weights give 1.4


def why_unlike(geometry: ModelGeometry, other: ModelGeometry) -> str | None:
    """Return why `other`, whose experts have the same names and shapes, holds another model than
    `geometry`, with what was measured; None if it seems to be the same."""
    with opened_headers(geometry.paths) as ours, opened_headers(other.paths) as theirs:
        for name, ours_found, theirs_found in _float_samples(ours, theirs):
            unlike = _difference(ours_found, theirs_found)
            if unlike > _MOST_UNLIKE_F32:
                return f"it is another model or a fine-tune: {name} differs by {unlike:.1%}"
    for layer, layer_of_other in zip(geometry.layers, other.layers, strict=True):
        for matrix, low in zip(layer.matrices, layer_of_other.matrices, strict=True):
            for expert in {0, matrix.num_experts - 1}:
                rows = expert_rows(geometry, matrix, expert, _SAMPLE_ROWS)
                unlike = _difference(rows, expert_rows(other, low, expert, _SAMPLE_ROWS))
                if unlike > _MOST_UNLIKE_EXPERTS:
                    return (
                        f"it is another model: expert {expert} of {matrix.name} differs by"
                        f" {unlike:.0%}, more than any rounding explains"
                    )
    return None


def _float_samples(
    ours: Sequence[GgufHeader], theirs: Sequence[GgufHeader]
) -> Iterator[tuple[str, Floats, Floats]]:
    """Yield the first values of each tensor that is float32 in both files."""
    found = {tensor.name: (header, tensor) for header in theirs for tensor in header.tensors}
    for header in ours:
        for tensor in header.tensors:
            their_header, their_tensor = found.get(tensor.name, (header, tensor))
            kinds = (tensor.type_id, their_tensor.type_id)
            if kinds == (F32, F32) and tensor.shape == their_tensor.shape:
                theirs_read = _first_values(their_header, their_tensor)
                yield tensor.name, _first_values(header, tensor), theirs_read


def _first_values(header: GgufHeader, tensor: TensorInfo) -> Floats:
    count = min(tensor.num_bytes, _SAMPLE_BYTES) // 4
    return np.fromfile(header.path, np.float32, count, offset=tensor.offset)


def _difference(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Return the length of the difference as a share of the length of `one`."""
    length = float(np.linalg.norm(one.astype(np.float64)))
    apart = float(np.linalg.norm(one.astype(np.float64) - other))
    return apart / length if length else float(apart > 0)
