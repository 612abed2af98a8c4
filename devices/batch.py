"""The tokens of a pass, as llama.cpp is given them."""

from collections.abc import Sequence

from haversack.devices import _native as native
from haversack.devices._native import llama


class Batch:
    """struct llama_batch, made once and filled again for each pass."""

    def __init__(self, most_rows: int) -> None:
        self.most_rows = most_rows
        self._arrays = native.batch_arrays(most_rows)
        self.struct = native.batch_of(llama.llama_batch, self._arrays)

    def fill(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Put rows into the struct: a token, its position, its sequence, and whether it wants
        logits."""
        tokens, positions, sequences, wanted = self._arrays
        for i, row in enumerate(rows):
            tokens[i], positions[i], sequences[i], wanted[i] = row
        self.struct.n_tokens = len(rows)
