"""GBNF, the notation in which users write grammars, parsed into a tree."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from haversack.devices.errors import PromptError
from haversack.edge.text import without_mark

MAX_GRAMMAR_CHARS = 1 << 20
MAX_REPEATS = 100_000
LAST_CHAR = 0x10FFFF
_MAX_NESTING = 100  # of parentheses; the parser recurses
_SURROGATES = (0xD800, 0xDFFF)  # code points that are no characters
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", **{char: char for char in '\\"[]'}}
_NUM_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9A-Fa-f]+")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COUNTS = re.compile(r"\{\s*(\d{1,9})\s*(?:(,)\s*(\d{1,9})?\s*)?\}")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NEXT_CHOICE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*\|")

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # of code points, both ends included


@dataclass(frozen=True)
class Text:
    """A string of these characters, at least one."""

    text: str


@dataclass(frozen=True)
class Char:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Ref:
    """A reference to another rule."""

    name: str


@dataclass(frozen=True)
class Seq:
    """Its parts, one after the other; without parts, the empty text."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Alt:
    """One of its parts."""

    choices: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """Its part, `least` to `most` times; `most` None means any number."""

    part: "Node"
    least: int
    most: int | None


Node: TypeAlias = Text | Char | Ref | Seq | Alt | Repeat
Rules: TypeAlias = dict[str, Node]


def parse_gbnf(gbnf: str) -> Rules:
    """Return the rules of a grammar by their names. `root` is among them, and so are all rules that
    they refer to.

    Raises PromptError, which names the line.
    """
    gbnf = without_mark(gbnf)
    if len(gbnf) > MAX_GRAMMAR_CHARS:
        raise PromptError(f"the grammar has {len(gbnf)} characters: at most {MAX_GRAMMAR_CHARS}")
    if not gbnf.strip() or "\0" in gbnf:
        raise PromptError("the grammar is empty or holds a null character: give GBNF")
    rules = _Parser(gbnf).rules()
    if "root" not in rules:
        raise PromptError('the grammar has no rule named root: start it with "root ::= "')
    for name, node in rules.items():
        for ref in references(node):
            if ref not in rules:
                raise PromptError(f'Undefined rule identifier "{ref}" in rule {name}: define it')
    return rules


def references(node: Node) -> Iterator[str]:
    """Return the names of the rules that `node` refers to, in their order."""
    if isinstance(node, Ref):
        yield node.name
    for child in children(node):
        yield from references(child)


def children(node: Node) -> tuple[Node, ...]:
    """Return the nodes directly below `node`."""
    if isinstance(node, Seq):
        return node.parts
    if isinstance(node, Alt):
        return node.choices
    return (node.part,) if isinstance(node, Repeat) else ()


def complement(ranges: Ranges) -> Ranges:
    """Return all characters but these; `ranges` are in order and do not touch."""
    starts = [0, *(last + 1 for _, last in ranges)]
    ends = [*(first - 1 for first, _ in ranges), LAST_CHAR]
    return normal([pair for pair in zip(starts, ends, strict=True) if pair[0] <= pair[1]])


def normal(ranges: list[tuple[int, int]]) -> Ranges:
    """Return the same characters as ranges in order that do not touch, without code points that are
    no characters."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        first = _SURROGATES[1] + 1 if _SURROGATES[0] <= first <= _SURROGATES[1] else first
        last = _SURROGATES[0] - 1 if _SURROGATES[0] <= last <= _SURROGATES[1] else last
        if first > last:
            continue
        if merged and first <= merged[-1][1] + 1:
            first, last = merged[-1][0], max(last, merged.pop()[1])
        merged.append((first, last))
    return tuple(merged)


class _Parser:
    """Reads a grammar from its start to its end."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._nesting = text, 0, 0

    def rules(self) -> Rules:
        rules: Rules = {}
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            name = self._name()
            self._skip(_SPACE)
            self._expect("::=")
            if name in rules:
                raise self._error(f"the rule {name} is defined twice")
            self._skip(_SPACE_AND_LINES)
            rules[name] = self._choices()
            if self._peek() not in ("", "\r", "\n"):
                raise self._error(f"{self._peek()!r} cannot stand here")
            self._skip(_SPACE_AND_LINES)
        return rules

    def _choices(self) -> Node:
        choices = [self._sequence()]
        while self._skip(_NEXT_CHOICE):
            self._skip(_SPACE_AND_LINES)
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else Alt(tuple(choices))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        self._skip_space()
        while (part := self._part()) is not None:
            self._skip_space()
            parts.append(self._repeated(part))
            self._skip_space()
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _part(self) -> Node | None:
        char = self._peek()
        if char == '"':
            return self._literal()
        if char == "[":
            return self._set()
        if char == "(":
            return self._group()
        if char == ".":
            self._at += 1
            return Char(complement(()))
        if char and char in "<!":
            raise self._error("tokens cannot be named: write their text")
        return Ref(self._name()) if _NAME.match(char) else None

    def _literal(self) -> Node:
        text = ""
        self._at += 1
        while self._peek() != '"':
            text += chr(self._char())
        self._at += 1
        return Text(text) if text else Seq(())

    def _set(self) -> Node:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            first = last = self._char()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._char()
            ranges.append((first, last))
        self._at += 1
        return Char(complement(normal(ranges)) if negated else normal(ranges))

    def _group(self) -> Node:
        self._at += 1
        self._nesting += 1
        if self._nesting > _MAX_NESTING:
            raise self._error(f"it nests more than {_MAX_NESTING} parentheses")
        node = self._choices()
        self._skip_space()
        self._expect(")")
        self._nesting -= 1
        return node

    def _repeated(self, part: Node) -> Node:
        counts = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        depth = 0
        while (char := self._peek()) and char in "*+?{":
            depth += 1
            if depth > _MAX_NESTING:
                raise self._error(f"more than {_MAX_NESTING} repetitions of one thing")
            if char == "{":
                least, most = self._counts()
            else:
                self._at += 1
                least, most = counts[char]
            part = Seq(()) if most == 0 else Repeat(part, least, most)
            self._skip_space()
        return part

    def _counts(self) -> tuple[int, int | None]:
        found = _COUNTS.match(self._text, self._at)
        if found is None:
            raise self._error("a repetition is {m}, {m,} or {m,n}")
        self._at = found.end()
        least = int(found[1])
        most = None if found[2] and not found[3] else int(found[3] or least)
        if most is not None and most < least:
            raise self._error(f"it repeats {{{least},{most}}}: the first must not be larger")
        if max(least, most or 0) > MAX_REPEATS:
            raise self._error(f"it repeats more than {MAX_REPEATS} times")
        return least, most

    def _char(self) -> int:
        """Read the next character, written as itself or as an escape."""
        char = self._peek()
        if not char:
            raise self._error("a string or a set of characters has no end")
        self._at += 1
        if char != "\\":
            return self._checked(ord(char))
        escape = self._peek()
        self._at += 1
        if escape in _ESCAPES:
            return ord(_ESCAPES[escape])
        digits = self._text[self._at : self._at + _NUM_DIGITS.get(escape, 0)]
        if not digits or not _HEX.fullmatch(digits) or len(digits) < _NUM_DIGITS[escape]:
            raise self._error(f"\\{escape} is no escape: give \\n, \\r, \\t, \\x.., \\u...., \\U")
        self._at += len(digits)
        return self._checked(int(digits, 16))

    def _checked(self, code: int) -> int:
        if code > LAST_CHAR or _SURROGATES[0] <= code <= _SURROGATES[1]:
            raise self._error(f"{code:#x} is not valid Unicode")
        return code

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._error("a rule's name was expected")
        self._at = found.end()
        return found[0]

    # ------------------------------------------------------------- characters
    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _expect(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise self._error(f"{text} was expected")
        self._at += len(text)

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        """Go past what `pattern` matches; return whether it matches."""
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found is not None

    def _skip_space(self) -> None:
        self._skip(_SPACE_AND_LINES if self._nesting else _SPACE)

    def _error(self, what: str) -> PromptError:
        line = self._text.count("\n", 0, self._at) + 1
        seen = self._text[self._at : self._at + 20].split("\n")[0]
        return PromptError(f"the grammar does not parse: line {line}, before {seen!r}: {what}")
