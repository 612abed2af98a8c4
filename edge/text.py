"""Text as people give it, and from token bytes to text that may be shown: whole characters, and
nothing of a stop string."""

import codecs
from collections.abc import Sequence

from haversack.devices.errors import PromptError


def without_mark(text: str) -> str:
    """`text` without the byte-order mark that some editors put before it: it is no content."""
    return text.removeprefix("\N{BYTE ORDER MARK}")


class TextStream:
    """Text from pieces of UTF-8 bytes, cut anywhere; ends before the first stop string.

    The first stop string to be complete wins; of several that end on the same character, the
    longest. Where the pieces are cut changes neither the text nor the stop.
    Raises `PromptError` where `stop` is not a sequence of non-empty strings.
    """

    stopped: str | None = None  # the stop string that ended the text

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str) or not all(stop):
            raise PromptError(f"stop is {stop!r}: give a sequence of non-empty strings")
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # may be the start of a stop string

    def push(self, piece: bytes) -> str:
        """The text that `piece` makes safe to show; empty once a stop string was found."""
        return self._take(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back; the start of an unfinished character becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _take(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stop if stop in text]
        if found:
            end_idx, minus_chars = min(found)
            start_idx = end_idx + minus_chars
            self.stopped, self._held = text[start_idx:end_idx], ""
            return text[:start_idx]
        shown_chars = len(text) - self._start_chars(text)
        self._held = text[shown_chars:]
        return text[:shown_chars]

    def _start_chars(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for num_chars in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-num_chars:]) for stop in self._stop):
                return num_chars
        return 0
