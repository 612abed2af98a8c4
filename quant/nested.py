"""Nested copies: the bits of an expert in two slices, a base and a rest.

The base holds the upper bits of each code, as blocks of a coarser type that ggml multiplies with.
The rest holds the lower bits and the scales. Both together give the original block back, bit for
bit, so an expert whose base is in memory is made exact by reading only the rest. The base's scales
are new numbers, the best ones for its coarser codes; so both slices together are larger than the
original by them.

    original   bits of a code       base            rest
    Q4_K       4 = 2 + 2            Q2_K, 84 of 144 bytes    80
    Q5_K       5 = 2 + 3            Q2_K, 84 of 176 bytes   112
    Q6_K       6 = 2 + 4            Q2_K, 84 of 210 bytes   146
    Q8_0       8 = 4 + 4            Q4_1, 20 of 34 bytes     18

Other types have no nested form: their codes are indices into tables, which have no upper bits of
use (IQ, MXFP4, NVFP4), no coarser type has their blocks (Q4_0 to Q5_1), or nothing is coarser
(Q2_K). Joining is in devices/native/nested.cpp.

Axis letters: B blocks, G groups of a block that have a scale of their own, N elements of a group.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices._native import own
from haversack.devices.conversion import Floats, to_floats
from haversack.devices.errors import ModelFileError
from haversack.quant.blocks import BLOCK_TYPES, block_type
from haversack.quant.experts import Blocks, expert_blocks
from haversack.quant.gguf import ExpertMatrix, ModelGeometry
from haversack.quant.records import Layout, Stored

NESTED = "nested"

Codes = npt.NDArray[Any]  # uint8, which the types of NumPy's bitwise operators forget

_PLACES = np.array([0, 2, 4, 6], np.uint8)  # of the four codes in a byte of two bits each


@dataclass(frozen=True)
class NestedType:
    """How the blocks of a type are split. `split` returns (upper bits of the codes, the rest): the
    codes (B, elements) in the order of the elements, the rest (B, `rest_bytes`)."""

    type_id: int
    base_id: int
    rest_bytes: int
    split: Callable[[Codes], tuple[Codes, Codes]]


def nested_type(type_id: int) -> NestedType | None:
    """Return how blocks of a type are split, None if they have no nested form."""
    return _TYPES.get(type_id)


def split_blocks(blocks: Blocks, type_id: int) -> tuple[Blocks, Blocks]:
    """Return (base, rest) of blocks (B, bytes of a block) of a type that has a nested form."""
    kind = _TYPES[type_id]
    codes, rest = kind.split(blocks)
    values = to_floats(blocks, type_id)
    values[~np.isfinite(values)] = 0  # such a block restores too; its base means nothing
    encode = _q4_1 if kind.base_id == BLOCK_TYPES["Q4_1"] else _q2_k
    return encode(codes, values), rest


def join_blocks(base: Blocks, rest: Blocks, type_id: int) -> Blocks:
    """Return the original blocks (B, bytes of a block). Other threads run meanwhile."""
    assert type_id in _TYPES, "a type with a nested form"
    assert base.flags.c_contiguous, "blocks one after the other"
    assert rest.flags.c_contiguous, "blocks one after the other"
    out = np.empty((len(base), block_type(type_id).block_bytes), np.uint8)
    addresses = (native.address_of(array) for array in (base, rest, out))
    own.nested_join(type_id, *addresses, len(base))
    return out


# ----------------------------------------------------------------- original codes
def _pairs_of_bits(codes: Codes) -> Codes:
    """Pack codes of two bits (B, 256) as Q2_K and the upper bits of Q6_K lie: (B, 64)."""
    four = codes.reshape(-1, 2, 4, 32) << _PLACES[:, None]
    packed: Codes = np.bitwise_or.reduce(four, axis=2).reshape(-1, 64)
    return packed


def _nibbles(data: Codes) -> Codes:
    """Unpack the codes of four bits of Q4_K and Q5_K (B, 128): (B, 256)."""
    groups = data.reshape(-1, 4, 1, 32)
    return np.concatenate([groups & 15, groups >> 4], axis=2).reshape(-1, 256)


def _split_q4_k(blocks: Codes) -> tuple[Codes, Codes]:
    codes = _nibbles(blocks[:, 16:])
    return codes >> 2, np.hstack([blocks[:, :16], _pairs_of_bits(codes & 3)])


def _split_q5_k(blocks: Codes) -> tuple[Codes, Codes]:
    fifth = blocks[:, 16:48]
    upper = np.stack([fifth >> place & 1 for place in range(8)], axis=1).reshape(-1, 256)
    codes = _nibbles(blocks[:, 48:]) | upper << 4
    lowest = (codes & 1).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    lowest = np.bitwise_or.reduce(lowest, axis=1)
    return codes >> 3, np.hstack([blocks[:, :16], _pairs_of_bits(codes >> 1 & 3), lowest])


def _split_q6_k(blocks: Codes) -> tuple[Codes, Codes]:
    upper = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> _PLACES[:, None] & 3
    negative = (blocks[:, 192:208] ^ blocks[:, 209:210]) >> 7  # of each scale, with that of all
    codes = upper.reshape(-1, 16, 16) ^ (3 * negative)[..., None]
    return codes.reshape(-1, 256), np.hstack([blocks[:, :128], blocks[:, 192:]])


def _split_q8_0(blocks: Codes) -> tuple[Codes, Codes]:
    codes = blocks[:, 2:] ^ 0x80
    low = codes & 15
    return codes >> 4, np.hstack([blocks[:, :2], low[:, :16] | low[:, 16:] << 4])


_TYPES = {
    BLOCK_TYPES[name]: NestedType(BLOCK_TYPES[name], BLOCK_TYPES[base], rest_bytes, split)
    for name, base, rest_bytes, split in (
        ("Q4_K", "Q2_K", 80, _split_q4_k),
        ("Q5_K", "Q2_K", 112, _split_q5_k),
        ("Q6_K", "Q2_K", 146, _split_q6_k),
        ("Q8_0", "Q4_1", 18, _split_q8_0),
    )
}


# -------------------------------------------------------------------- base blocks
def _q2_k(codes: Codes, values: Floats) -> Codes:
    """Return blocks of Q2_K with these codes of two bits, whose scales fit `values` best. A value
    is d * scale * code - dmin * minimum, with scale and minimum of four bits for each group."""
    x, q = values.reshape(-1, 16, 16), codes.reshape(-1, 16, 16).astype(np.float32)
    slope, start = _lines(q, x)
    above = start > 0  # a minimum cannot be negative
    through_zero = (q * x).sum(-1) / np.maximum((q * q).sum(-1), 1)
    slope = np.maximum(np.where(above, through_zero, slope), 0)
    d, scales = _four_bits(slope)
    rounded = d.astype(np.float32)[:, None] * scales
    start = x.mean(-1) - rounded * q.mean(-1)
    dmin, minima = _four_bits(np.maximum(-start, 0))
    head = scales | minima << 4
    return np.hstack([head, _pairs_of_bits(codes), _bytes(d), _bytes(dmin)])


def _q4_1(codes: Codes, values: Floats) -> Codes:
    """Return blocks of Q4_1 with these codes of four bits: a value is d * code + m."""
    x, q = values.reshape(-1, 1, 32), codes.reshape(-1, 1, 32).astype(np.float32)
    slope, start = (_half(found[:, 0]) for found in _lines(q, x))
    return np.hstack([_bytes(slope), _bytes(start), codes[:, :16] | codes[:, 16:] << 4])


def _lines(q: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return slope and start (B, G) of the line through each group's (q, x), (B, G, N) each, with
    the least squares of errors."""
    mean_q, mean_x = q.mean(-1), x.mean(-1)
    away = q - mean_q[..., None]
    spread = (away * away).sum(-1)
    slope = (away * x).sum(-1) / np.where(spread > 0, spread, 1)
    return slope, mean_x - slope * mean_q


def _four_bits(numbers: Floats) -> tuple[npt.NDArray[np.float16], Codes]:
    """Return (unit (B,), multiples (B, G)) of numbers (B, G) that are not negative."""
    unit = _half(numbers.max(-1) / 15)
    divisor = np.where(unit > 0, unit, 1).astype(np.float32)[:, None]
    return unit, np.clip(np.rint(numbers / divisor), 0, 15).astype(np.uint8)


def _half(numbers: Floats) -> npt.NDArray[np.float16]:
    return np.clip(numbers, -65504, 65504).astype(np.float16)


def _bytes(numbers: npt.NDArray[np.float16]) -> Codes:
    return numbers.reshape(-1, 1).view(np.uint8)


# ---------------------------------------------------------------------- records
class Splitter:
    """Makes nested copies. Raises ModelFileError if no expert's type has a nested form."""

    def __init__(self, geometry: ModelGeometry) -> None:
        self._geometry = geometry
        if all(self._kind_of(m) is None for layer in geometry.layers for m in layer.matrices):
            found = block_type(geometry.layers[0].matrices[0].type_id).name
            names = ", ".join(block_type(type_id).name for type_id in _TYPES)
            raise ModelFileError(
                f"the experts of {geometry.path.name} are {found}, which has no nested form"
                f" ({names} have): give a smaller block type with --low"
            )

    @staticmethod
    def _kind_of(matrix: ExpertMatrix) -> NestedType | None:
        """Return how a matrix is split: not if rows are no whole number of its base's blocks."""
        kind = _TYPES.get(matrix.type_id)
        fits = kind and matrix.row_elements % block_type(kind.base_id).block_elements == 0
        return kind if fits else None

    @property
    def notes(self) -> list[str]:
        """What is not split, for people."""
        others = Counter(
            block_type(matrix.type_id).name
            for layer in self._geometry.layers
            for matrix in layer.matrices
            if self._kind_of(matrix) is None
        )
        return [
            f"{count} matrices of {name} stay as they are: the type has no nested form"
            for name, count in others.items()
        ]

    def layout(self) -> Layout:
        """Return what the file of records will hold."""
        layers = self._geometry.layers
        stored = [[self._stored(matrix) for matrix in layer.matrices] for layer in layers]
        bases, rests = (
            tuple(tuple(pair[slice_idx] for pair in pairs) for pairs in stored)
            for slice_idx in (0, 1)
        )
        return Layout(
            model=str(self._geometry.path.resolve()),
            source=NESTED,
            identity=NESTED,
            num_experts=tuple(layer.num_experts for layer in layers),
            matrices=(bases, rests),
        )

    def _stored(self, matrix: ExpertMatrix) -> tuple[Stored, Stored]:
        kind, original = self._kind_of(matrix), block_type(matrix.type_id)
        if kind is None:
            return Stored(matrix.type_id, 0), Stored(matrix.type_id, 0)
        num_blocks = matrix.expert_bytes // original.block_bytes
        base_bytes = num_blocks * block_type(kind.base_id).block_bytes
        return (
            Stored(kind.base_id, base_bytes),
            Stored(matrix.type_id, num_blocks * kind.rest_bytes),
        )

    def slices(self, layer_idx: int, expert: int) -> list[list[Blocks]]:
        """Return the bases and the rests of an expert's matrices. Raises StorageError."""
        bases: list[Blocks] = []
        rests: list[Blocks] = []
        for matrix in self._geometry.layers[layer_idx].matrices:
            kind = self._kind_of(matrix)
            if kind is not None:
                block_bytes = block_type(matrix.type_id).block_bytes
                blocks = expert_blocks(self._geometry, matrix, expert).reshape(-1, block_bytes)
                base, rest = split_blocks(blocks, matrix.type_id)
                bases.append(base.reshape(-1))
                rests.append(rest.reshape(-1))
        return [bases, rests]
