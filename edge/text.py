"""Text between people and tokens: marks that are no content, and token bytes as text that may be
shown, which has whole characters and no part of a stop string."""

import codecs
from collections.abc import Collection, Sequence

from haversack.devices.errors import PromptError

_FIRST_MARK = 0xD800  # surrogates stand for special tokens, because decoded text has none


def without_mark(text: str) -> str:
    """Return `text` without the byte-order mark that some editors put before it."""
    return text.removeprefix("\N{BYTE ORDER MARK}")


class TextStream:
    """Makes text of pieces of UTF-8 bytes that may be cut anywhere; the text ends before the first
    stop string.

    The stop string that is complete first ends the text; of several that end on the same character,
    the longest does. Neither depends on where the pieces are cut. `specials` are the texts of
    special tokens that stop strings may contain: such a token is no part of the text, and `push` is
    told where it stands. Raises `PromptError` if `stop` is not a sequence of non-empty strings.
    """

    stopped: str | None = None  # the stop string that ended the text

    def __init__(self, stop: Sequence[str] = (), specials: Collection[str] = ()) -> None:
        if isinstance(stop, str) or not all(stop):
            raise PromptError(f"stop is {stop!r}: give a sequence of non-empty strings")
        longest_first = sorted(set(specials), key=len, reverse=True)
        self._mark = {text: chr(_FIRST_MARK + idx) for idx, text in enumerate(longest_first)}
        self._stop = {self._marked(text): text for text in stop}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # may be the start of a stop string

    def push(self, piece: bytes, special: str = "") -> str:
        """Add `piece` and the special token after it; return the text that can now be shown, empty
        once a stop string was found."""
        return self._take(self._decoder.decode(piece) + self._mark.get(special, ""))

    def finish(self) -> str:
        """Return the text that was held back; an unfinished character at its end becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held = text + self._shown(self._held), ""
        return text

    def _take(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        spans = [(self._span(stop, text), stop) for stop in self._stop]
        found = [(span[1], span[0], stop) for span, stop in spans if span is not None]
        if found:
            _, start_idx, stop = min(found)
            self.stopped, self._held = self._stop[stop], ""
            return self._shown(text[:start_idx])
        num_held = max((self._start_chars(stop, text) for stop in self._stop), default=0)
        num_shown = len(text) - num_held
        self._held = text[num_shown:]
        return self._shown(text[:num_shown])

    def _span(self, stop: str, text: str) -> tuple[int, int] | None:
        """Return where a stop string stands in `text`, None if there is none."""
        view, places = self._view(stop, text)
        start_idx = view.find(stop)
        if start_idx < 0:
            return None
        return places[start_idx], places[start_idx + len(stop) - 1] + 1

    def _start_chars(self, stop: str, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        view, places = self._view(stop, text)
        for num_chars in range(min(len(stop) - 1, len(view)), 0, -1):
            if view.endswith(stop[:num_chars]):
                return len(text) - places[len(view) - num_chars]
        return 0

    # ------------------------------------------------------------------ marks
    def _marked(self, stop: str) -> str:
        for special, mark in self._mark.items():
            stop = stop.replace(special, mark)
        return stop

    def _shown(self, text: str) -> str:
        """Return `text` without marks."""
        for mark in self._mark.values():
            text = text.replace(mark, "")
        return text

    def _view(self, stop: str, text: str) -> tuple[str, Sequence[int]]:
        """Return the text in which a stop string is searched, and where its characters stand in
        `text`. Special tokens are left out unless the stop string has one."""
        if not self._mark or self._shown(stop) != stop:
            return text, range(len(text))
        places = [idx for idx, char in enumerate(text) if char not in self._mark.values()]
        return "".join(text[idx] for idx in places), places
