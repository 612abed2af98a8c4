"""Block types of GGUF tensors: how many elements and bytes a block has."""

from dataclasses import dataclass
from functools import lru_cache

from haversack.devices.ggml import type_geometry

_NUM_TYPES = 43  # GGML_TYPE_COUNT of the ggml we bind
_NOT_FOR_WEIGHTS = {"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"}


@dataclass(frozen=True)
class BlockType:
    """A ggml type: its number, its name and the geometry of one block."""

    type_id: int
    name: str
    block_elements: int
    block_bytes: int

    def row_bytes(self, num_elements: int) -> int:
        """Return the bytes of a row. Raises ValueError if blocks do not divide it."""
        if num_elements % self.block_elements:
            raise ValueError(
                f"a row of {num_elements} elements is no multiple of {self.name}'s block of"
                f" {self.block_elements}"
            )
        return num_elements // self.block_elements * self.block_bytes


@lru_cache
def block_type(type_id: int) -> BlockType:
    """Return the type numbered `type_id`. Raises ValueError if this ggml has none."""
    found = type_geometry(type_id) if 0 <= type_id < _NUM_TYPES else ("", 0, 0)
    if found[1] == 0:
        raise ValueError(f"block type {type_id} is not one of this llama.cpp's")
    return BlockType(type_id, *found)


@lru_cache
def weight_types() -> tuple[BlockType, ...]:
    """Return all types that a weight can have, those with the fewest bytes per element first."""
    found = (BlockType(i, *type_geometry(i)) for i in range(_NUM_TYPES))
    usable = (t for t in found if t.block_elements and t.name not in _NOT_FOR_WEIGHTS)
    return tuple(sorted(usable, key=lambda t: (t.block_bytes / t.block_elements, t.type_id)))


# "Q4_K" to its number 12, for all types that a weight can have, in the order of the numbers.
BLOCK_TYPES = {
    each.name.upper(): each.type_id for each in sorted(weight_types(), key=lambda t: t.type_id)
}


def smallest_type(row_elements: int) -> BlockType:
    """Return the type that takes the fewest bytes among those whose blocks divide a row."""
    return next(t for t in weight_types() if row_elements % t.block_elements == 0)
