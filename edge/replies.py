"""The parts of a reply: reasoning, text and tool calls, by the marks of the model's template.

Each family of models marks them in its own way. The template shows in which one, because it writes
earlier replies of a chat with the same marks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from haversack.edge.tool_calls import Parameters, ToolCall, read_tool_calls


@dataclass(frozen=True)
class Piece:
    """Some of a reply's text, or of its reasoning."""

    text: str
    is_reasoning: bool = False


@dataclass(frozen=True)
class Span:
    """A part of a reply between two marks: reasoning, or tool calls. Without an `end` it goes on
    until the reply ends."""

    begin: str
    end: str = ""
    is_reasoning: bool = False


@dataclass(frozen=True)
class ReplyFormat:
    """How a family of models writes: the spans, the marks that stand inside of them, and those that
    are left out of the text."""

    spans: tuple[Span, ...] = ()
    inner: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """All of them, some of which are special tokens."""
        around = [mark for span in self.spans for mark in (span.begin, span.end)]
        return tuple(dict.fromkeys(filter(None, [*around, *self.inner, *self.hidden])))

    def without_calls(self) -> "ReplyFormat":
        """Return it for replies that call no tools: what looks like a call is text."""
        return replace(self, spans=tuple(span for span in self.spans if span.is_reasoning))


def _reasoning(begin: str, end: str, *hidden: str) -> ReplyFormat:
    return ReplyFormat((Span(begin, end, is_reasoning=True),), hidden=hidden)


def _calls(begin: str, end: str = "", *inner: str) -> ReplyFormat:
    return ReplyFormat((Span(begin, end),), inner)


_CHANNELS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>")
_DSML = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>")
# The first text that a template holds tells how its family marks reasoning, or calls.
_REASONING: Mapping[str, ReplyFormat] = {
    "<|channel|>analysis": ReplyFormat(
        (Span("<|channel|>analysis<|message|>", "<|end|>", is_reasoning=True),),
        _CHANNELS,
        (
            "<|start|>assistant",
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",
            "<|end|>",
        ),
    ),
    "<|channel>thought": _reasoning("<|channel>thought", "<channel|>"),
    "<seed:think>": _reasoning("<seed:think>", "</seed:think>"),
    "<|inner_prefix|>": _reasoning("<|inner_prefix|>", "<|inner_suffix|>"),
    "[THINK]": _reasoning("[THINK]", "[/THINK]"),
    "[BEGIN FINAL RESPONSE]": _reasoning(
        "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]", "<|end|>"
    ),
    "<response>": _reasoning("<think>", "</think>", "<response>", "</response>"),
    "<think>": _reasoning("<think>", "</think>"),
}
_CALLS: Mapping[str, ReplyFormat] = {
    "<|channel|>commentary": ReplyFormat(
        (Span("<|channel|>commentary to=", "<|call|>"), Span(" to=functions.", "<|call|>")),
        _CHANNELS,
    ),
    "｜DSML｜": ReplyFormat(
        tuple(Span(begin, begin.replace("<", "</")) for begin in _DSML), ("｜DSML｜",)
    ),
    "<｜tool▁calls▁begin｜>": _calls(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
    ),
    "<|tool_calls_section_begin|>": _calls(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ),
    "[TOOL_CALLS]": _calls("[TOOL_CALLS]", "", "[ARGS]", "[CALL_ID]"),
    "<|tools_prefix|>": _calls("<|tools_prefix|>", "<|tools_suffix|>"),
    "<|tool_call>": _calls("<|tool_call>", "<tool_call|>", '<|"|>'),
    "<|tool_call|>": _calls("<|tool_call|>"),
    "<seed:tool_call>": _calls("<seed:tool_call>", "</seed:tool_call>"),
    "<tool_calls>": _calls("<tool_calls>", "</tool_calls>"),
    "<|function_call|>": _calls("<|function_call|>"),
    "<|role_sep|>": _calls("function call<|role_sep|>", "", "<|role_sep|>"),
}
_PLAIN_CALLS = _calls("<tool_call>", "</tool_call>")  # of most others, and of our own instructions


def reply_format(template: str) -> ReplyFormat:
    """Return how models with this chat template write."""
    reasoning = _first(template, _REASONING, ReplyFormat())
    calls = _first(template, _CALLS, _PLAIN_CALLS)
    spans = dict.fromkeys(reasoning.spans + calls.spans + _PLAIN_CALLS.spans)
    return ReplyFormat(tuple(spans), reasoning.inner + calls.inner, reasoning.hidden)


def _first(template: str, known: Mapping[str, ReplyFormat], default: ReplyFormat) -> ReplyFormat:
    return next((known[text] for text in known if text in template), default)


class ReplyReader:
    """Takes a reply apart as it comes. White space around its parts is left out."""

    def __init__(self, format: ReplyFormat, prompt: str, parameters: Parameters) -> None:
        """`prompt` may end inside of a span. `parameters` are those of the tools."""
        self._format, self._parameters = format, parameters
        self._held = ""  # may be the beginning of a mark, or a call that is not complete
        self._blank = ""  # white space before what may be the end of a part
        asked = prompt.rstrip()
        begun = (span for span in format.spans if asked.endswith(span.begin))
        self._span: Span | None = next(begun, None)
        self._trims = self._span is not None  # no text has come since a mark

    def push(self, text: str) -> list[Piece | ToolCall]:
        """Return what is complete with `text` after what was given before."""
        self._held += text
        found = list[Piece | ToolCall]()
        while (mark := self._next_mark()) is not None:
            before, self._held = self._held.split(mark, 1)
            found += self._part(before, self._span)
            self._enter(mark)
        num_held = max((_overlap(self._held, mark) for mark in self._ends()), default=0)
        if self._span is None or self._span.is_reasoning:
            ready = len(self._held) - num_held
            found += self._piece(self._held[:ready])
            self._held = self._held[ready:]
        return found

    def finish(self) -> list[Piece | ToolCall]:
        """Return the rest of the reply."""
        rest = self._part(self._held, self._span)
        if self._blank and not self._trims:
            rest.append(Piece(self._blank, self._span is not None))
        self._held = self._blank = ""
        return rest

    def _ends(self) -> list[str]:
        """The marks that end what is read now."""
        if self._span is not None:
            return [self._span.end] if self._span.end else []
        return [*(span.begin for span in self._format.spans), *self._format.hidden]

    def _next_mark(self) -> str | None:
        places = [(self._held.find(mark), -len(mark), mark) for mark in self._ends()]
        return min((place for place in places if place[0] >= 0), default=(0, 0, None))[2]

    def _enter(self, mark: str) -> None:
        begun = (span for span in self._format.spans if span.begin == mark)
        self._span = None if self._span is not None else next(begun, None)
        self._trims, self._blank = True, ""

    def _part(self, text: str, span: Span | None) -> list[Piece | ToolCall]:
        if span is None or span.is_reasoning:
            return self._piece(text)
        calls = read_tool_calls(text, self._parameters)
        return [*calls] if calls else self._piece(f"{span.begin}{text}{span.end}")

    def _piece(self, text: str) -> list[Piece | ToolCall]:
        """A piece without white space that may be left out."""
        if self._trims:
            text = text.lstrip()
        shown = (self._blank + text).rstrip()
        if not shown:
            self._blank += text
            return []
        self._trims, self._blank = False, (self._blank + text)[len(shown) :]
        return [Piece(shown, self._span is not None and self._span.is_reasoning)]


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that begins `mark`."""
    lengths: Iterable[int] = range(min(len(text), len(mark) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(mark[:length])), 0)
