"""Whether reading ahead pays, by its own measurement."""

from dataclasses import dataclass

WINDOW_PASSES = 8  # between two looks
TRIAL_EVERY_PASSES = 64  # while off, one window in so many passes is tried again
LEAST_WAIT_SHARE = 0.25  # below, the drive has time to spare as it is
LEAST_RIGHT_SHARE = 0.5  # below, wrong guesses take more of the drive than right ones give


@dataclass(frozen=True)
class Totals:
    """Counters since loading: seconds passed and waited for the disk, guesses and right ones."""

    time_s: float
    wait_s: float
    guessed: int
    guessed_right: int


class Payoff:
    """Switches reading ahead on and off: `on` says which it is."""

    def __init__(self) -> None:
        self.on = True
        self._passes = 0
        self._since = Totals(0.0, 0.0, 0, 0)

    def note_pass(self, now: Totals) -> None:
        """A token has been computed; the counters are at `now`."""
        self._passes += 1
        if self._passes == 1:
            self._since = now
        elif self.on and self._passes >= WINDOW_PASSES:
            self.on, self._passes, self._since = self._pays(now), 0, now
        elif not self.on and self._passes >= TRIAL_EVERY_PASSES:
            self.on, self._passes = True, 0

    def _pays(self, now: Totals) -> bool:
        """Whether the window that ends `now` was worth it: there was a wait to shorten, and most
        guesses were right."""
        time_s = now.time_s - self._since.time_s
        waited = now.wait_s - self._since.wait_s >= LEAST_WAIT_SHARE * time_s
        guessed = now.guessed - self._since.guessed
        right = now.guessed_right - self._since.guessed_right
        return waited and right >= LEAST_RIGHT_SHARE * guessed
