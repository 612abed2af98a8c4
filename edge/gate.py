"""The gate: decides by measured times how many drafted tokens a pass computes."""

from collections.abc import Sequence
from itertools import accumulate
from math import inf

from haversack.devices.llama import MOST_ROWS
from haversack.edge.pass_times import FEW_PASSES, FIRST_ROW_COST, DraftTimes, PassTimes

_FIRST_PASSES = 8  # timed without drafts before any is computed
_LEAST_GAIN = 1.02  # of the tokens a second that are expected: what a draft must promise
_MARGIN = 0.005  # of the time of passes without drafts: what trials may lose in all, and no more
_FIRST_CREDIT, _MOST_CREDIT = 3.0, 8.0  # in single tokens
_FIRST_REFRESH, _LONGEST_REFRESH = 12, 128  # passes with drafts until some without are timed anew
_REFRESH_PASSES = 2  # that are timed then, behind one that settles the draft before
_CHANGED = 0.15  # of that time: it is timed anew sooner
_COLD_PASSES = 8  # of a text that begins: they miss more experts than those that follow
_MOST_LEFT_OUT = 16  # cold passes: then texts are so short that no others come
_LONGEST_REST = 15  # passes until Python looks again, where its latest looks found none
_LOOKS_A_REST = 8  # that found none, for each pass of a rest
_CREDIT_PASSES = 16  # that earn credit before drafts are looked for again
_TRIAL_ROWS = (1, 3, 6, 2, 5, 4)  # drafted to see what they cost, in this order at first
_FIRST_TRIALS = 3  # of them follow each other soon
_FIRST_QUIET, _LONGEST_QUIET = 32, 2048  # passes without drafts until a trial
_LEAST_ROW_COST = 0.2  # of a drafted token in single tokens: the reason why none pays
_CHEAPER = 0.7  # of the expected time of a pass: the machine may have changed
_FIRST_STEADY, _LONGEST_STEADY = 16, 512  # passes with drafts until a trial of another length
_OWED_PASSES = 32  # over which the time that a drafter took to read a text is paid
_LEAST_READ, _MOST_READ = 16, 128  # tokens of a text that a drafter has not read, at a time


class Gate:
    """Decides how many drafted rows a pass gets. `base` is the rows that it has without them, one
    of each text.

    A row pays if tokens a second are expected to rise: by the measured times of passes, and by how
    often tokens that were drafted like this one came true. What trials and wrong expectations lose
    is limited to a small part of the time of passes without drafts.
    """

    def __init__(self) -> None:
        self.times, self.draft_times = PassTimes(), DraftTimes()
        self._owed_s = 0.0  # that a drafter took to read, and no pass has paid for yet
        self.saved_s = 0.0  # negative: lost
        self.why_closed = "too few tokens were decoded to know what pays"  # empty: it is open
        self._credit_s = 0.0
        self._skip = 0  # passes without a look
        self._num_vain = self._rest = 0  # looks since the latest draft; passes to skip for them
        self._quiet, self._since_round, self._num_trials = _FIRST_QUIET, 0, 0
        self._steady, self._since_trial = _FIRST_STEADY, 0
        self._since_plain, self._refresh = 0, _FIRST_REFRESH
        self._doubted: tuple[int, float] | None = None  # rows and time of passes timed anew
        self._num_cold = self._num_left_out = 0  # passes to come, and those that were not timed
        self._bases = set[int]()  # that have had their first credit
        self._latest_rows = 0  # of the pass before; 0: it was no usual one
        self._round: tuple[int, int, int, float] | None = None  # until its costs are known

    def is_looking(self, base: int) -> bool:
        """Return whether drafts are looked for before every pass now."""
        return base in self._bases and not self._skip and self._credit_s > 0

    @property
    def most_blind(self) -> int:
        """Return how many passes may follow without a look: the one that was asked for, and those
        that are skipped after it."""
        return 1 + self._skip

    def looks(self, base: int) -> bool:
        """Return whether drafts are to be looked for before the next pass."""
        if self._skip:
            self._skip -= 1
            return False
        if base not in self._bases:
            return False
        if self._credit_s <= 0:
            return self._close("drafts have lost time", _CREDIT_PASSES - 1)
        if self._since_plain >= self._refresh:
            self._since_plain, self._skip = 0, _REFRESH_PASSES
            self._doubted = base, self.times.of(base)
            self.times.doubt(base)
            return False
        if not self._is_trial_due and self._is_dear(base):
            return self._close(self._why_dear(base), self._quiet - self._since_round)
        return True

    def needs(self, base: int) -> list[float]:
        """Return what the chances of 1, 2, ... drafted rows must add up to, at least, for
        `num_worth` to want any."""
        return [self._need(base, number) for number in range(1, MOST_ROWS - base + 1)]

    def _need(self, base: int, number: int) -> float:
        plain_s, need = self.times.of(base) / base, inf
        if base + number <= self.times.most_timed + 1:
            need = _LEAST_GAIN * self._spent_s(base, number) / plain_s - base
        if self._is_trial_due:
            need = min(need, (self._trial_cost_s(base, number) - self._credit_s) / plain_s)
        return need

    @property
    def most_read(self) -> int:
        """Return how many tokens of a text a drafter may read before it drafts."""
        read_s = self.draft_times.read_s
        affordable = int(self._credit_s / read_s) if read_s else _MOST_READ
        return max(_LEAST_READ, min(affordable, _MOST_READ))

    def pays(self, base: int, survivals: Sequence[float]) -> bool:
        """Return whether a drafter shall draft a token behind those with `survivals`: whether it
        pays if it is sure to be right, or is to be tried."""
        if self._is_trial_due or self._since_trial + 1 >= self._steady:
            return True
        chance = survivals[-1] if survivals else 1.0
        return self._best(base, [*survivals, chance]) > len(survivals)

    def num_worth(self, base: int, survivals: Sequence[float]) -> int:
        """Return how many drafted rows to compute. `survivals` say how likely each of them is to be
        kept, the likeliest first."""
        number = self._best(base, survivals)
        if number:
            self._num_vain, self.why_closed = 0, ""
            self._since_trial += 1
            if self._since_trial < self._steady:
                return number
            self._steady = min(2 * self._steady, _LONGEST_STEADY)
            return self._trial(base, survivals, number) or number
        if survivals and self._is_trial_due and (number := self._due_trial(base, survivals)):
            return number
        self.why_closed = "no token is likely enough"
        self._num_vain += 1
        self._rest = min(self._num_vain // _LOOKS_A_REST, _LONGEST_REST)
        return 0

    def _is_dear(self, base: int) -> bool:
        """Return whether no draft pays, even if all of it comes true."""
        return not self._best(base, [1.0] * (MOST_ROWS - base))

    def _why_dear(self, base: int) -> str:
        cost = self.times.of(base + 1) / self.times.of(base)
        draft_s = self.draft_times.drafted_s
        if draft_s > _LEAST_ROW_COST * self.times.of(base) / base:
            return f"a drafted token takes {draft_s * base / self.times.of(base):.2f} single tokens"
        return f"a pass of {base + 1} rows takes {cost:.2f} times as long as one of {base}"

    def _due_trial(self, base: int, survivals: Sequence[float]) -> int:
        """As `_trial`. One that the credit does not allow yet is put off."""
        number = self._trial(base, survivals)
        if not number:
            self._since_round = max(0, self._quiet - _CREDIT_PASSES)
        elif self._num_trials >= _FIRST_TRIALS:
            self._quiet = min(2 * self._quiet, _LONGEST_QUIET)
        return number

    def _trial(self, base: int, survivals: Sequence[float], but: int = 0) -> int:
        """Return how many rows, `but` not so many, to compute to see what that takes: so many as
        are known least. 0: the credit allows none."""
        lengths = [each for each in _TRIAL_ROWS if each <= len(survivals) and each != but]
        number = min(lengths, key=lambda each: self.times.known(base + each), default=0)
        worth_s = sum(survivals[:number]) * self.times.of(base) / base
        if not number or self._trial_cost_s(base, number) - worth_s > self._credit_s:
            return 0
        self._num_trials, self._since_trial = self._num_trials + 1, 0
        return number

    def _trial_cost_s(self, base: int, number: int) -> float:
        """Return what `number` drafted rows are expected to take longer.

        A row more than was ever timed is hoped to cost no more than rows do on most machines: where
        the second row is dear because other code computes it, the seventh may cost little.
        """
        times, rows = self.times, base + number
        most = min(rows, times.most_timed)
        more_s = times.of(rows) - times.of(most)
        hoped_s = (rows - most) * FIRST_ROW_COST * times.of(base) / base
        return times.of(most) + min(more_s, hoped_s) - times.of(base)

    def _close(self, why: str, skip: int) -> bool:
        self.why_closed, self._skip = why, max(0, skip)
        return False

    @property
    def _is_trial_due(self) -> bool:
        return self._since_round >= self._quiet

    def _best(self, base: int, survivals: Sequence[float]) -> int:
        """Return how many of the rows give the most tokens a second."""
        best, best_tok_s = 0, _LEAST_GAIN * base / self.times.of(base)
        most = self.times.most_timed + 1 - base  # what wider passes cost is not known yet
        for number, expected in enumerate(accumulate(survivals[:most], initial=float(base))):
            tok_s = expected / self._spent_s(base, number)
            if number and tok_s > best_tok_s:
                best, best_tok_s = number, tok_s
        return best

    def _spent_s(self, base: int, number: int) -> float:
        """Return the time of a pass with `number` drafted rows, and of drafting them."""
        return self.times.of(base + number) + number * self.draft_times.drafted_s

    # ------------------------------------------------------------------ outcomes
    def note_drafter(
        self, num_drafted: int, drafted_s: float, num_read: int, read_s: float
    ) -> None:
        """Count the time of a drafter that computes. What it took to read is paid by and by: what
        it has read serves many passes."""
        self.draft_times.note(num_drafted, drafted_s, num_read, read_s)
        self._owed_s += read_s
        paid_s = drafted_s + self._owed_s / _OWED_PASSES
        self._owed_s -= self._owed_s / _OWED_PASSES
        self.saved_s -= paid_s
        if self.times.num_timed[1]:
            self._earn(-paid_s, 1)

    def note_plain(self, num_passes: int, passes_s: float, first_s: float) -> None:
        """Count passes of one row that followed each other, of which the first took `first_s`.
        Between them drafts were looked for at little cost, if at all."""
        self._num_vain = self._rest = 0
        self.note(1, 0, 0, first_s)
        left = num_passes - 1
        pass_s = (passes_s - first_s) / max(1, left)
        while left and self.times.num_timed[1] < _FIRST_PASSES:
            self.note(1, 0, 0, pass_s)
            left -= 1
        if left:
            self._time(1, pass_s, left)
            self._earn(_MARGIN * pass_s * left, 1)
            self._since_round += left
        self._skip = max(0, self._skip + 1 - num_passes)

    def note(self, base: int, num_drafted: int, num_right: int, pass_s: float) -> None:
        """Count a usual pass."""
        rows = base + num_drafted
        if num_drafted:
            self._settle(0.0)
            self._round = base, num_drafted, num_right, pass_s
            self._since_round, self._since_plain = 0, self._since_plain + 1
            self._num_cold = max(0, self._num_cold - 1)
        else:
            if self._latest_rows == rows:
                self._note_plain(rows, pass_s)
            elif self.times.num_timed[rows]:
                # After a pass of other rows llama.cpp makes its graph anew, and more.
                self._settle(pass_s - self.times.of(rows))
            self._since_round += 1
            self._skip, self._rest = max(self._skip, self._rest), 0
        self._latest_rows = rows

    def note_unusual(self) -> None:
        """Count a pass that is not to be compared with others, such as a prompt's."""
        self._settle(0.0)
        self._latest_rows = 0
        self._num_cold = _COLD_PASSES if self._num_left_out < _MOST_LEFT_OUT else 0

    def _time(self, rows: int, pass_s: float, num_passes: int = 1) -> None:
        """Time passes without drafts, if they tell something of others."""
        is_cold = self._num_cold > 0 and rows in self._bases
        self._num_cold = max(0, self._num_cold - num_passes)
        self._num_left_out = self._num_left_out + num_passes if is_cold else 0
        if not is_cold:
            self.times.note(rows, pass_s, num_passes)
            self._end_doubt(rows)

    def _end_doubt(self, rows: int) -> None:
        """Say when such passes are timed anew again, once they were."""
        if self._doubted is None or self._doubted[0] != rows:
            return
        if self.times.num_timed[rows] >= FEW_PASSES + _REFRESH_PASSES:
            has_changed = abs(self.times.of(rows) / self._doubted[1] - 1) > _CHANGED
            number = self._refresh // 2 if has_changed else 2 * self._refresh
            self._refresh = max(_FIRST_REFRESH, min(number, _LONGEST_REFRESH))
            self._doubted = None

    def _note_plain(self, rows: int, pass_s: float) -> None:
        times = self.times
        self._time(rows, pass_s)
        if times.num_timed[rows] >= _FIRST_PASSES and rows not in self._bases:
            self._bases.add(rows)
            self._earn(_FIRST_CREDIT * times.of(rows), rows)
        self._earn(_MARGIN * pass_s, rows)

    def _settle(self, more_s: float) -> None:
        """Count the latest round, which has made the pass after it take `more_s`."""
        if self._round is None:
            return
        base, num_drafted, num_right, pass_s = self._round
        self._round = None
        if not self.times.num_timed[base]:  # drafts have a fixed length
            self.times.note(base + num_drafted, pass_s + more_s)
            return
        rows, expected_s = base + num_drafted, self.times.of(base + num_drafted)
        took_s = pass_s + more_s
        if not self.times.num_timed[rows]:  # what comes once says nothing of later passes
            took_s = min(took_s, rows * self.times.of(base) / base)
        took_s = self.times.note(rows, took_s)
        if took_s < _CHEAPER * expected_s:  # look at other lengths soon
            self._steady, self._quiet = _FIRST_STEADY, _FIRST_QUIET
        gained_s = (1 + num_right / base) * self.times.of(base) - took_s
        self.saved_s += gained_s
        self._earn(gained_s, base)

    def _earn(self, gained_s: float, base: int) -> None:
        most_s = _MOST_CREDIT * self.times.of(base)
        self._credit_s = max(-most_s, min(self._credit_s + gained_s, most_s))
