"""What a context holds of a sequence, as bytes: keys and values, and the state of recurrent
layers. Put back, it gives the same bits.

The bytes go straight between llama.cpp's buffers and memory that the caller maps from a file, so
that a copy of a long text takes no anonymous memory.
"""

from contextlib import suppress

import numpy as np
import numpy.typing as npt

from haversack.devices import _native as native
from haversack.devices._native import llama
from haversack.devices.errors import HaversackError, StorageError
from haversack.devices.llama import LlamaContext, Row
from haversack.devices.llama_model import LlamaModel
from haversack.devices.logs import captured_logs

_EVERY_SEQUENCE = -1
_ALL = 0  # no flag of LLAMA_STATE_SEQ_FLAGS

Bytes = npt.NDArray[np.uint8]


class KvStates:
    """Copies what contexts over a model hold of a sequence."""

    def __init__(self, model: LlamaModel, num_sequences: int) -> None:
        """`num_sequences` are those of its contexts."""
        # Of a single sequence llama.cpp leaves out what lies behind a sliding window, and the rest
        # would be put back at other places, where its sums have other bits. Asked for every
        # sequence, it gives all. That is put back as if it were of a single one: else llama.cpp
        # would go on at the first cell, because that lies behind the window.
        self._takes_all = int(llama.llama_model_n_swa(model.address)) > 0
        several = self._takes_all and num_sequences > 1
        self.why_not = (
            f"{model.path.name} has layers that see a window, of which llama.cpp keeps a sequence"
            f" whole only if it is the only one, not one of {num_sequences}: give one sequence"
            " (--parallel 1)"
            if several
            else ""
        )

    def num_bytes(self, context: LlamaContext, sequence: int) -> int:
        """Return how many bytes `read` gives now."""
        number = self._number(sequence)
        return int(llama.llama_state_seq_get_size_ext(context.address, number, _ALL))

    def read(self, context: LlamaContext, sequence: int, into: Bytes) -> None:
        """Copy what the context holds of `sequence` into memory of `num_bytes`. Raises
        StorageError."""
        _finish_copies(context)
        with captured_logs() as log:
            read_bytes = llama.llama_state_seq_get_data_ext(
                context.address, native.bytes_of(into), len(into), self._number(sequence), _ALL
            )
        if read_bytes != len(into):
            raise StorageError(f"llama.cpp does not copy the KV cache: {log.reason()}")

    def put(self, context: LlamaContext, sequence: int, state: Bytes) -> None:
        """Have the context hold of `sequence` what `read` gave. Raises StorageError if llama.cpp
        refuses it; then the sequence is empty."""
        _finish_copies(context)
        context.forget(0, sequence)
        with captured_logs() as log:
            put_bytes = llama.llama_state_seq_set_data_ext(
                context.address, native.bytes_of(state), len(state), sequence, _ALL
            )
        if put_bytes != len(state):
            context.forget(0, sequence)
            raise StorageError(f"llama.cpp does not take the KV cache back: {log.reason()}")

    def _number(self, sequence: int) -> int:
        return _EVERY_SEQUENCE if self._takes_all else sequence


def _finish_copies(context: LlamaContext) -> None:
    """Have llama.cpp make the copies now that it would make in the next pass, by a pass that is
    forgotten. Raises ClosedError."""
    sequence = context.copied_to
    if sequence is None:
        return
    position = context.num_tokens(sequence)
    with suppress(HaversackError):  # the copies come before whatever fails
        context.compute([Row(0, position, sequence, wants_logits=True)])
    context.forget(position, sequence)
