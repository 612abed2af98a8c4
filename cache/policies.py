"""Which slot goes when another expert needs room."""

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int32]


class Lru:
    """The slot whose expert was used longest ago goes first; a slot never used, before all."""

    def __init__(self, num_slots: int) -> None:
        self._clock = 0
        self._last_use = np.zeros(num_slots, np.int64)

    def touch(self, slots: Slots) -> None:
        """The experts in `slots` are used now, all at the same moment."""
        self._clock += 1
        self._last_use[slots] = self._clock

    def forget(self, slots: Slots) -> None:
        """`slots` hold nothing any more: they go first."""
        self._last_use[slots] = 0

    def choose(self, usable: npt.NDArray[np.bool_], count: int) -> Slots:
        """The `count` slots of the `usable` ones to give up, the first to go first."""
        candidates = np.flatnonzero(usable)
        # unique, so that of equally old slots the first goes first, however they are sorted
        keys = self._last_use[candidates] * len(self._last_use) + candidates
        if count < len(keys):  # a token wants a few slots of thousands: do not sort them all
            oldest = np.argpartition(keys, count)[:count]
            candidates, keys = candidates[oldest], keys[oldest]
        chosen: Slots = candidates[np.argsort(keys)].astype(np.int32)
        return chosen
