"""A reply on a terminal while it comes: Markdown, whole words, and a line of figures below."""

import re
import time
from collections.abc import Callable, Iterator

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from haversack.edge.console import safe_on_terminal

_DRAW_S = 0.08  # between two drawings at least
_DRAW_SHARE = 0.1  # of the time may be drawing: a long block takes long, and the model waits
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")  # begins or ends a block of code


def finished_blocks(text: str) -> int:
    """Return how many characters at the beginning of a Markdown text are blocks that nothing can
    change which may still follow: whole ones before a blank line, outside of code."""
    found = place = 0
    fence, was_blank = "", False
    for line in text.splitlines(keepends=True):
        is_blank = not line.strip()
        if not fence and was_blank and not is_blank and not line[0].isspace():
            found = place
        fence, was_blank = _fence_after(line, fence), is_blank
        place += len(line)
    return found


def _fence_after(line: str, fence: str) -> str:
    """Return the marks of the block of code that is open behind `line`, "" if there is none."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    if not fence:
        return match[1]
    closes = match[1].startswith(fence) and line.strip() == match[1]
    return "" if closes else fence


def markdown(text: str) -> Markdown:
    """Return the document that `text` describes. What looks like HTML is shown as it is."""
    document = Markdown("")
    # Its lines are not filled up with spaces, which would be copied with them.
    document.justify = "default"
    document.parsed = (
        MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).parse(text)
    )
    return document


class _Bottom:
    """The last lines of something that may be taller than the screen."""

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._shown, options, pad=False)
        for line in lines[-max(1, options.size.height - 1) :]:
            yield from line
            yield Segment.line()


class ReplyView:
    """Shows a reply in a `with` block. Blocks of it that are finished stay above; the last one is
    drawn again as it grows, with the line that `figures` returns below, without the word that is
    not finished. Reasoning is dim, as it was written, and a blank line stands behind it."""

    def __init__(self, console: Console, as_markdown: bool, figures: Callable[[], str]) -> None:
        self._console, self._as_markdown, self._figures = console, as_markdown, figures
        self._rest = ""  # of the text: what is drawn again
        self._is_reasoning = False
        self._num_printed = 0  # blocks
        self._next_s = 0.0  # when it is drawn again
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",
        )

    def push(self, text: str, *, is_reasoning: bool = False) -> None:
        """Show more of the reply."""
        if is_reasoning != self._is_reasoning:
            self._begin_part(is_reasoning)
        self._rest += safe_on_terminal(text)
        began_s = time.monotonic()
        if began_s < self._next_s:
            return
        self._print_finished()
        self._live.update(self._current(), refresh=True)
        ended_s = time.monotonic()
        self._next_s = ended_s + max(_DRAW_S, (ended_s - began_s) / _DRAW_SHARE)

    def _begin_part(self, is_reasoning: bool) -> None:
        """Have what came so far stay, with a blank line behind it."""
        if self._rest or self._num_printed:
            self._print(self._rest)
            self._console.print()
        self._rest, self._is_reasoning, self._num_printed = "", is_reasoning, 0

    def _current(self) -> RenderableType:
        words = self._rest[: _end_of_last_word(self._rest)]
        figures = Text(self._figures(), style="dim", no_wrap=True, overflow="ellipsis")
        return _Bottom(Group(*self._shown(words), figures))

    def _print_finished(self) -> None:
        """Have blocks stay that are finished."""
        end = self._rest.rfind("\n") + 1 if self._is_plain else finished_blocks(self._rest)
        if end:
            self._print(self._rest[:end])
            self._rest = self._rest[end:]

    def _print(self, text: str) -> None:
        for shown in self._shown(text):
            self._console.print(shown)
        self._num_printed += 1

    @property
    def _is_plain(self) -> bool:
        return self._is_reasoning or not self._as_markdown

    def _shown(self, text: str) -> Iterator[RenderableType]:
        """Yield what shows a part of the reply, with a blank line between blocks."""
        if self._is_plain:
            if text:
                yield Text(text.removesuffix("\n"), "dim" if self._is_reasoning else "")
        elif text.strip():
            if self._num_printed:
                yield ""
            yield markdown(text)

    def __enter__(self) -> "ReplyView":
        self._live.start()
        self._live.update(self._current(), refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Show the rest, and no figures any more."""
        self._live.update("")
        self._live.stop()
        self._print(self._rest)


def _end_of_last_word(text: str) -> int:
    """Return how many characters there are up to the last space or line break."""
    return len(text) - len(re.split(r"\s", text)[-1])
