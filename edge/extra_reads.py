"""What drafts cost the drive: experts that passes with drafts read, and single tokens would not."""

_MOST_TOKENS = 256  # that the mean of single tokens goes back


class ExtraReads:
    """Counts the experts that passes with drafts read beyond what their tokens would have read one
    by one, which is the mean of the tokens that were computed without drafts.

    Below 0: they read less, because an expert that several rows need is read once.
    """

    def __init__(self) -> None:
        self.number = 0.0
        self._mean, self._num_tokens = 0.0, 0

    def note(self, num_tokens: int, num_drafted: int, num_reads: int) -> None:
        """Count passes that gave `num_tokens`, with so many drafted rows, and read so many
        experts."""
        if num_drafted:
            self.number += num_reads - num_tokens * self._mean
        elif num_tokens:
            self._num_tokens = min(self._num_tokens + num_tokens, _MOST_TOKENS)
            share = min(1.0, num_tokens / self._num_tokens)
            self._mean += (num_reads / num_tokens - self._mean) * share
