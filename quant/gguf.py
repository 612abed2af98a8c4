"""The geometry of a model file: where the bytes of each routed expert and of all else lie.

Axis letters: K elements of a row, M rows of a matrix, E experts, L layers with experts.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from haversack.devices.errors import ModelFileError
from haversack.devices.ggml import GgufHeader, TensorInfo
from haversack.devices.units import format_bytes
from haversack.quant.blocks import block_type
from haversack.quant.holes import Hole, largest_hole, refuse_holes
from haversack.quant.kinds import refuse_other_kinds

# llama.cpp's names of the routed experts' weights. "_exps" alone would match too much: arctic has a
# norm called ffn_norm_exps, and biases and scales stay in the trunk.
EXPERT_PATTERN = r"ffn_(gate|up|down|gate_up)_exps\.weight$"
# What stands between an expert's products.
EXPERT_BIAS_PATTERN = r"ffn_(gate|up|down|gate_up)_exps\.(bias|scale)$"
_EXPERT_NAME = re.compile(r"^blk\.(\d+)\." + EXPERT_PATTERN)
_LAYER_NAME = re.compile(r"^blk\.(\d+)\.")
_KIND_ORDER = ("gate", "up", "gate_up", "down")  # the order in which a layer computes them
# A part of a split model: the name without it, its number, and the number of parts.
PART_NAME = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
_TENSOR_ALIGNMENT_BYTES = 32
_LARGE_BLOCK = 256  # weights


@dataclass(frozen=True)
class ExpertCopy:
    """A matrix of a layer's experts in one precision.

    Its blocks have the type `type_id` and lie in the file with the index `part`: `num_bytes` for
    each expert, those of the first expert at `offset`, those of each next one `stride_bytes`
    further. `level` 0 is the precision of the model's own file.
    """

    level: int
    type_id: int
    part: int
    offset: int
    num_bytes: int
    stride_bytes: int

    def place(self, expert: int) -> int:
        """Return where the bytes of `expert` begin in the file."""
        return self.offset + expert * self.stride_bytes


@dataclass(frozen=True)
class ExpertMatrix:
    """One projection of all experts of a layer: E matrices (M, K), one after the other.

    `part` is the index of the file that holds them, `offset` where the first one begins in it.
    """

    name: str
    kind: str
    type_id: int
    row_elements: int
    num_rows: int
    num_experts: int
    part: int
    offset: int
    expert_bytes: int

    @property
    def copies(self) -> tuple[ExpertCopy, ...]:
        """The matrix in every precision, by level. Today only that of the model's file exists."""
        place = self.part, self.offset, self.expert_bytes
        return (ExpertCopy(0, self.type_id, *place, stride_bytes=self.expert_bytes),)


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one layer, their matrices in the order they are computed."""

    layer: int
    matrices: tuple[ExpertMatrix, ...]

    @property
    def num_experts(self) -> int:
        return self.matrices[0].num_experts

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert: all of its matrices."""
        return sum(matrix.expert_bytes for matrix in self.matrices)


@dataclass(frozen=True)
class ModelGeometry:
    """What a model file (or its parts) holds, as its headers tell.

    `layers` are the layers that are computed. `unused` are the expert matrices of the layers after
    them, which only draft tokens (multi-token prediction): llama.cpp does not load them, and
    `trunk_bytes` does not count them. The model was trained with contexts of `trained_ctx_tokens`,
    None if the header does not tell.
    """

    paths: tuple[Path, ...]
    architecture: str
    trained_ctx_tokens: int | None
    num_experts_per_tok: int
    layers: tuple[ExpertLayer, ...]
    unused: tuple[ExpertMatrix, ...]
    trunk_bytes: int
    header_bytes: int

    @property
    def path(self) -> Path:
        """The file that names the model: the only one, or the first part."""
        return self.paths[0]

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts."""
        return sum(layer.num_experts * layer.expert_bytes for layer in self.layers)


def read_geometry(path: Path, *, header_alone: bool = False) -> ModelGeometry:
    """Read the geometry of the GGUF at `path`, or of the split model that `path` is a part of.

    Raises ModelFileError if the file is missing, no GGUF, no causal text model or truncated, if it
    has a large hole, or if a part is missing or belongs to another model. With `header_alone` the
    files have their lengths, but nothing was written where their tensors are.
    """
    paths = part_paths(path)
    with opened_headers(paths) as headers:
        refuse_other_kinds(headers)
        for header in headers:
            _refuse_truncated(header)
        _refuse_wrong_parts(headers)
        if not header_alone:
            refuse_holes(headers)
        return _geometry(paths, headers)


def hole_in(geometry: ModelGeometry) -> Hole | None:
    """Return the largest hole in the model's files, None if they have none: see `quant.holes`."""
    with opened_headers(geometry.paths) as headers:
        return largest_hole(headers)


def has_large_blocks(geometry: ModelGeometry) -> bool:
    """Return whether weights lie in blocks of 256, as those of K and IQ types do."""
    with opened_headers(geometry.paths) as headers:
        types = {tensor.type_id for header in headers for tensor in header.tensors}
    return any(block_type(each).block_elements >= _LARGE_BLOCK for each in types)


@contextmanager
def opened_headers(paths: Sequence[Path]) -> Iterator[list[GgufHeader]]:
    """Open the headers of all parts inside the block. Raises ModelFileError."""
    headers: list[GgufHeader] = []
    try:
        for path in paths:
            headers.append(GgufHeader(path))
        yield headers
    finally:
        for header in headers:
            header.close()


def part_paths(path: Path) -> tuple[Path, ...]:
    """Return all files of the model at `path`, in order. Raises ModelFileError if one is
    missing."""
    try:
        found = path.is_file()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise ModelFileError(f"{path}: {error.strerror}: give the path of a GGUF file") from error
    if not found:
        other = "is no regular file" if path.exists() else "does not exist"
        what = "is a folder" if path.is_dir() else other
        raise ModelFileError(f"{path} {what}: give the path of a GGUF file")
    match = PART_NAME.match(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return (path,)
    stem, count = match[1], int(match[3])
    parts = tuple(path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelFileError(
            f"{path.name} is one of {count} parts, of which {len(missing)} are missing"
            f" ({', '.join(missing[:3])}): put all parts into {path.parent}"
        )
    return parts


def _refuse_truncated(header: GgufHeader) -> None:
    need_bytes = max((t.offset + t.num_bytes for t in header.tensors), default=0)
    have_bytes = header.path.stat().st_size
    if have_bytes < need_bytes:
        raise ModelFileError(
            f"{header.path} is truncated: its tensors need {format_bytes(need_bytes)}"
            f" ({need_bytes} bytes), the file has {have_bytes}: copy or download it again"
        )


def _refuse_wrong_parts(headers: Sequence[GgufHeader]) -> None:
    """Raise ModelFileError if a part was renamed: tensors would be missing, and llama.cpp aborts
    where it sees a tensor twice."""
    seen = set[str]()
    for index, header in enumerate(headers):
        found = header.value("split.no") or 0, header.value("split.count") or 1
        if found != (index, len(headers)):
            raise ModelFileError(
                f"{header.path} has split.no {found[0]} and split.count {found[1]}, its name means"
                f" {index} and {len(headers)}: give the parts the names they were published with"
            )
        names = {tensor.name for tensor in header.tensors}
        if seen & names:
            raise ModelFileError(
                f"{header.path} holds {min(seen & names)}, as another part does: they may be of"
                " different models, or one may be a copy; get all parts again, from one place"
            )
        seen |= names


def _geometry(paths: tuple[Path, ...], headers: Sequence[GgufHeader]) -> ModelGeometry:
    architecture = headers[0].value("general.architecture")
    if not isinstance(architecture, str):
        raise ModelFileError(
            f"{paths[0]} has no key general.architecture, so nothing tells what model it is: give"
            " another file"
        )
    num_layers = _num_layers(headers[0], architecture)
    matrices = defaultdict[int, list[ExpertMatrix]](list)
    trunk_bytes = 0
    for part, header in enumerate(headers):
        for tensor in header.tensors:
            name = _EXPERT_NAME.match(tensor.name)
            if name is not None:
                matrices[int(name[1])].append(_expert_matrix(tensor, name[2], part))
            elif _layer_of(tensor) < num_layers:
                trunk_bytes += tensor.num_bytes + _TENSOR_ALIGNMENT_BYTES
    layers = tuple(
        ExpertLayer(layer, tuple(sorted(found, key=lambda m: _KIND_ORDER.index(m.kind))))
        for layer, found in sorted(matrices.items())
        if layer < num_layers
    )
    unused = [m for layer, found in sorted(matrices.items()) if layer >= num_layers for m in found]
    return ModelGeometry(
        paths=paths,
        architecture=architecture,
        trained_ctx_tokens=_trained_ctx_tokens(headers[0], architecture),
        num_experts_per_tok=_experts_per_tok(headers[0], architecture) if layers else 0,
        layers=layers,
        unused=tuple(unused),
        trunk_bytes=trunk_bytes,
        header_bytes=sum(header.data_offset for header in headers),
    )


def _trained_ctx_tokens(header: GgufHeader, architecture: str) -> int | None:
    found = header.value(f"{architecture}.context_length")
    return found if isinstance(found, int) else None


def _num_layers(header: GgufHeader, architecture: str) -> int:
    """Return how many layers are computed. Layers that only draft tokens may follow them."""
    all_layers = header.value(f"{architecture}.block_count")
    drafting = header.value(f"{architecture}.nextn_predict_layers") or 0
    if not isinstance(all_layers, int) or not isinstance(drafting, int):
        return sys.maxsize  # llama.cpp refuses the file with a reason
    return all_layers - drafting


def _layer_of(tensor: TensorInfo) -> int:
    name = _LAYER_NAME.match(tensor.name)
    return int(name[1]) if name else 0


def _expert_matrix(tensor: TensorInfo, kind: str, part: int) -> ExpertMatrix:
    row_elements, num_rows, num_experts, _ = tensor.shape
    if tensor.num_bytes == 0:
        raise ModelFileError(
            f"{tensor.name} is empty, its shape is {tensor.shape}: convert or download the model"
            " again"
        )
    return ExpertMatrix(
        name=tensor.name,
        kind=kind,
        type_id=tensor.type_id,
        row_elements=row_elements,
        num_rows=num_rows,
        num_experts=num_experts,
        part=part,
        offset=tensor.offset,
        expert_bytes=tensor.num_bytes // num_experts,
    )


def _experts_per_tok(header: GgufHeader, architecture: str) -> int:
    """Return the experts used per token, the most of any layer where layers differ.

    Raises ModelFileError if a layer has fewer experts, because llama.cpp would end the process.
    """
    num_experts, used = (
        header.value(f"{architecture}.{key}") for key in ("expert_count", "expert_used_count")
    )
    numbers = used if isinstance(used, list) else [used]
    largest = max((number for number in numbers if isinstance(number, int)), default=0)
    if not isinstance(num_experts, int) or not 1 <= largest <= num_experts:
        raise ModelFileError(
            f"{header.path} has routed experts, but its {architecture}.expert_count is"
            f" {num_experts} and its {architecture}.expert_used_count {used}:"
            " convert or download the model again"
        )
    return largest
