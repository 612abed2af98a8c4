"""How many threads compute, and how they wait, on a machine that other programs use too.

The speed of each setting is measured in the passes that are computed anyway. Plain numbers go in
and come out: the caller runs the passes.
"""

from typing import NamedTuple

LONG_SPIN_S = 200e-6  # the time between two regions of a token; more gains nothing
SHORT_SPIN_S = 10e-6
_WINDOW_S = 0.03  # length of a window, over which passes are averaged
_WINDOW_WEIGHT = 0.3  # of the latest window in the running averages
_CROWDED_SHARE, _FREE_SHARE = 0.2, 0.1  # reads alone delay threads for 0.05 of their time
_TRIAL_S, _TRIAL_PASSES = 0.12, 3  # a setting is tried for at least so long and so many passes,
_LONG_TRIAL_S = 0.2  # or for so long in however few
_HOPELESS = 2.0  # of the best pass time: two such passes end a trial, or one of twice that
_CROWDED_GAIN, _FREE_GAIN = 1.05, 1.1  # another setting must be faster by this factor
_SHORTEST_REST_S, _LONGEST_REST_S = 1.0, 16.0  # from one round to the next
_CHANGE_REST_S = 0.25  # the same where other programs seem to have begun or ended
_REST_FACTOR = 100  # a round may lose a hundredth of the time
_NOISE = 1.5  # rounds that find no more than this factor apart are averaged


class Setting(NamedTuple):
    """How a pass is computed: by at most `num_threads` threads. A thread that waits spins for
    `spin_s` seconds before it sleeps."""

    num_threads: int
    spin_s: float


def settings_for(num_ranks: int) -> list[Setting]:
    """Return the settings to try for a context of `num_ranks` ranks.

    The first one suits a machine that runs nothing else. In the others threads sleep soon: all
    threads, all but one, half of them, a quarter, ... and one.
    """
    counts = {num_ranks, max(1, num_ranks - 1)}
    halved = num_ranks
    while halved > 1:
        halved = (halved + 1) // 2
        counts.add(halved)
    brief = [Setting(num, SHORT_SPIN_S) for num in sorted(counts, reverse=True)]
    return [Setting(num_ranks, LONG_SPIN_S), *brief]


_FREE, _ALL_BRIEFLY = 0, 1  # positions in the list
_FEW_ROWS = 7


class _Trial:
    """The passes of one setting in a round. A short first pass, in which the threads wake, does not
    count."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._first_s: float | None = None
        self._num_passes = 0
        self._elapsed_s = 0.0

    def note(self, pass_s: float) -> None:
        if self._first_s is None:
            self._first_s = pass_s
            if pass_s < _TRIAL_S:
                return
        self._num_passes += 1
        self._elapsed_s += pass_s

    @property
    def pass_s(self) -> float:
        """Return the seconds that a pass takes."""
        return self._elapsed_s / self._num_passes if self._num_passes else self._first_s or 0.0

    def lost_s(self, best_pass_s: float) -> float:
        """Return the seconds it took beyond as many passes of the best setting."""
        spent_s = self._elapsed_s if self._num_passes else self._first_s or 0.0
        return max(0.0, spent_s - max(1, self._num_passes) * best_pass_s)

    def is_enough(self, best_pass_s: float) -> bool:
        """Return whether its speed is known, or known to be far from the best."""
        hopeless = _HOPELESS * best_pass_s * (1 if self._num_passes >= 2 else 2)
        if self._num_passes != 1 and self.pass_s > hopeless:
            return True
        enough = self._num_passes >= _TRIAL_PASSES and self._elapsed_s >= _TRIAL_S
        return enough or self._elapsed_s >= _LONG_TRIAL_S


class _Windows:
    """Running averages of the setting in use: seconds a pass, and the share of its threads' time in
    which they were ready and did not run."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self.pass_s = self.delayed_share = 0.0
        self._num_windows = 0
        self._begin()

    def _begin(self) -> None:
        self._num_passes = 0
        self._elapsed_s = self._delayed_s = 0.0

    def note(self, passes_s: float, delayed_s: float, num_passes: int) -> bool:
        """Count passes. Return whether they complete a window, and so change the averages."""
        self._num_passes += num_passes
        self._elapsed_s += passes_s
        self._delayed_s += max(0.0, delayed_s)
        if self._elapsed_s < _WINDOW_S:
            return False
        weight = _WINDOW_WEIGHT if self._num_windows else 1.0
        share = self._delayed_s / (self._elapsed_s * self._num_threads)
        self.pass_s += weight * (self._elapsed_s / self._num_passes - self.pass_s)
        self.delayed_share += weight * (share - self.delayed_share)
        self._num_windows += 1
        self._begin()
        return True


class Crowd:
    """Chooses the setting of every pass of a context of `num_ranks` ranks.

    A round tries all settings, one after the other. The fastest is used until the next round. A
    round begins soon after other programs begin or end, which shows in the share of time in which
    threads were ready and did not run. Otherwise it begins after a rest, which grows while rounds
    change nothing.
    """

    def __init__(self, num_ranks: int) -> None:
        self._settings = settings_for(num_ranks)
        self._best = _FREE
        self._windows = _Windows(num_ranks)
        self._crowded: bool | None = None  # unknown before the first window
        self._trial: _Trial | None = None
        self._to_try: list[int] = []
        self._pass_s: dict[int, float] = {}  # by setting: seconds a pass takes, as rounds found it
        self._lost_s = 0.0  # in this round
        self._is_sure = False  # whether this round has tried the setting in use too
        self._rested_s = self._rest_s = 0.0  # the first window ends in a round
        self._change_rest_s = _CHANGE_REST_S

    def setting(self, num_rows: int) -> Setting:
        """Return the setting for the next pass. All threads compute a batch, because its nodes are
        long; those of a few rows are as short as a single row's."""
        if num_rows > _FEW_ROWS:
            return self._settings[min(self._best, _ALL_BRIEFLY)]
        if num_rows > 1:
            return self._settings[self._best]
        return self._settings[self._best if self._trial is None else self._trial.index]

    @property
    def is_trying(self) -> bool:
        """Return whether the next pass of one row tries a setting."""
        return self._trial is not None

    def note(self, passes_s: float, delayed_s: float, num_passes: int = 1) -> None:
        """Count passes of one row that took `passes_s`, without waits for reads, with the current
        setting; only one where it `is_trying`.

        `delayed_s` is how long its threads together were ready and did not run, negative where that
        is not known.
        """
        if len(self._settings) == 2:  # one rank: there is nothing to choose
            return
        if self._trial is not None:
            self._go_on(self._trial, passes_s)
            return
        self._rested_s += passes_s
        if self._windows.note(passes_s, delayed_s, num_passes) and self._is_time():
            self._begin_round()

    def _is_time(self) -> bool:
        """Return whether to try all settings again."""
        before, share = self._crowded, self._windows.delayed_share
        self._crowded = share > (_FREE_SHARE if before else _CROWDED_SHARE)
        if before is None or self._crowded == before:
            return self._rested_s >= self._rest_s
        # Other programs began or ended: try again soon, with averages of the time after that.
        self._rest_s = min(self._rest_s, self._change_rest_s)
        self._pass_s.clear()
        self._windows = _Windows(self._settings[self._best].num_threads)
        return False

    # ------------------------------------------------------------------- rounds
    def _begin_round(self) -> None:
        """Try the other settings that may be faster."""
        # Spinning for long never pays beside other programs, nor does sleeping soon without them.
        hopeless = _FREE if self._crowded else _ALL_BRIEFLY
        others = [i for i in range(len(self._settings)) if i not in (self._best, hopeless)]
        self._to_try = others[::-1]
        self._lost_s, self._is_sure = 0.0, False
        self._pass_s = {i: pass_s for i, pass_s in self._pass_s.items() if i in others}
        self._pass_s[self._best] = self._windows.pass_s
        self._next_trial()

    def _next_trial(self) -> None:
        self._trial = _Trial(self._to_try.pop()) if self._to_try else None
        if self._trial is None:
            self._end_round()

    def _go_on(self, trial: _Trial, pass_s: float) -> None:
        trial.note(pass_s)
        best_s = self._pass_s[self._best]
        if trial.is_enough(best_s):
            before_s = self._pass_s.get(trial.index, trial.pass_s)
            alike = 1 / _NOISE < trial.pass_s / before_s < _NOISE
            self._pass_s[trial.index] = (trial.pass_s + before_s) / 2 if alike else trial.pass_s
            self._lost_s += trial.lost_s(best_s) if trial.index != self._best else 0.0
            self._next_trial()

    def _end_round(self) -> None:
        fastest = min(self._pass_s, key=self._pass_s.__getitem__)
        gain = self._pass_s[self._best] / self._pass_s[fastest]
        pays = gain > (_CROWDED_GAIN if self._crowded or fastest == _FREE else _FREE_GAIN)
        if pays and not self._is_sure:  # the time of the setting in use may be of other moments
            self._is_sure, self._trial = True, _Trial(self._best)
        elif pays:
            self._best = fastest
            self._rest_s, self._change_rest_s = _SHORTEST_REST_S, _CHANGE_REST_S
            self._windows = _Windows(self._settings[self._best].num_threads)
        else:
            longer_s = min(max(2 * self._rest_s, _SHORTEST_REST_S), _LONGEST_REST_S)
            self._rest_s = max(longer_s, _REST_FACTOR * self._lost_s)
            self._change_rest_s = min(2 * self._change_rest_s, _LONGEST_REST_S)
        self._rested_s = 0.0
