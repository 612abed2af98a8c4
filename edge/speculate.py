"""Speculation: tokens that are drafted and computed as rows beside the next token, where it pays.

A pass of several rows has the bits of single tokens. The sampler chooses a token after each row;
while it chooses the token that was drafted, the next row is right as well, and that token costs no
pass of its own. The rows behind are dropped. So the text is what it would be without drafts.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from haversack.cache import ngram
from haversack.cache.ngram import NgramDrafter, NgramMemory
from haversack.devices.errors import PromptError
from haversack.devices.llama import MOST_ROWS
from haversack.devices.steps import MOST_STEPS
from haversack.edge.call import Call

AUTO, OFF, NGRAM = "auto", "off", "ngram"
MOST_DRAFTED = MOST_ROWS - 1

_WEIGHT = 16  # passes that a running mean goes back
_STALE_PASSES = 256  # after which a mean counts as one pass
_OUTLIER = 4.0  # times the mean: what takes longer is counted as this long
_FIRST_ROW_COST = 0.7  # of one more row in single tokens, until passes of several rows were timed
_FIRST_PASSES = 8  # timed without drafts before any is computed
_LEAST_GAIN = 1.02  # of the tokens a second that are expected: what a draft must promise
_MARGIN = 0.005  # of the time of passes without drafts: what trials may lose in all, and no more
_FIRST_CREDIT, _MOST_CREDIT = 2.0, 8.0  # in single tokens
_REFRESH_PASSES = 128  # of passes with drafts: then two without, so that both stay comparable
_LONGEST_SKIP = 8  # passes until the next look for a draft, where the latest looks found none
_TRIAL_ROWS = (1, 3, 6, 2, 5, 4)  # drafted, by turns, to see what they cost
_FIRST_QUIET, _LONGEST_QUIET = 32, 2048  # passes without drafts until a trial
_CHEAPER = 0.7  # of the expected time of a pass: the machine may have changed
_FIRST_STEADY, _LONGEST_STEADY = 16, 512  # passes with drafts until a trial of another length


def fixed_length(speculate: object) -> int | None:
    """Return how many tokens are drafted at any price: 0 for "off", 6 for "ngram", N for "ngram:N",
    None for "auto", where measurements decide. Raises PromptError."""
    text = str(speculate)
    if text in (AUTO, OFF, NGRAM):
        return {AUTO: None, OFF: 0, NGRAM: MOST_DRAFTED}[text]
    kind, _, number = text.partition(":")
    if kind == NGRAM and number.isdecimal() and 1 <= int(number) <= MOST_DRAFTED:
        return int(number)
    known = f"give auto, off, ngram or ngram:N with N from 1 to {MOST_DRAFTED}"
    if text.endswith((".gguf", ".onnx")):
        raise PromptError(f"speculate is {text!r}: no model can draft yet, {known}")
    raise PromptError(f"speculate is {text!r}: {known}")


class PassTimes:
    """How long passes of 1 to 7 rows take: running means."""

    def __init__(self) -> None:
        self.num_timed = [0] * (MOST_ROWS + 1)
        self._mean_s = [0.0] * (MOST_ROWS + 1)
        self._noted_at, self._num_noted = [0] * (MOST_ROWS + 1), 0

    def note(self, num_rows: int, pass_s: float) -> float:
        """Count a pass. Return its time, or less if it was held up."""
        self._num_noted += 1
        if self._num_noted - self._noted_at[num_rows] > _STALE_PASSES:  # the machine may be another
            self.num_timed[num_rows] = min(1, self.num_timed[num_rows])
        self._noted_at[num_rows] = self._num_noted
        timed, mean_s = self.num_timed[num_rows], self._mean_s[num_rows]
        if timed >= 4:
            pass_s = min(pass_s, _OUTLIER * mean_s)
        self.num_timed[num_rows] = timed + 1
        self._mean_s[num_rows] = mean_s + (pass_s - mean_s) / min(timed + 1, _WEIGHT)
        return pass_s

    @property
    def most_timed(self) -> int:
        """Return the most rows of a pass that was timed."""
        return max(rows for rows, timed in enumerate(self.num_timed) if timed)

    def of(self, num_rows: int) -> float:
        """Return the seconds of a pass; where none of so many rows was timed, as if each row more
        cost what the rows below did. At least one pass of as many or fewer rows was timed."""
        if self.num_timed[num_rows]:
            return self._mean_s[num_rows]
        timed = [rows for rows in range(1, num_rows + 1) if self.num_timed[rows]]
        most, least = timed[-1], timed[0]
        row_s = _FIRST_ROW_COST * self._mean_s[least] / least
        if most > least:
            row_s = max(0.0, (self._mean_s[most] - self._mean_s[least]) / (most - least))
        return self._mean_s[most] + (num_rows - most) * row_s


class Gate:
    """Decides how many drafted rows a pass gets. `base` is the rows that it has without them, one
    of each text.

    A row pays if tokens a second are expected to rise: by the measured times of passes, and by how
    often tokens that were drafted like this one came true. What trials and wrong expectations lose
    is limited to a small part of the time of passes without drafts.
    """

    def __init__(self) -> None:
        self.times = PassTimes()
        self.saved_s = 0.0  # negative: lost
        self.why_closed = "nothing was decoded yet"  # empty while it is open
        self._credit_s = 0.0
        self._skip = self._longest_skip = 0  # passes without a look
        self._quiet, self._since_round, self._num_trials = _FIRST_QUIET, 0, 0
        self._steady, self._since_trial = _FIRST_STEADY, 0
        self._since_plain = 0
        self._bases = set[int]()  # that have had their first credit
        self._latest_rows = 0  # of the pass before; 0: it was no usual one
        self._round: tuple[int, int, int, float] | None = None  # until its costs are known

    @property
    def most_blind(self) -> int:
        """Return how many passes may follow without a look: the one that was looked at, and those
        that are skipped after it."""
        return 1 + self._skip

    def looks(self, base: int) -> bool:
        """Return whether drafts are to be looked for before the next pass."""
        if self._skip:
            self._skip -= 1
            return False
        if self.times.num_timed[base] < _FIRST_PASSES:
            return False
        if self._credit_s <= 0:
            return self._close("drafts have lost time", _LONGEST_SKIP)
        if self._since_plain >= _REFRESH_PASSES:
            self._since_plain, self._skip = 0, 1
            return False
        if not self._is_trial_due and self._is_dear(base):
            return self._close(self._why_dear(base), self._quiet - self._since_round)
        return True

    def num_worth(self, base: int, survivals: Sequence[float]) -> int:
        """Return how many drafted rows to compute. `survivals` say how likely each of them is to be
        kept, the likeliest first."""
        number = self._best(base, survivals)
        if number:
            self._longest_skip, self._quiet, self.why_closed = 0, _FIRST_QUIET, ""
            self._since_trial += 1
            if self._since_trial < self._steady:
                return number
            self._steady = min(2 * self._steady, _LONGEST_STEADY)
            return self._trial(base, survivals) or number
        if self._is_trial_due and (number := self._trial(base, survivals)):
            self._quiet = min(2 * self._quiet, _LONGEST_QUIET)
            return number
        self._longest_skip = min(2 * self._longest_skip + 1, _LONGEST_SKIP)
        why = "no token is likely enough"
        self._close(self._why_dear(base) if self._is_dear(base) else why, self._longest_skip)
        return 0

    def _is_dear(self, base: int) -> bool:
        """Return whether no draft pays, even if all of it comes true."""
        return not self._best(base, [1.0] * (MOST_ROWS - base))

    def _why_dear(self, base: int) -> str:
        cost = self.times.of(base + 1) / self.times.of(base)
        return f"a pass of {base + 1} rows takes {cost:.2f} times as long as one of {base}"

    def _trial(self, base: int, survivals: Sequence[float]) -> int:
        """Return how many rows to compute to see what that takes; 0: the credit allows none."""
        number = min(_TRIAL_ROWS[self._num_trials % len(_TRIAL_ROWS)], len(survivals))
        if not number or self.times.of(base + number) - self.times.of(base) > self._credit_s:
            return 0
        self._num_trials, self._since_trial = self._num_trials + 1, 0
        return number

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
            tok_s = expected / self.times.of(base + number)
            if number and tok_s > best_tok_s:
                best, best_tok_s = number, tok_s
        return best

    # ------------------------------------------------------------------ outcomes
    def note_plain(self, num_passes: int, passes_s: float) -> None:
        """Count passes of one row that followed each other."""
        for _ in range(num_passes):
            self.note(1, 0, 0, passes_s / num_passes)
        self._skip = max(0, self._skip + 1 - num_passes)

    def note(self, base: int, num_drafted: int, num_right: int, pass_s: float) -> None:
        """Count a usual pass."""
        rows = base + num_drafted
        if num_drafted:
            self._settle(0.0)
            self._round = base, num_drafted, num_right, pass_s
            self._since_round, self._since_plain = 0, self._since_plain + 1
        else:
            if self._latest_rows == rows:
                self._note_plain(rows, pass_s)
            elif self.times.num_timed[rows]:
                # After a pass of other rows llama.cpp makes its graph anew, and more.
                self._settle(pass_s - self.times.of(rows))
            self._since_round += 1
        self._latest_rows = rows

    def note_unusual(self) -> None:
        """Count a pass that is not to be compared with others, such as a prompt's."""
        self._settle(0.0)
        self._latest_rows = 0

    def _note_plain(self, rows: int, pass_s: float) -> None:
        times = self.times
        times.note(rows, pass_s)
        if times.num_timed[rows] == _FIRST_PASSES and rows not in self._bases:
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
        expected_s = self.times.of(base + num_drafted)
        took_s = self.times.note(base + num_drafted, pass_s + more_s)
        if took_s < _CHEAPER * expected_s:  # look at other lengths soon
            self._steady = _FIRST_STEADY
        gained_s = (1 + num_right / base) * self.times.of(base) - took_s
        self.saved_s += gained_s
        self._earn(gained_s, base)

    def _earn(self, gained_s: float, base: int) -> None:
        most_s = _MOST_CREDIT * self.times.of(base)
        self._credit_s = max(-most_s, min(self._credit_s + gained_s, most_s))


class Speculation:
    """Drafts tokens for the calls of a model. One thread at a time uses it, the one that drives."""

    def __init__(
        self, fixed: int | None, memory: NgramMemory, ctx_tokens: int, why_never: str = ""
    ) -> None:
        """`fixed` is as `fixed_length` gives it. With `why_never` nothing is ever drafted."""
        self.memory = memory
        self.num_rounds = self.num_drafted = self.num_accepted = self.num_rows = 0
        self.why_paused = ""  # empty: it is not
        self._gates = {"auto": Gate(), "fixed": Gate()}
        self._ctx_tokens, self._why_never = ctx_tokens, why_never
        self._set(fixed)

    def _set(self, fixed: int | None) -> None:
        self._fixed, self.gate = fixed, self._gates["auto" if fixed is None else "fixed"]
        self._why_off = self._why_never or ("it is turned off" if fixed == 0 else "")

    def begin_anew(self, fixed: int | None) -> None:
        """Draft as `fixed` says, and forget what drafts came from. The times of passes are kept."""
        self.memory.clear()
        self._set(fixed)

    @property
    def is_off(self) -> bool:
        """Return whether nothing is drafted, wherever it would pay."""
        return bool(self._why_off or self.why_paused)

    @property
    def why_closed(self) -> str:
        """Return why nothing is drafted now, in one line; empty if it is."""
        if self.is_off or self._fixed is not None:
            return self._why_off or self.why_paused
        return self.gate.why_closed

    def drafts(self, calls: Sequence[Call], most_rows: int) -> list[list[int]]:
        """Return the tokens to compute beside the next token of each of `calls`, which have a row
        each; none at all if the list is empty. A pass has at most `most_rows`."""
        if self.is_off or (self._fixed is None and not self.gate.looks(len(calls))):
            return []
        most = min(MOST_DRAFTED if self._fixed is None else self._fixed, most_rows - len(calls))
        found = [self._draft(call, most) for call in calls]
        survivals = [list(accumulate(rates, mul)) for _, rates in found]
        ranked = sorted((-chance, idx) for idx, each in enumerate(survivals) for chance in each)
        del ranked[most_rows - len(calls) :]
        if self._fixed is None:
            del ranked[self.gate.num_worth(len(calls), [-chance for chance, _ in ranked]) :]
        if not ranked:
            return []
        chosen = [idx for _, idx in ranked]
        return [list(tokens[: chosen.count(idx)]) for idx, (tokens, _) in enumerate(found)]

    def _draft(self, call: Call, most: int) -> ngram.Draft:
        most = min(most, call.most_drafted)
        if most <= 0:
            return ngram.NONE
        if call.drafter is None:
            call.drafter = NgramDrafter(
                self.memory, self._ctx_tokens, call.num_batched, MOST_DRAFTED
            )
        return call.drafter.propose(call.tokens, most)

    @property
    def most_blind(self) -> int:
        """Return how many passes of a lone call may follow each other without `drafts`, after it
        gave none."""
        if self.is_off:
            return MOST_STEPS
        return min(self.gate.most_blind, MOST_STEPS) if self._fixed is None else 1

    def note_plain(self, num_passes: int, passes_s: float) -> None:
        """Count usual passes of one row that followed each other."""
        if not self.is_off:
            self.gate.note_plain(num_passes, passes_s)

    def note(self, num_calls: int, num_drafted: int, num_right: int, pass_s: float) -> None:
        """Count a usual pass with a row of each of `num_calls` calls and `num_drafted` more, of
        which `num_right` were right."""
        if num_drafted:
            self.num_rounds += 1
            self.num_drafted += num_drafted
            self.num_accepted += num_right
            self.num_rows += num_calls + num_drafted
        if not self.is_off:
            self.gate.note(num_calls, num_drafted, num_right, pass_s)

    def note_unusual(self) -> None:
        """Count a pass that tells nothing of the others."""
        if not self.is_off:
            self.gate.note_unusual()


def speculation_of(speculate: object, drops_parts: bool, ctx_tokens: int) -> Speculation:
    """Return the speculation that `speculate` asks for. `drops_parts`: whether a sequence can lose
    its last tokens alone. Raises PromptError."""
    fixed, why_never = fixed_length(speculate), ""
    if not ngram.available:
        why_never = "our library is not built on this system"
    elif not drops_parts:
        why_never = "this model has recurrent layers, which cannot drop a wrong token"
    return Speculation(fixed, NgramMemory(), ctx_tokens, why_never)
