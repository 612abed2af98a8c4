"""How many threads compute, and how they wait, on a machine that others use too.

The speed of each setting is measured in the passes that are computed anyway. Plain numbers go in
and come out: the caller runs the passes.
"""

from typing import NamedTuple

LONG_SPIN_S = 200e-6  # as long as the steps between two regions of a token take
SHORT_SPIN_S = 10e-6
_TRIAL_S, _TRIAL_PASSES = 0.04, 3  # a setting is tried for at least so long,
_LONG_TRIAL_S = 0.15  # or for so long in however few passes
_HOPELESS = 2.0  # so many times the best one's time: two passes are trial enough, of twice it one
_BETTER = 0.95  # of the time of the setting in use: less than that is noise
_WINDOW_S = 0.03  # over which the share of delays is taken
_CROWDED_SHARE, _FREE_SHARE = 0.10, 0.02
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 16.0
_REST_FACTOR = 50  # a round of trials may cost a fiftieth of the time


class Setting(NamedTuple):
    """How a pass is computed: by at most `num_threads` threads, each of which looks for `spin_s`
    seconds for what it waits for before it sleeps."""

    num_threads: int
    spin_s: float


def settings_for(num_ranks: int) -> list[Setting]:
    """What is tried for a context of so many ranks: first what suits a machine that is free, then
    threads that sleep soon: all, all but one, half of them, a quarter, ... and one."""
    counts = {num_ranks, max(1, num_ranks - 1)}
    halved = num_ranks
    while halved > 1:
        halved = (halved + 1) // 2
        counts.add(halved)
    brief = [Setting(num, SHORT_SPIN_S) for num in sorted(counts, reverse=True)]
    return [Setting(num_ranks, LONG_SPIN_S), *brief]


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
        """Seconds a pass takes."""
        return self._elapsed_s / self._num_passes if self._num_passes else self._first_s or 0.0

    def is_enough(self, best_pass_s: float) -> bool:
        """Whether its speed is known, or known to be far from the best."""
        hopeless = _HOPELESS * best_pass_s * (1 if self._num_passes >= 2 else 2)
        if self._num_passes != 1 and self.pass_s > hopeless:
            return True
        enough = self._num_passes >= _TRIAL_PASSES and self._elapsed_s >= _TRIAL_S
        return enough or self._elapsed_s >= _LONG_TRIAL_S


class _Window:
    """The latest passes of the setting in use, until there is enough of them to judge."""

    def __init__(self) -> None:
        self._num_passes = 0
        self._elapsed_s = self._delayed_s = 0.0

    def note(self, pass_s: float, delayed_s: float) -> None:
        self._num_passes += 1
        self._elapsed_s += pass_s
        self._delayed_s += max(0.0, delayed_s)

    @property
    def is_full(self) -> bool:
        return self._elapsed_s >= _WINDOW_S

    @property
    def pass_s(self) -> float:
        return self._elapsed_s / self._num_passes

    def delayed_share(self, num_threads: int) -> float:
        """Of the time of so many threads."""
        return self._delayed_s / (self._elapsed_s * num_threads)


class Crowd:
    """Chooses the setting of every pass of a context of `num_ranks` ranks.

    All settings are tried in a round, one after the other, and the fastest is used until the next
    round: when the share of time in which threads were ready and did not run says that others came
    or went, and else after a rest, which grows while rounds change nothing.
    """

    def __init__(self, num_ranks: int) -> None:
        self._settings = settings_for(num_ranks)
        self._best = 0
        self._window = _Window()
        self._crowded: bool | None = None  # unknown before the first window
        self._trial: _Trial | None = None
        self._to_try: list[int] = []
        self._round: dict[int, float] = {}  # by setting: seconds a pass took in this round
        self._rested_s = self._rest_s = 0.0  # the first window ends in a round

    def setting(self, num_rows: int) -> Setting:
        """For the next pass. One of many rows has long nodes: all threads compute it."""
        if num_rows > 1:
            return self._settings[min(self._best, 1)]
        return self._settings[self._best if self._trial is None else self._trial.index]

    def note(self, pass_s: float, delayed_s: float) -> None:
        """A pass of one row took `pass_s` with the setting that was asked for; its threads together
        were ready and did not run for `delayed_s`, negative where nobody knows."""
        if len(self._settings) == 2:  # one rank: there is nothing to choose
            return
        if self._trial is not None:
            self._go_on(self._trial, pass_s)
            return
        self._rested_s += pass_s
        self._window.note(pass_s, delayed_s)
        if self._window.is_full:
            window, self._window = self._window, _Window()
            self._judge(window)

    def _judge(self, window: _Window) -> None:
        share = window.delayed_share(self._settings[self._best].num_threads)
        before = self._crowded
        self._crowded = share > (_FREE_SHARE if before else _CROWDED_SHARE)
        if before is not None and self._crowded != before:  # others came or went
            self._rest_s = 0.0  # the next window, wholly after that, ends in a round
        elif self._rested_s >= self._rest_s:
            self._begin_round(window.pass_s)

    # ------------------------------------------------------------------- rounds
    def _begin_round(self, pass_s: float) -> None:
        """The setting in use takes `pass_s` a pass; try the others."""
        first = 1 if self._crowded and self._best else 0  # long spins cannot pay beside others
        others = [index for index in range(first, len(self._settings)) if index != self._best]
        self._to_try = others[::-1]
        self._round = {self._best: pass_s}
        self._next_trial()

    def _next_trial(self) -> None:
        self._trial = _Trial(self._to_try.pop()) if self._to_try else None
        if self._trial is None:
            self._end_round()

    def _go_on(self, trial: _Trial, pass_s: float) -> None:
        trial.note(pass_s)
        if trial.is_enough(min(self._round.values())):
            self._round[trial.index] = trial.pass_s
            self._next_trial()

    def _end_round(self) -> None:
        fastest = min(self._round, key=self._round.__getitem__)
        if self._round[fastest] < _BETTER * self._round[self._best]:
            self._best, self._rest_s = fastest, _FIRST_REST_S
        else:
            cost_s = sum(_TRIAL_S + _TRIAL_PASSES * pass_s for pass_s in self._round.values())
            longer_s = min(max(2 * self._rest_s, _FIRST_REST_S), _LONGEST_REST_S)
            self._rest_s = max(longer_s, _REST_FACTOR * cost_s)
        self._rested_s = 0.0
