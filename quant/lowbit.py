"""Low copies: a model's experts in fewer bytes, whatever they were made from.

The engine reads a low copy where an expert matters little. This module is the interface of all
sources. A second, smaller GGUF of the same model is one of them: its experts are used as they lie
in its file, so nothing has to be prepared. `haversack prepare` makes the others, see
`quant.requantize` and `quant.nested`.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.devices.errors import ModelFileError, StorageError
from haversack.devices.ggml import type_geometry
from haversack.devices.units import format_bytes
from haversack.quant.gguf import ExpertCopy, ExpertMatrix, ModelGeometry, read_geometry
from haversack.quant.likeness import why_unlike
from haversack.quant.records import low_path, read_records

_log = logging.getLogger("haversack.low")

LOW = 1  # the level of a low copy

Copies = tuple[tuple[ExpertCopy, ...], ...]  # by layer, in the model's order, and by matrix


@dataclass(frozen=True)
class LowCopies:
    """The low copies of a model's experts.

    `paths` are the files to open after the model's own: `part` of a copy counts both. A matrix of
    which `paths` hold nothing smaller is read from the model's file, also as a low copy.

    `digests[layer, expert]` is what `quant.records.digest` gives for the bytes of an expert's
    matrices in their order. It is 0 for an expert that has no low copy, because its record is
    damaged or not written yet: such an expert is read from the model's file. None: there are no
    checksums, and all experts have a copy.

    With `rests`, the low copies are nested: a matrix whose low copy is in memory becomes the
    original, bit for bit, when its rest is read and joined with it (see `quant.nested`). A rest has
    level 0 and the original's `type_id`; it is None where the low copy is the original already.
    `rest_digests` are the rests' checksums.
    """

    source: str
    paths: tuple[Path, ...]
    copies: Copies
    digests: npt.NDArray[np.uint64] | None = field(default=None, compare=False)
    rests: tuple[tuple[ExpertCopy | None, ...], ...] | None = None
    rest_digests: npt.NDArray[np.uint64] | None = field(default=None, compare=False)

    def has(self, layer_idx: int, expert: int) -> bool:
        """Return whether the expert of the `layer_idx`-th layer has a low copy."""
        return self.digests is None or bool(self.digests[layer_idx, expert])

    def share(self, geometry: ModelGeometry) -> float:
        """Return the share of the model's experts that have a low copy: below 1 where `prepare` was
        interrupted, or copies are damaged."""
        if self.digests is None:
            return 1.0
        return np.count_nonzero(self.digests) / sum(each.num_experts for each in geometry.layers)

    def expert_bytes(self, layer_idx: int) -> int:
        """Return the bytes of the low copy of an expert of the `layer_idx`-th layer."""
        return sum(copy.num_bytes for copy in self.copies[layer_idx])


def find_low(
    geometry: ModelGeometry, cache_dir: Path, low_from: Path | None = None
) -> LowCopies | None:
    """Return the low copies of a model's experts: those of the GGUF at `low_from` if it is given,
    else those that were prepared, None if there are none. Raises ModelFileError, see
    `low_from_gguf`."""
    if low_from is not None:
        return low_from_gguf(geometry, low_from)
    return prepared_low(geometry, cache_dir)


def low_from_gguf(geometry: ModelGeometry, path: Path) -> LowCopies:
    """Return low copies of a model's experts from the GGUF at `path`, a smaller one of the same
    model.

    Raises ModelFileError, which says why, if `path` is no GGUF, holds another model, or holds the
    experts in as many bytes or more.
    """
    low = read_geometry(path)
    why = _why_no_match(geometry, low) or why_unlike(geometry, low)
    if why is not None:
        raise ModelFileError(
            f"{path} gives no low copies of {geometry.path.name}: {why}; give a smaller GGUF of the"
            " same model with --low-from"
        )
    low_matrices = {matrix.name: matrix for matrix in _matrices(low)}
    copies = tuple(
        tuple(_smaller(matrix, low_matrices[matrix.name], geometry) for matrix in layer.matrices)
        for layer in geometry.layers
    )
    return LowCopies(f"the experts of {low.path}", low.paths, copies)


def kept_high(matrix: ExpertMatrix) -> ExpertCopy:
    """Return the low copy of a matrix of which nothing smaller exists: the model's own bytes."""
    return replace(matrix.copies[0], level=LOW)


def _smaller(high: ExpertMatrix, low: ExpertMatrix, geometry: ModelGeometry) -> ExpertCopy:
    if low.expert_bytes >= high.expert_bytes:
        return kept_high(high)
    return replace(low.copies[0], level=LOW, part=len(geometry.paths) + low.part)


def _why_no_match(geometry: ModelGeometry, low: ModelGeometry) -> str | None:
    """Return why the experts of `low` are no smaller copies by what the headers tell, else None."""
    if low.architecture != geometry.architecture:
        return f"it is of the architecture {low.architecture}, the model of {geometry.architecture}"
    if low.num_experts_per_tok != geometry.num_experts_per_tok:
        return (
            f"it uses {low.num_experts_per_tok} experts a token, the model"
            f" {geometry.num_experts_per_tok}"
        )
    if len(low.layers) != len(geometry.layers):
        return f"it has {len(low.layers)} layers with experts, the model {len(geometry.layers)}"
    low_matrices = {matrix.name: matrix for matrix in _matrices(low)}
    for matrix in _matrices(geometry):
        found = low_matrices.get(matrix.name)
        if found is None:
            return f"it has no {matrix.name}"
        if _shape(found) != _shape(matrix):
            return f"its {matrix.name} has the shape {_shape(found)}, the model's {_shape(matrix)}"
        if type_geometry(found.type_id)[1] == 0:
            return f"this llama.cpp does not know the type {found.type_id} of its {matrix.name}"
    if low.expert_bytes >= geometry.expert_bytes:
        return (
            f"its experts take {format_bytes(low.expert_bytes)}, the model's"
            f" {format_bytes(geometry.expert_bytes)}"
        )
    return None


def _matrices(geometry: ModelGeometry) -> Iterator[ExpertMatrix]:
    for layer in geometry.layers:
        yield from layer.matrices


def _shape(matrix: ExpertMatrix) -> tuple[int, int, int]:
    return matrix.row_elements, matrix.num_rows, matrix.num_experts


# -------------------------------------------------------------- prepared copies
def prepared_low(geometry: ModelGeometry, cache_dir: Path) -> LowCopies | None:
    """Return the low copies that `haversack prepare` has made of a model, those that are there by
    now; None if there are none. Copies that cannot be used are logged and give None."""
    path = low_path(geometry, cache_dir)
    if not path.is_file():
        _warn_of_older(path)
        return None
    try:
        layout, digests = read_records(path)
    except StorageError as error:
        _log.warning("%s; run `haversack prepare` again, until then there are none", error)
        return None
    part = len(geometry.paths)

    layers = tuple(enumerate(geometry.layers))
    copies = tuple(
        tuple(
            copy or kept_high(matrix)
            for copy, matrix in zip(layout.copies(0, idx, part), layer.matrices, strict=True)
        )
        for idx, layer in layers
    )
    if len(layout.matrices) == 1:
        return LowCopies(layout.source, (path,), copies, digests[0])
    rests = tuple(
        tuple(copy and replace(copy, level=0) for copy in layout.copies(1, idx, part))
        for idx, _ in layers
    )
    return LowCopies(layout.source, (path,), copies, digests[0], rests, digests[1])


def _warn_of_older(path: Path) -> None:
    model = path.name.split("-")[0]
    if any(path.parent.glob(f"{model}-*{path.suffix}")):
        _log.warning(
            "the low copies of this model were made of an older version of its file: run"
            " `haversack prepare` again, until then there are none"
        )
