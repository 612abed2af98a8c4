"""How long passes take by their rows, and drafts: running means of what was measured."""

from haversack.devices.llama import MOST_ROWS

FEW_PASSES = 2  # that a mean is known little by
_WEIGHT = 16  # passes that a running mean goes back
_STALE_PASSES = 256  # after which a mean counts as one pass
_OUTLIER = 4.0  # times the mean: what takes longer is counted as this long
FIRST_ROW_COST = 0.7  # of one more row in single tokens, until passes of several rows were timed


class PassTimes:
    """How long passes of 1 to 7 rows take: running means. The first pass of so many rows also makes
    llama.cpp's graph for them, so the second one replaces its time."""

    def __init__(self) -> None:
        self.num_timed = [0] * (MOST_ROWS + 1)
        self._mean_s = [0.0] * (MOST_ROWS + 1)
        self._noted_at, self._num_noted = [0] * (MOST_ROWS + 1), 0

    def note(self, num_rows: int, pass_s: float, num_passes: int = 1) -> float:
        """Count passes of the same time. Return it, or less if they were held up."""
        self._num_noted += num_passes
        is_stale = self._num_noted - self._noted_at[num_rows] > _STALE_PASSES
        if is_stale:  # the machine may be another
            self.num_timed[num_rows] = min(1, self.num_timed[num_rows])
        self._noted_at[num_rows] = self._num_noted
        timed, mean_s = self.num_timed[num_rows], self._mean_s[num_rows]
        if timed >= FEW_PASSES:
            pass_s = min(pass_s, _OUTLIER * mean_s)
        self.num_timed[num_rows] = timed + num_passes
        before = 0 if timed == 1 and not is_stale else timed
        share = min(1.0, num_passes / min(before + num_passes, _WEIGHT))
        self._mean_s[num_rows] = mean_s + (pass_s - mean_s) * share
        return pass_s

    def doubt(self, num_rows: int) -> None:
        """Have the time of a pass count little beside those that are timed next."""
        self.num_timed[num_rows] = min(self.num_timed[num_rows], FEW_PASSES)

    def known(self, num_rows: int) -> tuple[int, int]:
        """Return how well the time of a pass is known: what is smaller is known less."""
        return min(self.num_timed[num_rows], FEW_PASSES), self._noted_at[num_rows]

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
        row_s = FIRST_ROW_COST * self._mean_s[least] / least
        if most > least:
            row_s = max(0.0, (self._mean_s[most] - self._mean_s[least]) / (most - least))
        return self._mean_s[most] + (num_rows - most) * row_s


class DraftTimes:
    """How long a drafter that computes takes for a token that it drafts, and for one that it reads:
    running means. Without one both are 0."""

    def __init__(self) -> None:
        self.drafted_s = self.read_s = 0.0
        self._num_drafts = self._num_reads = 0

    def note(self, num_drafted: int, drafted_s: float, num_read: int, read_s: float) -> None:
        """Count what a drafter drafted and read."""
        if num_drafted:
            self._num_drafts += 1
            more_s = drafted_s / num_drafted - self.drafted_s
            self.drafted_s += more_s / min(self._num_drafts, _WEIGHT)
        if num_read:
            self._num_reads += 1
            more_s = read_s / num_read - self.read_s
            self.read_s += more_s / min(self._num_reads, _WEIGHT)
