"""Low copies by requantising: an expert's values are rounded again, to a smaller block type."""

from collections import Counter

from haversack.devices.conversion import requires_importance, to_blocks
from haversack.devices.errors import ModelFileError
from haversack.quant.blocks import BLOCK_TYPES, BlockType, block_type
from haversack.quant.experts import Blocks, expert_rows
from haversack.quant.gguf import ExpertMatrix, ModelGeometry
from haversack.quant.importance import Importance
from haversack.quant.records import Layout, Stored

AUTO = "auto"
# Rounding to q3_k leaves half the error of q2_k, q4_k half of that (tools/results/low_copies.csv).
# So the largest copies are the best ones, as long as one saves almost half of a read.
_BY_SIZE = ("q4_k", "q3_k", "q2_k")
_MOST_SHARE = 0.56  # of the expert's bytes

# Where rows are no multiple of 256, of the types with blocks of 32 the smallest one of use. (Those
# with blocks of 64 or 128 leave errors of more than half of the values.)
_FOR_ODD_ROWS = "IQ4_NL"


class Requantizer:
    """Makes low copies of the block type called `low`, as "q2_k", with the importance of columns if
    it is given. "auto" is the most precise of q4_k, q3_k and q2_k whose copies take at most 56 % of
    the experts' bytes, or q2_k.

    Raises ModelFileError if there is no such type, if it requires an importance that is not there,
    or if it makes no matrix smaller.
    """

    def __init__(self, geometry: ModelGeometry, low: str, importance: Importance | None) -> None:
        if low != AUTO and low.upper() not in BLOCK_TYPES:
            names = ", ".join(name.lower() for name in BLOCK_TYPES)
            raise ModelFileError(f"--low is {low!r}: give one of auto, nested, {names}")
        self._geometry, self._importance = geometry, importance
        for name in _BY_SIZE if low == AUTO else (low,):
            self._wanted = block_type(BLOCK_TYPES[name.upper()])
            self._types = tuple(
                tuple(map(self._type_of, layer.matrices)) for layer in geometry.layers
            )
            if self._copy_bytes() <= _MOST_SHARE * geometry.expert_bytes:
                break
        self._refuse_useless()
        self._check_importance()

    def _type_of(self, matrix: ExpertMatrix) -> BlockType | None:
        """Return the type of the low copy of `matrix`, None if none would be smaller."""
        for kind in (self._wanted, block_type(BLOCK_TYPES[_FOR_ODD_ROWS])):
            if matrix.row_elements % kind.block_elements == 0:
                row_bytes = kind.row_bytes(matrix.row_elements)
                return kind if row_bytes * matrix.num_rows < matrix.expert_bytes else None
        return None

    def _copy_bytes(self) -> int:
        """Return the bytes of all low copies, with those of matrices that stay as they are."""
        return sum(
            layer.num_experts * (_stored(matrix, kind).num_bytes or matrix.expert_bytes)
            for layer, kinds in zip(self._geometry.layers, self._types, strict=True)
            for matrix, kind in zip(layer.matrices, kinds, strict=True)
        )

    def _refuse_useless(self) -> None:
        if not any(kind for kinds in self._types for kind in kinds):
            found = block_type(self._geometry.layers[0].matrices[0].type_id).name
            raise ModelFileError(
                f"{self._wanted.name} makes no expert of {self._geometry.path.name} smaller, they"
                f" are {found}: give a smaller type with --low"
            )

    def _check_importance(self) -> None:
        for layer, kinds in zip(self._geometry.layers, self._types, strict=True):
            for matrix, kind in zip(layer.matrices, kinds, strict=True):
                if self._importance is not None:
                    self._importance.check(matrix)
                if kind is not None and requires_importance(kind.type_id):
                    self._require_importance(matrix, kind)

    def _require_importance(self, matrix: ExpertMatrix, kind: BlockType) -> None:
        if self._importance is None:
            raise ModelFileError(
                f"{kind.name} is only made with an importance matrix: give --imatrix FILE or"
                " --calibrate TEXT, or another type with --low"
            )
        if self._importance.of(matrix, 0) is None:
            raise ModelFileError(
                f"{self._importance.source} has no numbers for {matrix.name}, which {kind.name}"
                " requires: give one of this model, or --calibrate TEXT"
            )

    @property
    def notes(self) -> list[str]:
        """What does not become the type that was asked for, for people."""
        others = Counter(
            (block_type(matrix.type_id).name, matrix.row_elements, kind and kind.name)
            for layer, kinds in zip(self._geometry.layers, self._types, strict=True)
            for matrix, kind in zip(layer.matrices, kinds, strict=True)
            if kind != self._wanted
        )
        return [
            f"{count} matrices of {was} with rows of {elements} elements"
            + (f" become {becomes}" if becomes else " stay as they are: nothing smaller fits")
            for (was, elements, becomes), count in others.items()
        ]

    def layout(self) -> Layout:
        """Return what the file of records will hold."""
        importance = self._importance
        matrices = tuple(
            tuple(_stored(*pair) for pair in zip(layer.matrices, kinds, strict=True))
            for layer, kinds in zip(self._geometry.layers, self._types, strict=True)
        )
        source = self._wanted.name + (f", weighted by {importance.source}" if importance else "")
        return Layout(
            model=str(self._geometry.path.resolve()),
            source=source,
            identity=f"{self._wanted.name} {importance.identity if importance else 'even'}",
            num_experts=tuple(layer.num_experts for layer in self._geometry.layers),
            matrices=(matrices,),
        )

    def slices(self, layer_idx: int, expert: int) -> list[list[Blocks]]:
        """Return the matrices of the one slice of an expert. Other threads run meanwhile. Raises
        StorageError if the model cannot be read."""
        made: list[Blocks] = []
        layer = self._geometry.layers[layer_idx]
        for matrix, kind in zip(layer.matrices, self._types[layer_idx], strict=True):
            if kind is not None:
                importance = self._importance.of(matrix, expert) if self._importance else None
                rows = expert_rows(self._geometry, matrix, expert)
                made.append(to_blocks(rows, kind.type_id, importance).reshape(-1))
        return [made]


def _stored(matrix: ExpertMatrix, kind: BlockType | None) -> Stored:
    if kind is None:
        return Stored(matrix.type_id, 0)
    return Stored(kind.type_id, kind.row_bytes(matrix.row_elements) * matrix.num_rows)
