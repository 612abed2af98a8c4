"""Whether reading ahead pays, by its own measurement: tokens with it beside tokens without it.

What it gives depends on the drive, the budget, the text and on who else uses the machine; guesses
take memory bandwidth and processor time even while the drive is idle. So it is tried: a few tokens
with, a few without, twice, and then the faster way for a while.
"""

import statistics
from collections.abc import Sequence

WARM_PASSES = 16  # after loading, while the cache fills: they say nothing
WINDOW_PASSES = 8  # of a trial, with and without in turn
WINDOWS = (True, False, True, False)
KEEP_PASSES = 192  # from one trial to the next
LEAST_GAIN = 0.02  # reading ahead must be faster by this share


class Payoff:
    """Switches reading ahead on and off: `on` says which it is for the pass to come."""

    def __init__(self) -> None:
        self.on = True
        self._passes_left = WARM_PASSES
        self._window = len(WINDOWS)  # of the trial under way; none yet
        self._spent_s: dict[bool, list[float]] = {True: [], False: []}

    def note_pass(self, pass_s: float) -> None:
        """A token took `pass_s` seconds."""
        if self._window < len(WINDOWS):
            self._spent_s[self.on].append(pass_s)
        self._passes_left -= 1
        if self._passes_left == 0:
            self._next_window()

    def _next_window(self) -> None:
        self._window = (self._window + 1) % (len(WINDOWS) + 1)
        if self._window < len(WINDOWS):
            self.on, self._passes_left = WINDOWS[self._window], WINDOW_PASSES
        else:
            self.on = _pays(self._spent_s[True], self._spent_s[False])
            self._passes_left = KEEP_PASSES
            self._spent_s = {True: [], False: []}


def _pays(with_s: Sequence[float], without_s: Sequence[float]) -> bool:
    return statistics.median(with_s) <= (1 - LEAST_GAIN) * statistics.median(without_s)
