"""An expert that is read before its layer asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from haversack.cache.slots import SlotTable
from haversack.devices.readers import Read
from haversack.offload.streamer import Streamer


@dataclass
class Guess:
    """An expert read ahead into a slot, LOADING and pinned there; `reads` has one a matrix.

    It is `withdrawn` once its layer chose others, and kept until its last read is done.
    """

    expert: int
    slot: int
    reads: list[Read] = field(default_factory=list)
    withdrawn: bool = False

    @property
    def done(self) -> bool:
        return all(read.done for read in self.reads)

    @property
    def came(self) -> bool:
        return all(read.came for read in self.reads)

    @property
    def failed(self) -> bool:
        return any(read.error is not None for read in self.reads)

    def want(self, streamer: Streamer) -> None:
        """Its layer chose it: what is still to come is demanded, or given up where the whole cannot
        come any more."""
        if self.withdrawn or self.failed:
            streamer.settle(self.reads)
        else:
            streamer.demand(self.reads)


def let_go(table: SlotTable, guesses: Sequence[Guess]) -> None:
    """No read of `guesses` is under way any more: those stay in their slots that came whole."""
    came = np.array([guess.slot for guess in guesses if guess.came], np.int32)
    lost = np.array([guess.slot for guess in guesses if not guess.came], np.int32)
    table.fill(came)
    if len(lost):
        table.drop(lost)
    table.unpin(np.concatenate([came, lost]))
