"""Whether reading ahead pays, by its own measurement: tokens with it beside tokens without it.

What it gives depends on the drive, the budget, the text and on who else uses the machine; guesses
take memory bandwidth and processor time even while the drive is idle. So it is tried, tokens with
and without in turn, and then the faster way is kept for a while.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WARM_PASSES = 32  # after loading: slots that fill for the first time cost more than reads
TRIAL_PASSES = 32  # half with, half without
KEEP_PASSES = 192  # from one trial to the next
MOST_LOSS = 0.02  # guesses are right more often than not: they need not prove more than this


class Payoff:
    """Switches reading ahead on and off: `on` says which it is for the pass to come."""

    def __init__(self) -> None:
        self.on = True
        self._passes_left, self._is_trial = WARM_PASSES, False
        self._passes: dict[bool, list[tuple[float, int]]] = {True: [], False: []}

    def note_pass(self, pass_s: float, needed: int) -> None:
        """A token took `pass_s` seconds, and `needed` experts that had no slot before anybody
        guessed them."""
        if self._is_trial:
            self._passes[self.on].append((pass_s, needed))
        self._passes_left -= 1
        if self._passes_left == 0:
            self._next_phase()
        if self._is_trial:
            # One by one: while slots fill, tokens need less and less, and windows of eight passes
            # found losses of a third that were none.
            self.on = self._passes_left % 4 in (0, 1)

    def _next_phase(self) -> None:
        if self._is_trial:
            self.on = gain(self._passes[True], self._passes[False]) >= -MOST_LOSS
            self._passes = {True: [], False: []}
        self._is_trial = not self._is_trial
        self._passes_left = TRIAL_PASSES if self._is_trial else KEEP_PASSES


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
