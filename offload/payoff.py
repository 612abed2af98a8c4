"""Whether reading ahead pays, by its own measurement: tokens with it beside tokens without it.

What it gives depends on the drive, the budget, the text and on who else uses the machine; guesses
take memory bandwidth and processor time even while the drive is idle. So it is tried: a few tokens
with, a few without, twice, and then the faster way for a while.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WARM_PASSES = 16  # after loading, while the cache fills: they say nothing
WINDOW_PASSES = 8  # of a trial, with and without in turn
WINDOWS = (True, False, True, False)
KEEP_PASSES = 192  # from one trial to the next
LEAST_GAIN = 0.0  # guesses are right more often than not: they need not prove more


class Payoff:
    """Switches reading ahead on and off: `on` says which it is for the pass to come."""

    def __init__(self) -> None:
        self.on = True
        self._passes_left = WARM_PASSES
        self._window = len(WINDOWS)  # of the trial under way; none yet
        self._passes: dict[bool, list[tuple[float, int]]] = {True: [], False: []}

    def note_pass(self, pass_s: float, needed: int) -> None:
        """A token took `pass_s` seconds, and `needed` experts that had no slot before anybody
        guessed them."""
        if self._window < len(WINDOWS):
            self._passes[self.on].append((pass_s, needed))
        self._passes_left -= 1
        if self._passes_left == 0:
            self._next_window()

    def _next_window(self) -> None:
        self._window = (self._window + 1) % (len(WINDOWS) + 1)
        if self._window < len(WINDOWS):
            self.on, self._passes_left = WINDOWS[self._window], WINDOW_PASSES
        else:
            self.on = gain(self._passes[True], self._passes[False]) >= LEAST_GAIN
            self._passes_left = KEEP_PASSES
            self._passes = {True: [], False: []}


def gain(with_it: Sequence[tuple[float, int]], without: Sequence[tuple[float, int]]) -> float:
    """By what share passes (seconds, experts needed) are shorter than others, at equal need: what
    a token needs differs more from the next one's than reading ahead can save."""
    both = np.array([*with_it, *without], np.float64)
    spent_s, needed = both[:, 0], both[:, 1]
    is_with = np.arange(len(both)) < len(with_it)
    rest_s = spent_s - _slope(spent_s, needed, is_with) * (needed - needed.mean())
    return float(1 - np.median(rest_s[is_with]) / np.median(rest_s[~is_with]))


def _slope(
    spent_s: npt.NDArray[np.float64],
    needed: npt.NDArray[np.float64],
    is_with: npt.NDArray[np.bool_],
) -> float:
    """Seconds a needed expert costs in either way, by least squares; never below 0."""
    spent_s = np.minimum(spent_s, 2 * np.median(spent_s))  # a stalled pass says nothing
    products = squares = 0.0
    for way in (is_with, ~is_with):
        apart = needed[way] - needed[way].mean()
        products += float(apart @ spent_s[way])
        squares += float(apart @ apart)
    return max(0.0, products / squares) if squares else 0.0
