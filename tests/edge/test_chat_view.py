"""Replies as they are drawn: which blocks stay, and that no word is ever broken in two."""

import io
import re

import pytest
from rich.console import Console

from haversack.edge.chat_view import ReplyView, finished_blocks

WIDTH, HEIGHT = 24, 10
TEXT = """\
Some **bold** words that go on for more than a line or two, with `code` in them.

1. the first point
2. the second point, which is longer than a line is

```python
print("a line of code")

print("another one")
```

The <think> of HTML stays, and that is the end.
"""


def view_to(out: io.StringIO, *, as_markdown: bool = True) -> ReplyView:
    console = Console(file=out, force_terminal=True, width=WIDTH, height=HEIGHT, color_system=None)
    return ReplyView(console, as_markdown, lambda: "9 tok/s")


def shown_lines(written: str) -> list[str]:
    """Everything that was ever on the screen, without what moves the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written).replace("\r", "\n").splitlines()


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("One line", ""),
        ("One line\n\n", ""),  # more of a list may follow, say
        ("One line\n\nAnother", "One line\n\n"),
        ("- item\n\n  more of it", ""),
        ("```\na\n\nb", ""),
        ("```\na\n\nb\n```\n\nc", "```\na\n\nb\n```\n\n"),
        ("~~~\n```\n\nb", ""),
        ("````\n```\n\nb\n````\n\nc", "````\n```\n\nb\n````\n\n"),
    ],
)
def test_a_block_is_finished_once_another_begins(text: str, finished: str) -> None:
    assert text[: finished_blocks(text)] == finished


def test_no_word_is_broken_in_two_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("haversack.edge.chat_view._DRAW_S", 0.0)
    monkeypatch.setattr("haversack.edge.chat_view._DRAW_SHARE", 1e9)
    out, words = io.StringIO(), set(re.findall(r"\w+", TEXT)) | {"9", "tok", "s"}
    with view_to(out) as view:
        for begin in range(0, len(TEXT), 3):  # pieces that end in the middle of words
            view.push(TEXT[begin : begin + 3])
    shown = set(re.findall(r"\w+", "\n".join(shown_lines(out.getvalue()))))
    assert shown - {"python"} == words - {"python"}


def test_what_stays_is_the_whole_document() -> None:
    out = io.StringIO()
    with view_to(out) as view:
        for character in TEXT:
            view.push(character)
    lines = [line.strip() for line in shown_lines(out.getvalue())]
    assert "<think>" in " ".join(lines) and "**" not in " ".join(lines)
    assert any(line.startswith("2 the second") for line in lines)
    assert lines.count('print("another one")') >= 1
    assert "9 tok/s" not in lines[-3:]  # the figures are gone


def test_without_markdown_the_marks_stay() -> None:
    out = io.StringIO()
    with view_to(out, as_markdown=False) as view:
        view.push("Some **bold**\n\nwords \x1b[31m")
    shown = shown_lines(out.getvalue())
    assert "Some **bold**" in shown and shown[-1] == "words \N{REPLACEMENT CHARACTER}[31m"


@pytest.mark.parametrize("as_markdown", [True, False])
def test_reasoning_is_dim_and_stands_before_a_blank_line(as_markdown: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=WIDTH, color_system="standard")
    with ReplyView(console, as_markdown, lambda: "") as view:
        for word in ("Maybe ", "**so**.\n", "Or not, which takes another line."):
            view.push(word, is_reasoning=True)
        view.push("Yes.")
    dim = re.findall(r"\x1b\[2m(.*?)\x1b\[0m", out.getvalue(), re.DOTALL)
    assert "Maybe **so**." in dim and "Yes." not in "".join(dim)
    lines = [line.strip() for line in shown_lines(out.getvalue())]
    assert "another line." in lines and lines[-2:] == ["", "Yes."]
